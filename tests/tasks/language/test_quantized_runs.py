"""Runs on text whose student computes with quantized matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_texts
from small_runs import changed

from distill_jax import config as configs
from distill_jax.runs import experiment
from distill_jax.training import step
from distill_jax.training.state import copy_to

TEACHER = small_texts.TEACHER.replace(dim=32, mlp_dim=64, head_dim=16)
SIZES = {"name": "decoder", "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 32}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    small_texts.write_records(folder / "records.jsonl")
    small_texts.make_teacher(folder / "teacher", TEACHER)
    plain = small_texts.config(folder / "teacher", folder / "records.jsonl")
    return changed({**plain, "student": SIZES}, student__quantize="int4-g32")


def rounded(kernel: np.ndarray) -> np.ndarray:
    """int4 in groups of 32 inputs, in numpy alone."""
    layers, inputs, outputs = kernel.shape
    grouped = np.float32(kernel).reshape(layers, inputs // 32, 32, outputs)
    scale = np.abs(grouped).max(2, keepdims=True) / np.float32(7.5)
    codes = np.clip(np.rint(grouped / scale), -8, 7)
    return (codes * scale).reshape(kernel.shape).astype(np.float32)


def after_steps(config, count):
    parts = experiment.prepare(configs.resolve(config))
    compiled = step.compile_steps(parts.recipe, parts.mesh, parts.layout)
    now, batches = copy_to(parts.initial, parts.layout), parts.feed.at(0)
    for _ in range(count):
        now = compiled(now, parts.frozen, {}, step.put_batches([next(batches)], parts.mesh))
    return parts, now


def test_a_step_takes_the_gradient_at_the_quantized_values(config):
    sgd = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.0}
    straight = changed({**config, "optimizer": sgd}, training__ema_decay=0.0)
    straight["schedule"] = {"name": "constant"}
    parts, now = after_steps(straight, 1)
    before = jax.device_get(parts.initial.params)
    values = {n: rounded(v) if n.endswith("/kernel") else v for n, v in before.items()}
    assert sum(np.any(values[n] != before[n]) for n in before) == 7
    batch = step.put_batches([next(parts.feed.at(0))], parts.mesh)
    plain = experiment.prepare(configs.resolve(changed(straight, student__quantize="none")))
    one = jax.tree.map(lambda a: a[0], batch)
    inputs = plain.recipe.inputs(plain.initial, plain.frozen, {}, one, None)
    gradient = jax.grad(
        lambda params: plain.recipe.loss(
            plain.recipe.moment(jnp.int32(0)),
            plain.frozen,
            {"student": params, "adapters": {}},
            None,
            inputs,
            jax.random.key(0),
        )[0]
    )(jax.tree.map(jnp.asarray, values))
    for name, value in before.items():
        expected = np.float64(value) - 0.5 * np.float64(gradient[name])
        np.testing.assert_allclose(now.params[name], expected, atol=2e-6, err_msg=name)
        assert np.any(np.asarray(now.params[name]) != value)
