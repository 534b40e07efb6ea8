"""Codes and scales against independent references: float64 numpy, and the `gguf` package."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from distill_jax.quantization import grids
from distill_jax.quantization.grids import GRIDS, Grid

ABSMAX = [grid for grid in GRIDS.values() if grid.rule == "absmax"]
GGUF = [grid for grid in GRIDS.values() if grid.rule != "absmax"]


def kernels(dtype=np.float32) -> list[np.ndarray]:
    """Stacked random kernels of several magnitudes, with zeros, ties and equal extremes."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(2, 256, 48)) * np.exp(rng.normal(size=(2, 1, 48)) * 3)
    edges = np.zeros((1, 128, 64))
    edges[0, :, 0] = np.linspace(-1, 1, 128)
    edges[0, 5, 1], edges[0, 6, 1] = 0.5, -0.5
    edges[0, 6, 2], edges[0, 5, 2] = 0.5, -0.5
    edges[0, :, 3] = rng.integers(-15, 16, 128) / 2  # half-way between codes for absmax/7.5
    edges[0, :, 4] = rng.integers(-255, 256, 128) / 2
    edges[0, :, 5] = 1e-6 * rng.normal(size=128)
    edges[0, :, 6] = 1e-35
    edges[0, :, 7:] = rng.normal(size=(128, 57)) * 0.02
    return [plain.astype(dtype), edges.astype(dtype)]


