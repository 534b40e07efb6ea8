"""GPTQ against an independent float64 reference, and against the nearest codes."""

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.quantization import gptq
from distill_jax.quantization.grids import FP8, GRIDS, INT8, Q4_0, Q8_0

INT4 = GRIDS["int4-g32"]


def reference(kernel, moment, group, bound, lowest, highest):
    """Optimal brain surgery, one input at a time, with the inverse of what is left (equation 2).

    No Cholesky factor and no blocks: the inverse of the remaining inputs is computed anew.
    """
    w = np.array(kernel, np.float64)
    h = np.array(moment, np.float64)
    h += 0.01 * np.mean(np.diag(h)) * np.eye(len(h))
    codes, scales = np.zeros(w.shape), []
    for i in range(len(w)):
        if i % group == 0:
            scales.append(np.abs(w[i : i + group]).max(axis=0) / bound)
        codes[i] = np.clip(np.rint(w[i] / scales[-1]), lowest, highest)
        inverse = np.linalg.inv(h[i:, i:])
        error = w[i] - codes[i] * scales[-1]
        w[i:] -= np.outer(inverse[:, 0] / inverse[0, 0], error)
    return codes, np.array(scales)


def inputs_of(seed, count, inputs):
    """Correlated inputs of unequal sizes, as those of a network."""
    draws = np.random.default_rng(seed)
    mixing = draws.normal(size=(inputs, inputs)) * np.exp(draws.normal(size=inputs))
    return (draws.normal(size=(count, inputs)) @ mixing / inputs**0.5).astype(np.float32)


def changed_outputs(x, kernel, decoded):
    return np.linalg.norm(np.float64(x) @ (np.float64(kernel) - np.float64(decoded)))


@pytest.mark.parametrize(
    ("grid", "inputs"),
    [(INT4, 64), (INT4, 192), (INT8, 48)],
    ids=["one block", "two blocks", "one scale a channel"],
)
def test_codes_and_scales_are_those_of_the_reference(grid, inputs):
    x = inputs_of(0, 400, inputs)
    kernel = np.random.default_rng(1).normal(size=(inputs, 24)).astype(np.float32)
    moment = x.T.astype(np.float64) @ x
    codes, scales = gptq.quantize(jnp.asarray(kernel), gptq.inverse_factor(moment), grid)
    expected = reference(
        kernel, moment, grid.group or inputs, grid.bound, grid.lowest, grid.highest
    )
    assert codes.dtype == grid.code_dtype and scales.shape == expected[1].shape
    np.testing.assert_allclose(scales, expected[1], rtol=2e-4)
    differ = np.asarray(codes, np.float64) != expected[0]
    # A value within float32's rounding of a half may go either way, and moves those after it.
    assert differ.mean() < 0.005


@pytest.mark.parametrize("grid", [INT4, INT8, FP8, Q4_0, Q8_0], ids=lambda grid: grid.name)
def test_outputs_change_less_than_with_the_nearest_codes(grid):
    x = inputs_of(2, 300, 96)
    kernel = jnp.asarray(np.random.default_rng(3).normal(size=(96, 40)), jnp.float32)
    factor = gptq.inverse_factor(x.T @ x)
    found = gptq.quantize(kernel, factor, grid)
    nearest = grid.encode(kernel)
    ours, theirs = (
        changed_outputs(x, kernel, grid.decode(*both, jnp.float32)) for both in (found, nearest)
    )
    assert ours < 0.8 * theirs
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in nearest]


def test_without_correlations_the_codes_are_the_nearest():
    kernel = jnp.asarray(np.random.default_rng(4).normal(size=(64, 8)), jnp.float32)
    codes, scales = gptq.quantize(kernel, gptq.inverse_factor(np.diag(np.arange(1.0, 65))), INT4)
    np.testing.assert_array_equal(codes, INT4.encode(kernel)[0])
    np.testing.assert_array_equal(scales, INT4.encode(kernel)[1])


def test_an_input_that_is_always_zero_gets_its_nearest_code():
    x = inputs_of(5, 200, 64)
    x[:, 7] = 0
    kernel = jnp.asarray(np.random.default_rng(6).normal(size=(64, 8)), jnp.float32)
    codes, scales = gptq.quantize(kernel, gptq.inverse_factor(x.T @ x), INT4)
    assert np.isfinite(np.asarray(scales)).all()
    np.testing.assert_array_equal(codes[7], INT4.nearest(kernel[7:8], scales[:1])[0])
