"""Evaluation of a split that the batch does not divide, against a loop over single examples."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from small_runs import TEACHER, changed

from distill_jax import config as configs
from distill_jax import models
from distill_jax.tasks.images.parts import prepare


def one_by_one(saved, graphdef, images) -> np.ndarray:
    rows = []
    for image in images:
        inputs = models.normalise(
            jnp.asarray(image[None], jnp.float32) / 255, saved.spec.mean, saved.spec.std
        )
        outputs, _ = models.apply(graphdef, saved.params, saved.stats, inputs, train=False)
        rows.append(np.asarray(outputs.logits[0], np.float64))
    return np.stack(rows)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 33), (8, 48)])
def test_every_figure_equals_a_loop_over_examples(digits_teacher, devices, batch_size):
    config = changed(
        TEACHER,
        method__name="soft_target",
        teacher__path=str(digits_teacher),
        seed=3,
        evaluation__batch_size=batch_size,
        mesh__data=devices,
    )
    parts = prepare(configs.resolve(config))
    assert 500 % batch_size
    params, stats = parts.initial.evaluated
    got = parts.evaluators["test"](params, stats)
    logits, labels = parts.evaluators["test"].logits(params, stats)

    teacher = models.load(digits_teacher, key="teacher.path")
    mine = models.Saved(spec=parts.recipe.spec, params=params, stats=stats, fingerprint="")
    from distill_jax import data

    images, truth = data.load("digits", "test").arrays()
    z = one_by_one(mine, parts.recipe.graphdef, images)
    t = one_by_one(teacher, parts.recipe.teachers.graphdefs[0], images)
    np.testing.assert_array_equal(labels, truth)
    np.testing.assert_allclose(logits, z, atol=1e-5)
    log_p, log_q = log_softmax(z, axis=1), log_softmax(t, axis=1)
    rows = np.arange(len(truth))
    assert got["count"] == 500
    assert got["errors"] == np.sum(z.argmax(1) != truth)
    assert got["nll"] == pytest.approx(-log_p[rows, truth].mean(), rel=1e-5)
    assert got["agreement"] == pytest.approx(np.mean(z.argmax(1) == t.argmax(1)))
    assert got["kl"] == pytest.approx(np.sum(np.exp(log_q) * (log_q - log_p), 1).mean(), rel=1e-4)
    assert got["teacher_errors"] == np.sum(t.argmax(1) != truth)
    brier = np.sum((np.exp(log_p) - np.eye(10)[truth]) ** 2, 1).mean()
    assert got["brier"] == pytest.approx(brier, rel=1e-5)