def reference(grid: Grid, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """compressed-tensors' formulas, group by group, by division in float64 rounded to float32.

    A quotient of float32 numbers that is rounded from float64 to float32 is the correctly rounded
    one (Figueroa, 1995: 53 >= 2 * 24 + 2).
    """
    kernel = kernel.astype(np.float32)
    lead, (inputs, outputs) = kernel.shape[:-2], kernel.shape[-2:]
    group = grid.group or inputs
    codes = np.zeros(kernel.shape)
    scales = np.zeros((*lead, inputs // group, outputs), np.float32)
    for index in np.ndindex(*lead, inputs // group, outputs):
        *front, number, output = index
        at = (*front, slice(number * group, (number + 1) * group), output)
        weights = kernel[at].astype(np.float64)
        scale = np.float32(np.abs(weights).max() / grid.bound)
        scale = np.float32(2.0**-23) if scale < 1e-33 else scale
        ratio = np.float32(weights / np.float64(scale)).clip(grid.lowest, grid.highest)
        if grid.kind == "int":
            codes[at] = np.rint(ratio)
        else:
            codes[at] = ratio.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
        scales[index] = scale
    return codes, scales


@pytest.mark.parametrize("grid", ABSMAX, ids=lambda grid: grid.name)
def test_codes_and_scales_of_compressed_tensors(grid):
    for kernel in kernels():
        codes, scales = grid.encode(kernel)
        wanted_codes, wanted_scales = reference(grid, kernel)
        np.testing.assert_array_equal(scales, wanted_scales)
        np.testing.assert_array_equal(codes.astype(np.float64), wanted_codes)
        assert codes.dtype == grid.code_dtype and scales.dtype == np.float32


@pytest.mark.parametrize("grid", GGUF, ids=lambda grid: grid.name)
def test_codes_and_scales_of_gguf(grid):
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    kind = gguf.GGMLQuantizationType[grid.name.upper()]
    for kernel in kernels():
        codes, scales = grid.encode(kernel)
        rows = np.ascontiguousarray(np.swapaxes(kernel, -1, -2)).reshape(-1, kernel.shape[-2])
        blocks = gguf.quants.quantize(rows, kind).reshape(-1, 2 + 32 * grid.bits // 8)
        d = blocks[:, :2].copy().view(np.float16)[:, 0]
        packed = blocks[:, 2:]
        if grid.bits == 4:
            q = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.int8) - 8
        else:
            q = packed.copy().view(np.int8)
        ours = np.swapaxes(codes, -1, -2).reshape(-1, 32)
        own = np.swapaxes(scales, -1, -2).reshape(-1)
        # Groups below 2**-100 are zeros here; float16 makes their scale zero in both.
        tiny = np.abs(rows).reshape(-1, 32).max(1) < 2.0**-100
        np.testing.assert_array_equal(own.view(np.uint16)[~tiny], d.view(np.uint16)[~tiny])
        np.testing.assert_array_equal(ours[~tiny], q[~tiny])
        decoded = np.swapaxes(grid.decode(codes, scales, np.float32), -1, -2)
        theirs = gguf.quants.dequantize(blocks.reshape(len(rows), -1), kind)
        np.testing.assert_array_equal(decoded.reshape(theirs.shape), theirs)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16], ids=str)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_the_same_in_numpy_in_jax_and_under_jit(grid, dtype):
    for kernel in kernels(dtype):
        wanted = grid.encode(kernel)
        for run in (grid.encode, jax.jit(grid.encode)):
            for ours, theirs in zip(run(jnp.asarray(kernel)), wanted, strict=True):
                np.testing.assert_array_equal(
                    np.asarray(ours).astype(np.float32), theirs.astype(np.float32)
                )
        for target in (np.float32, ml_dtypes.bfloat16):
            np.testing.assert_array_equal(
                np.asarray(jax.jit(lambda *a, t=target: grid.decode(*a, t))(*wanted)),
                grid.decode(*wanted, target),
            )


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_a_decoded_weight_is_within_a_step_of_the_weight(grid):
    kernel = kernels()[0]
    decoded = grid.decode(*grid.encode(kernel), np.float32)
    group = grid.group or kernel.shape[-2]
    step = np.abs(kernel.reshape(2, -1, group, 48)).max(2, keepdims=True) / abs(grid.bound)
    if grid.kind == "float":
        step = step * 32  # neighbours of 448
    error = np.abs(decoded - kernel).reshape(2, -1, group, 48)
    assert (error <= step * 1.01).all()
    assert error.max() > 0


def test_activations_have_a_scale_for_each_token():
    x = np.random.default_rng(1).normal(size=(3, 5, 64)).astype(np.float32)
    x[0, 0] *= 100
    for kind, bound in (("int8", 127.5), ("fp8", 448.0)):
        codes, scales = jax.jit(lambda x, k=kind: grids.encode_tokens(x, k))(x)
        assert scales.shape == (3, 5, 1)
        np.testing.assert_array_equal(
            np.asarray(scales), np.abs(x).max(-1, keepdims=True) / np.float32(bound)
        )
        step = np.asarray(scales) * (1 if kind == "int8" else 32)
        assert (np.abs(np.asarray(codes) * np.asarray(scales) - x) <= step / 2 * 1.01).all()


def test_a_group_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="groups of 32 in 48 inputs"):
        grids.Q4_0.encode(np.ones((48, 8), np.float32))


def test_bits_per_weight():
    assert grids.Q4_0.bits_per_weight(64) == 4.5
    assert grids.Q8_0.bits_per_weight(64) == 8.5
    assert grids.INT4_G128.bits_per_weight(1024) == 4.25
    assert grids.INT8.bits_per_weight(64) == 8.5


def test_qwix_has_the_same_int4_but_for_the_largest_weights():
    qwix = pytest.importorskip("qwix", reason="needs the package qwix")
    kernel = np.random.default_rng(2).normal(size=(256, 64)).astype(np.float32)
    codes, scales = grids.INT4_G128.encode(kernel)
    theirs = qwix.quantize(
        jnp.asarray(kernel), jnp.int4, channelwise_axes=(1,), tiled_axes={0: 128}
    )
    np.testing.assert_allclose(scales, np.asarray(theirs.scale), rtol=1e-6)
    differ = codes != np.asarray(theirs.qvalue).astype(np.int8)
    ends = np.abs(kernel) / np.repeat(scales, 128, axis=0) > 7.4999
    assert not (differ & ~ends).any()
