"""Batch normalisation with residual and ReLU against float64; skipped without a compiler."""

import jax
import jax.numpy as jnp
import native_kernels
import numpy as np
import pytest

from distill_jax import kernels
from distill_jax.kernels import batch_norm

pytestmark = native_kernels.needed

EPSILON = 1e-5
#: The last one has a mean far above its deviation, and rows in blocks of float32 sums.
SHAPES = [((5, 7, 3), 0.0), ((4, 6, 6, 20), 1.0), ((1, 2, 6, 17), 0.0), ((64, 40, 20, 16), 30.0)]


def reference(x, scale, bias, residual, g, relu):
    """Value, mean, variance, and the gradients of x, scale, bias and residual, in float64."""
    rows = x.reshape(-1, x.shape[-1])
    mean, var = rows.mean(0), rows.var(0)
    inverse = 1 / np.sqrt(var + EPSILON)
    normal = (rows - mean) * inverse
    y = normal * scale + bias + (0 if residual is None else residual.reshape(rows.shape))
    g = g.reshape(rows.shape) * ((y > 0) if relu else 1)
    to_x = scale * inverse * (g - g.mean(0) - normal * (g * normal).mean(0))
    y = np.maximum(y, 0) if relu else y
    shaped = [a.reshape(x.shape) for a in (y, to_x, g)]
    return shaped[0], mean, var, shaped[1], (g * normal).sum(0), g.sum(0), shaped[2]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("shape", "mean"), SHAPES, ids=str)
def test_values_and_gradients(shape, mean, with_residual, relu):
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=shape) + mean, rng.normal(size=shape)
    residual = rng.normal(size=shape) if with_residual else None
    scale, bias = rng.normal(size=shape[-1:]) + 1, rng.normal(size=shape[-1:])
    single = [None if a is None else np.float32(a) for a in (x, scale, bias, residual, g)]
    wanted = reference(*(None if a is None else np.float64(a) for a in single), relu)

    def apply(x, scale, bias, residual):
        return batch_norm.normalize(x, scale, bias, residual, epsilon=EPSILON, relu=relu)

    @jax.jit
    def program(*arrays):
        value, pullback = jax.vjp(apply, *arrays[:-1])
        nothing = jnp.zeros(shape[-1:], jnp.float32)
        return value, pullback(batch_norm.Normalized(arrays[-1], nothing, nothing))

    with kernels.selected("onednn"):
        value, gradients = program(*single)
    got = [*value, *gradients]
    for found, expected in zip(got, wanted, strict=True):
        if found is not None:
            largest = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * largest + 1e-7)


def test_not_a_number_is_not_hidden_by_the_relu():
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = np.nan
    ones = np.ones(4, np.float32)
    with kernels.selected("onednn"):
        y = batch_norm.normalize(x, ones, ones, epsilon=EPSILON, relu=True).map
    assert np.isnan(y).any(axis=0).tolist() == [False, False, True, False]
