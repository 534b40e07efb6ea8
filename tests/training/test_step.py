"""The step: one view for both, a frozen teacher, and the same numbers however it is cut up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import STUDENT, TEACHER, changed

from distill_jax import config as configs
from distill_jax import data, models, parallel
from distill_jax.runs import experiment
from distill_jax.tasks.images.parts import prepare
from distill_jax.training import step
from distill_jax.training.state import copy_to as placed_state


def trained(config: dict, steps: int, per_call: int = 1):
    """(parts, state after `steps`, compiled function)."""
    parts = prepare(configs.resolve(config))
    size = parts.config.training.batch_size
    order = parts.order
    feed = data.training_feed(
        parts.feed.examples, order, size, resident=bool(parts.resident), workers=0
    )
    batches = feed.at(0)
    compiled = step.compile_steps(parts.recipe_at(0), parts.mesh, parts.layout)
    now = placed_state(parts.initial, parts.layout)
    for _ in range(steps // per_call):
        placed = step.put_batches([next(batches) for _ in range(per_call)], parts.mesh)
        now = compiled(now, parts.frozen, parts.resident, placed)
    return parts, now, compiled


def close(a, b, tolerance=1e-5):
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def student(digits_teacher):
    """Everything that draws or gathers over the batch: mixup, crops, dropout, batch statistics."""
    return changed(
        STUDENT,
        teacher__path=str(digits_teacher),
        training__steps=5,
        optimizer__learning_rate=0.02,
    )


@pytest.fixture(scope="module")
def alone(student):
    return trained(student, 5)[1]


@pytest.mark.parametrize(
    "shape",
    [
        (8, 1, 1),
        (2, 2, 2),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 8, 1), (1, 1, 8))),
    ],
)
def test_one_device_equals_eight(student, alone, shape):
    axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), shape, strict=True))
    parts, eight, _ = trained(changed(student, **axes), 5)
    assert parts.mesh.size == 8
    one = alone
    for name in ("params", "stats", "adapters"):
        close(getattr(one, name), getattr(eight, name))
    close(one.sums, eight.sums, 1e-4)


def test_accumulation_equals_the_large_batch(digits_teacher):
    config = changed(
        STUDENT,
        teacher__path=str(digits_teacher),
        student__name="mlp",
        student__widths=(16,),
        data__augment__mixup=0.0,
        training__steps=3,
        # Its regressor has no batch normalisation; that of "code" has, over each part.
        method__variant="paper",
    )
    del config["student"]["channels"], config["student"]["dense"], config["student"]["dropout"]
    _, whole, _ = trained(config, 3)
    _, parts, _ = trained(changed(config, training__accumulate=4), 3)
    close(whole.params, parts.params)
    close(whole.adapters, parts.adapters)
    close(whole.sums, parts.sums, 1e-4)
    _, sharded, _ = trained(changed(config, training__accumulate=4, mesh__data=8), 3)
    close(whole.params, sharded.params)


@pytest.mark.slow
def test_several_steps_a_call_equal_single_ones(student):
    _, single, _ = trained(student, 4)
    _, together, _ = trained(student, 4, per_call=4)
    close(single.params, together.params)
    close(single.stats, together.stats)
    assert int(together.step) == 4


def test_a_second_step_compiles_nothing(student):
    _, _, compiled = trained(student, 4)
    assert compiled._cache_size() == 1


def test_the_teacher_does_not_change(student, digits_teacher):
    before = models.load(digits_teacher, key="teacher.path")
    parts, _, _ = trained(student, 5)
    (params, stats), *_ = parts.frozen.teachers
    for name, value in before.params.items():
        np.testing.assert_array_equal(params[name], value)
    for name, value in before.stats.items():
        np.testing.assert_array_equal(stats[name], value)
    assert models.load(digits_teacher, key="teacher.path").fingerprint == before.fingerprint


@pytest.fixture(scope="module")
def convolutional_teacher(tmp_path_factory):
    """A teacher with batch statistics and dropout, whose training and evaluation modes differ."""
    folder = tmp_path_factory.mktemp("convolutional") / "run"
    config = changed(TEACHER, student__name="cnn", student__dropout=0.5, training__steps=40)
    del config["student"]["widths"]
    experiment.run(config, folder)
    return folder


def test_the_teacher_answers_in_evaluation_mode(convolutional_teacher):
    config = changed(TEACHER, method__name="logit_mse", teacher__path=str(convolutional_teacher))
    parts = prepare(configs.resolve(config))
    saved = models.load(convolutional_teacher, key="teacher.path")
    images = jnp.asarray(parts.feed.examples.arrays()[0][:32], jnp.float32) / 255
    together = parts.recipe.teachers(parts.frozen.teachers, images)[0].logits
    alone = parts.recipe.teachers(parts.frozen.teachers, images[:1])[0].logits
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)  # no batch statistics, no dropout
    inputs = models.normalise(images, saved.spec.mean, saved.spec.std)
    graphdef = parts.recipe.teachers.graphdefs[0]
    expected, _ = models.apply(graphdef, saved.params, saved.stats, inputs, train=False)
    np.testing.assert_allclose(together, expected.logits, atol=1e-5)


def test_no_gradient_reaches_the_teacher(digits_teacher):
    config = changed(TEACHER, method__name="logit_mse", teacher__path=str(digits_teacher))
    parts = prepare(configs.resolve(config))
    images = jnp.asarray(parts.feed.examples.arrays()[0][:4], jnp.float32) / 255
    gradient = jax.grad(
        lambda variables: sum(
            jnp.sum(a.logits**2) for a in parts.recipe.teachers(variables, images)
        )
    )(parts.frozen.teachers)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_student_and_teacher_see_the_same_view(digits_teacher):
    """A student that is its teacher has no soft loss, whatever the augmentation draws."""
    config = changed(
        TEACHER,
        method__name="logit_mse",
        method__hard_weight=0.0,
        teacher__path=str(digits_teacher),
        data__augment__crop_padding=2,
        data__augment__color_jitter=0.5,
        data__augment__mixup=1.0,
        data__augment__flip=True,
        optimizer__learning_rate=1e-12,
    )
    parts = prepare(configs.resolve(config))
    saved = models.load(digits_teacher, key="teacher.path")
    assert parts.recipe.spec.mean == saved.spec.mean
    compiled = step.compile_steps(parts.recipe, parts.mesh)
    order = parts.order
    feed = data.training_feed(parts.feed.examples, order, 64, resident=True, workers=0).at(0)
    copied = dataclasses.replace(parts.initial, params=jax.device_get(dict(saved.params)))
    now = placed_state(copied, parallel.replicated(parts.mesh))
    for _ in range(3):
        placed = step.put_batches([next(feed)], parts.mesh)
        now = compiled(now, parts.frozen, parts.resident, placed)
        assert float(now.sums["soft_loss"]) < 1e-9
    assert float(now.sums["gradient_norm"]) < 1e-3


def test_bfloat16_computes_low_and_keeps_float32(digits_teacher):
    config = changed(TEACHER, training__compute_dtype="bfloat16", training__steps=30)
    _, now, _ = trained(config, 30)
    assert all(value.dtype == jnp.float32 for value in now.params.values())
    _, reference, _ = trained(changed(config, training__compute_dtype="float32"), 30)
    low, high = (float(s.sums["loss"] / s.sums["steps"]) for s in (now, reference))
    assert low == pytest.approx(high, rel=0.1)
    assert any(
        np.any(np.asarray(now.params[k]) != np.asarray(reference.params[k])) for k in now.params
    )


def test_the_average_follows_its_formula(digits_teacher):
    config = changed(TEACHER, training__ema_decay=0.8, training__steps=3)
    _, three, _ = trained(config, 3)
    path = [trained(config, n)[1].params for n in (1, 2, 3)]
    parts, _, _ = trained(config, 0)
    for name, value in parts.initial.params.items():
        expected = np.asarray(value, np.float64)
        for params in path:
            expected = 0.8 * expected + 0.2 * np.asarray(params[name], np.float64)
        np.testing.assert_allclose(three.average["params"][name], expected, atol=1e-6)
    assert three.evaluated[0] is three.average["params"]


def test_an_average_with_a_warm_up_catches_up(digits_teacher):
    config = changed(
        TEACHER, training__ema_decay=0.9999, training__ema_warmup=True, training__steps=3
    )
    _, three, _ = trained(config, 3)
    path = [trained(config, n)[1].params for n in (1, 2, 3)]
    parts, _, _ = trained(config, 0)
    for name, value in parts.initial.params.items():
        expected = np.asarray(value, np.float64)
        for done, params in enumerate(path):
            decay = (1 + done) / (10 + done)
            expected = decay * expected + (1 - decay) * np.asarray(params[name], np.float64)
        np.testing.assert_allclose(three.average["params"][name], expected, atol=1e-6)


def test_the_first_bad_step_is_remembered(digits_teacher):
    config = changed(
        TEACHER, optimizer__name="sgd", optimizer__learning_rate=1e25, training__steps=6
    )
    _, now, _ = trained(config, 6)
    assert 0 < int(now.bad_step) < 5
    _, good, _ = trained(changed(TEACHER, training__steps=6), 6)
    assert int(good.bad_step) == -1


def test_runs_of_other_seeds_share_one_program(digits_teacher):
    """So a table's seeds compile once, from the compilation cache, in one process or in many."""
    config = changed(STUDENT, teacher__path=str(digits_teacher), training__steps=3)
    texts = []
    for seed in (0, 1):
        parts = prepare(configs.resolve(changed(config, seed=seed)))
        compiled = step.compile_steps(parts.recipe, parts.mesh)
        now = placed_state(parts.initial, parallel.replicated(parts.mesh))
        batch = step.put_batches([{"id": parts.order.ids(0, 64)}], parts.mesh)
        texts.append(compiled.lower(now, parts.frozen, parts.resident, batch).as_text())
    assert texts[0] == texts[1]
