"""Optimizers and learning rates against formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import config as configs
from distill_jax.optim import optimizers

SHAPES = {"dense/kernel": (4, 3), "dense/bias": (3,), "norm/scale": (3,)}


def section(of: str, **values):
    return configs.resolve({of: values})[of]


def draws(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape) for name, shape in SHAPES.items()}


def run(config, gradients, params, rate=0.1):
    optimizer = optimizers.create(config, lambda step: rate)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_pytorch(nesterov):
    """buffer = m·buffer + (g + wd·p); p -= rate·(buffer, or g + wd·p + m·buffer with Nesterov)."""
    config = section("optimizer", name="sgd", momentum=0.9, nesterov=nesterov, weight_decay=0.05)
    gradients = [draws(seed) for seed in (1, 2, 3)]
    got = run(config, gradients, jax.tree.map(jnp.float32, draws(0)))
    for name, p in draws(0).items():
        buffer = np.zeros_like(p)
        for gradient in gradients:
            g = gradient[name] + 0.05 * p
            buffer = 0.9 * buffer + g
            p = p - 0.1 * (g + 0.9 * buffer if nesterov else buffer)
        np.testing.assert_allclose(got[name], p, rtol=1e-5, atol=1e-6)


def test_adamw_decays_only_kernels_with_that_mask():
    config = section(
        "optimizer", name="adamw", weight_decay=0.5, decay_mask="kernels", b1=0.9, b2=0.99
    )
    zero = jax.tree.map(jnp.zeros_like, draws(0))
    start = jax.tree.map(jnp.float32, draws(0))
    got = run(config, [zero], start)
    np.testing.assert_allclose(got["dense/kernel"], start["dense/kernel"] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(got["dense/bias"], start["dense/bias"])
    np.testing.assert_array_equal(got["norm/scale"], start["norm/scale"])


def test_adamw_follows_its_formula():
    config = section("optimizer", name="adamw", weight_decay=0.1, b1=0.8, b2=0.9)
    gradients = [draws(seed) for seed in (1, 2, 3)]
    got = run(config, gradients, jax.tree.map(jnp.float32, draws(0)))
    for name, p in draws(0).items():
        m = v = np.zeros_like(p)
        for t, gradient in enumerate(gradients, start=1):
            m = 0.8 * m + 0.2 * gradient[name]
            v = 0.9 * v + 0.1 * gradient[name] ** 2
            hat = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
            p = p - 0.1 * (hat + 0.1 * p)
        np.testing.assert_allclose(got[name], p, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_global_norm():
    config = section("optimizer", name="sgd", momentum=0.0, clip_norm=1.0)
    gradient = jax.tree.map(lambda a: 100 * a, draws(1))
    start = jax.tree.map(jnp.float32, draws(0))
    moved = jax.tree.map(lambda a, b: a - b, run(config, [gradient], start), start)
    norm = np.sqrt(sum(np.sum(np.square(a)) for a in jax.tree.leaves(moved)))
    assert norm == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_every_optimizer_lowers_a_quadratic(name):
    config = section("optimizer", name=name, weight_decay=1e-4)
    target = draws(5)

    def loss(params):
        return sum(jnp.sum((params[k] - target[k]) ** 2) for k in target)

    optimizer = optimizers.create(config, lambda step: 0.02)
    params = jax.tree.map(jnp.float32, draws(0))
    first, state = loss(params), optimizer.init(params)
    for _ in range(60):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < 0.5 * first


def rates(steps, total=100, per_epoch=10.0, rate=0.4, **values):
    function = optimizers.learning_rate(section("schedule", **values), rate, total, per_epoch)
    return [float(function(step)) for step in steps]


def test_cosine_after_a_warm_up():
    got = rates([0, 10, 20, 60, 100], name="cosine", warmup_epochs=2.0, end_factor=0.1)
    assert got == pytest.approx([0.0, 0.2, 0.4, 0.4 * 0.55, 0.04], rel=1e-5)


def test_step_drops_after_its_epochs():
    got = rates([29, 30, 59, 60, 99], name="step", milestones=(3.0, 6.0), factor=0.1)
    assert got == pytest.approx([0.4, 0.04, 0.04, 0.004, 0.004], rel=1e-5)
    warm = rates([0, 5, 29, 30], name="step", milestones=(3.0,), factor=0.5, warmup_epochs=1.0)
    assert warm == pytest.approx([0.0, 0.2, 0.4, 0.2], rel=1e-5)


def test_linear_and_constant():
    assert rates([0, 50, 100], name="linear", end_factor=0.5) == pytest.approx([0.4, 0.3, 0.2])
    assert rates([0, 99], name="constant") == pytest.approx([0.4, 0.4])


def test_max_norm_scales_long_columns_alone():
    kernel = np.array([[3.0, 0.1], [4.0, 0.1]])
    params = {
        "a/kernel": jnp.asarray(kernel),
        "a/bias": jnp.full(2, 9.0),
        "c/kernel": jnp.ones((3, 3, 2, 2)),
    }
    got = optimizers.constrain_norms(params, 2.5)
    np.testing.assert_allclose(got["a/kernel"], [[1.5, 0.1], [2.0, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(got["a/bias"], params["a/bias"])
    np.testing.assert_array_equal(got["c/kernel"], params["c/kernel"])
