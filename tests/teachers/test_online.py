"""Teachers: their mean distribution, their weights, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from small_runs import TEACHER, changed, context

from distill_jax import config as configs
from distill_jax import teachers
from distill_jax.errors import UsageError
from distill_jax.models import Outputs
from distill_jax.runs import experiment
from distill_jax.tasks.images.parts import prepare
from distill_jax.tasks.images.recipe import soft_values


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_the_mean_distribution(temperature):
    generator = np.random.default_rng(1)
    logits = [generator.normal(size=(6, 4)) * scale for scale in (1, 3, 200)]
    weights = (0.2, 0.5, 0.3)
    z = teachers.mean_probabilities([jnp.float32(a) for a in logits], weights, temperature)
    expected = sum(
        w * softmax(a / temperature, axis=1) for w, a in zip(weights, logits, strict=True)
    )
    np.testing.assert_allclose(softmax(np.asarray(z) / temperature, axis=1), expected, atol=1e-6)
    assert np.isfinite(z).all()


def test_a_teacher_of_weight_zero_does_not_count():
    logits = [jnp.float32([[1.0, 2.0]]), jnp.float32([[9.0, 0.0]])]
    z = teachers.mean_probabilities(logits, (1.0, 0.0), 2.0)
    np.testing.assert_allclose(softmax(z / 2), softmax(logits[0] / 2), atol=1e-6)


@pytest.fixture(scope="module")
def two_teachers(digits_teacher, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "run"
    experiment.run(changed(TEACHER, seed=1, student__widths=(32,)), other)
    return str(digits_teacher), str(other)


def values(two_teachers, combine: str, weights) -> tuple[np.ndarray, list[np.ndarray]]:
    config = changed(
        TEACHER,
        method__name="soft_target",
        method__temperature=3.0,
        teacher__path=two_teachers,
        teacher__weights=weights,
        teacher__combine=combine,
    )
    parts = prepare(configs.resolve(config))
    images = jnp.asarray(parts.feed.examples.arrays()[0][:9], jnp.float32) / 255
    answers = parts.recipe.teachers(parts.frozen.teachers, images)
    student = Outputs(logits=jnp.asarray(np.random.default_rng(0).normal(size=(9, 10))), taps={})
    now = context(temperature=jnp.float32(3))
    got, _ = soft_values(parts.recipe, student, answers, now)
    rows = [np.asarray(a.logits, np.float64) for a in answers]
    return np.asarray(got), [np.asarray(student.logits, np.float64), *rows]


def kl(q, p):
    return np.sum(q * (np.log(q) - np.log(p)), axis=1)


@pytest.mark.slow
def test_sum_of_losses_and_mean_of_probabilities_differ_as_they_should(two_teachers):
    got, (z, first, second) = values(two_teachers, "sum_losses", (3.0, 1.0))
    p, q1, q2 = (softmax(a / 3, axis=1) for a in (z, first, second))
    np.testing.assert_allclose(got, 9 * (0.75 * kl(q1, p) + 0.25 * kl(q2, p)), rtol=1e-4)
    got, _ = values(two_teachers, "mean_probabilities", (3.0, 1.0))
    np.testing.assert_allclose(got, 9 * kl(0.75 * q1 + 0.25 * q2, p), rtol=1e-4)


@pytest.mark.parametrize(
    ("classes", "shape", "message"),
    [
        (7, (8, 8, 1), "has 10 classes; expected the 7"),
        (10, (28, 28, 1), "takes \\(8, 8, 1\\) images"),
    ],
)
def test_a_teacher_of_other_data_is_refused(digits_teacher, classes, shape, message):
    with pytest.raises(UsageError, match=f"teacher.path=.*{message}"):
        teachers.load([str(digits_teacher)], input_shape=shape, num_classes=classes)


def test_a_missing_teacher_is_refused(tmp_path):
    with pytest.raises(UsageError, match="teacher.path="):
        teachers.load([str(tmp_path / "none")], input_shape=(8, 8, 1), num_classes=10)
