"""oneDNN's convolutions and their gradients against float64 sums; skipped without a compiler."""

import itertools

import jax
import jax.numpy as jnp
import native_kernels
import numpy as np
import pytest

from distill_jax import kernels
from distill_jax.kernels import convolution

pytestmark = native_kernels.needed

#: batch, side, channels in, channels out, kernel side, stride, groups
SHAPES = [
    (5, 9, 3, 16, 3, 1, 1),
    (33, 8, 16, 16, 3, 1, 1),  # two images a part, and a last one with one
    (4, 8, 16, 32, 3, 2, 1),
    (4, 9, 16, 32, 1, 2, 1),
    (2, 13, 3, 8, 7, 2, 1),
    (3, 7, 24, 24, 3, 2, 24),  # depthwise
    (3, 6, 12, 24, 1, 1, 3),
    (1, 1, 5, 7, 3, 1, 1),
]
#: of the largest value
TOLERANCE = {jnp.float32: 3e-6, jnp.bfloat16: 1e-2}


def reference(x, w, g, stride, groups):
    """The convolution of float64 arrays with symmetric padding, and its gradients for g."""
    size = w.shape[0]
    margin = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (margin,) * 2, (margin,) * 2, (0, 0)))
    side = (x.shape[1] + 2 * margin - size) // stride + 1
    y = np.zeros((len(x), side, side, w.shape[3]))
    to_padded, to_w = np.zeros_like(padded), np.zeros_like(w)
    own, outputs = w.shape[2], w.shape[3] // groups
    for i, j, group in itertools.product(range(size), range(size), range(groups)):
        rows = slice(i, i + (side - 1) * stride + 1, stride)
        columns = slice(j, j + (side - 1) * stride + 1, stride)
        ins = slice(group * own, (group + 1) * own)
        outs = slice(group * outputs, (group + 1) * outputs)
        y[..., outs] += padded[:, rows, columns, ins] @ w[i, j, :, outs]
        if g is not None:
            to_padded[:, rows, columns, ins] += g[..., outs] @ w[i, j, :, outs].T
            to_w[i, j, :, outs] += np.einsum(
                "bhwi,bhwo->io", padded[:, rows, columns, ins], g[..., outs]
            )
    inner = slice(margin, margin + x.shape[1])
    return y, to_padded[:, inner, inner], to_w


def draw(shape, seed=0):
    """x, the kernel and a gradient of the result, in float64 but of values that bfloat16 has."""
    batch, side, inputs, outputs, size, stride, groups = shape
    rng = np.random.default_rng(seed)

    def normal(*dimensions):
        return np.float64(jnp.asarray(rng.normal(size=dimensions), jnp.bfloat16))

    x, w = normal(batch, side, side, inputs), normal(size, size, inputs // groups, outputs)
    y = reference(x, w, None, stride, groups)[0]
    return x, w, normal(*y.shape)


def padding(size):
    return (((size - 1) // 2,) * 2,) * 2


def assert_close(got, wanted, dtype):
    got, wanted = np.float64(got), np.float64(wanted)
    assert np.abs(got - wanted).max() <= TOLERANCE[dtype] * np.abs(wanted).max()


def convolved(shape, x, w, g, dtype):
    """Value and gradients by `convolve`."""
    *_, size, stride, groups = shape

    def apply(x, w):
        return convolution.convolve(
            x,
            w,
            (stride, stride),
            padding(size),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    with kernels.selected("onednn"):
        program = jax.jit(lambda x, w, g: (apply(x, w), *jax.vjp(apply, x, w)[1](g)))
        arrays = [jnp.asarray(a, dtype) for a in (x, w, g)]
        assert "distill_convolution" in program.lower(*arrays).as_text()
        return program(*arrays)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype):
    x, w, g = draw(shape)
    wanted = reference(x, w, g, *shape[-2:])
    for got, reference_value in zip(convolved(shape, x, w, g, dtype), wanted, strict=True):
        assert got.dtype == dtype
        assert_close(got, reference_value, dtype)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_a_frozen_convolution_adds_bias_and_residual_and_applies_relu(dtype, with_residual, relu):
    shape = (5, 8, 6, 10, 3, 2, 1)
    x, w, residual = draw(shape)
    bias = np.linspace(-3, 3, 10)
    wanted = reference(x, w, None, 2, 1)[0] + bias + (residual if with_residual else 0)
    wanted = np.maximum(wanted, 0) if relu else wanted

    def apply(x, w, bias, residual):
        return convolution.convolve_frozen(
            x, w, bias, stride=2, padding=padding(3), residual=residual, relu=relu
        )

    arrays = (
        jnp.asarray(x, dtype),
        jnp.float32(w),
        jnp.float32(bias),
        jnp.asarray(residual, dtype) if with_residual else None,
    )
    with kernels.selected("onednn"):
        native = jax.jit(apply)(*arrays)
        gradient = jax.jit(jax.grad(lambda w: apply(arrays[0], w, *arrays[2:]).sum()))(arrays[1])
    with kernels.selected("xla"):
        xla = jax.jit(apply)(*arrays)
        xla_gradient = jax.jit(jax.grad(lambda w: apply(arrays[0], w, *arrays[2:]).sum()))(
            arrays[1]
        )
    assert native.dtype == dtype
    assert_close(native, wanted, dtype)
    assert_close(xla, wanted, dtype)
    assert_close(gradient, xla_gradient, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_not_a_number_is_not_hidden_by_the_relu(dtype):
    x, w = jnp.ones((3, 4, 4, 16), dtype), jnp.ones((1, 1, 16, 16)).at[0, 0, 0, 5].set(jnp.nan)
    with kernels.selected("onednn"):
        y = convolution.convolve_frozen(
            x, w, jnp.zeros(16), stride=1, padding=padding(1), relu=True
        )
    assert np.isnan(np.float32(y)).any(axis=(0, 1, 2)).tolist() == [i == 5 for i in range(16)]


def test_without_a_form_the_convolution_is_xlas():
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    with kernels.selected("onednn"):
        for options in ({"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2)}):
            program = jax.jit(
                lambda x, w, options=options: convolution.convolve(
                    x,
                    w,
                    (1, 1),
                    padding(3),
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    **options,
                )
            )
            assert "distill_convolution" not in program.lower(x, w).as_text()
        program = jax.jit(lambda x, w: convolution.convolve(x, w, (1, 1), padding(3)))
        channels_first = program.lower(jnp.ones((2, 3, 8, 8)), jnp.ones((4, 3, 3, 3))).as_text()
        assert "distill_convolution" not in channels_first
