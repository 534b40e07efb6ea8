"""Convolutions of NHWC maps: oneDNN's on a CPU where it is in use, XLA's elsewhere."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from distill_jax.kernels import native

Pairs = tuple[tuple[int, int], tuple[int, int]]

_PARTS = 4  # of a batch; XLA on a CPU computes their kernel gradients at the same time
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FLOATS = (jnp.float32, jnp.bfloat16)


def convolve(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` of images, with faster kernels and gradients on a CPU.

    Args and result are those of `jax.lax.conv_general_dilated`, for x [B, H, W, C].
    """
    groups = options.get("feature_group_count", 1)
    parted = groups == 1 and kernel.shape[0] > 1 and x.shape[0] % _PARTS == 0
    if not isinstance(padding, str) and _two_dimensional(x, kernel, options):
        (top, bottom), (left, right) = padding
        pairs = ((top, bottom), (left, right))
        strides = (window_strides[0], window_strides[1])
        if native.enabled() and _has_form(x, kernel):
            return _convolve(x, kernel, strides, pairs, groups)
        if parted and x.dtype == jnp.float32:
            return _by_parts(x, kernel, strides, pairs)
    return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **options)


def convolve_frozen(
    x: Array,
    kernel: Array,
    bias: Array,
    *,
    stride: int,
    padding: Pairs,
    groups: int = 1,
    residual: Array | None = None,
    relu: bool = False,
) -> Array:
    """A convolution, a bias, for some layers a residual and ReLU; one pass where oneDNN is in use.

    Its gradients are those of XLA's form: it is for networks that are not trained.

    Args:
      x: [B, H, W, C], float32 or bfloat16; the dtype of the result.
      kernel: float32 [h, w, C / groups, O].
      bias: float32 [O].
      stride: of the rows and the columns.
      padding: ((top, bottom), (left, right)).
      groups: of channels, convolved separately.
      residual: [B, H', W', O], added before the ReLU.
      relu: whether a ReLU follows.

    Returns:
      [B, H', W', O].
    """

    strides = (stride, stride)

    def xla(x: Array, kernel: Array, bias: Array, residual: Array | None) -> Array:
        y = _lax(x, kernel.astype(x.dtype), strides, padding, groups)
        y = (y + bias).astype(x.dtype)
        y = y if residual is None else y + residual
        return jax.nn.relu(y) if relu else y

    if not (native.enabled() and _has_form(x, kernel)):
        return xla(x, kernel, bias, residual)

    def onednn(x: Array, kernel: Array, bias: Array, residual: Array | None) -> Array:
        return _forward(x, kernel, bias, residual, strides, padding, groups, relu)

    @jax.custom_vjp
    def either(*operands: Array | None) -> Array:
        return jax.lax.platform_dependent(*operands, cpu=onednn, default=xla)

    either.defvjp(
        lambda *operands: (either(*operands), operands),
        lambda operands, g: jax.vjp(xla, *operands)[1](g),
    )
    return either(x, kernel, bias, residual)


def _two_dimensional(x: Array, kernel: Array, options: dict[str, Any]) -> bool:
    """Whether a call is a plain convolution of images."""
    numbers = jax.lax.conv_dimension_numbers(
        x.shape, kernel.shape, options.get("dimension_numbers")
    )
    wanted = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, _LAYOUT) if x.ndim == 4 else None
    return (
        numbers == wanted
        and options.get("batch_group_count", 1) == 1
        and not options.get("preferred_element_type")
        and all(
            all(d == 1 for d in options.get(name) or (1,))
            for name in ("lhs_dilation", "rhs_dilation")
        )
    )


def _has_form(x: Array, kernel: Array) -> bool:
    return x.dtype in _FLOATS and kernel.dtype in _FLOATS and x.size > 0


def _lax(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs, groups: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _attributes(strides: Sequence[int], padding: Pairs, groups: int) -> dict[str, Any]:
    (top, bottom), (left, right) = padding
    return {
        "strides": np.array(strides, np.int64),
        "padding": np.array((top, left, bottom, right), np.int64),
        "groups": np.int64(groups),
    }


def _forward(
    x: Array,
    kernel: Array,
    bias: Array | None,
    residual: Array | None,
    strides: tuple[int, int],
    padding: Pairs,
    groups: int,
    relu: bool,
) -> Array:
    """The native call; see `convolve_frozen`."""
    result = jax.eval_shape(
        lambda x, kernel: _lax(x, kernel.astype(x.dtype), strides, padding, groups), x, kernel
    )
    call = jax.ffi.ffi_call("distill_convolution", jax.ShapeDtypeStruct(result.shape, x.dtype))
    return call(
        x,
        kernel,
        jnp.zeros((0,), jnp.float32) if bias is None else bias,
        jnp.zeros((0,), x.dtype) if residual is None else residual,
        relu=relu,
        **_attributes(strides, padding, groups),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(
    x: Array, kernel: Array, strides: tuple[int, int], padding: Pairs, groups: int
) -> Array:
    """A convolution whose values and gradients are oneDNN's on a CPU."""

    def onednn(x: Array, kernel: Array) -> Array:
        return _forward(x, kernel, None, None, strides, padding, groups, False)

    def xla(x: Array, kernel: Array) -> Array:
        return _lax(x, kernel, strides, padding, groups)

    return jax.lax.platform_dependent(x, kernel, cpu=onednn, default=xla)


def _convolve_forward(x, kernel, strides, padding, groups):
    return _convolve(x, kernel, strides, padding, groups), (x, kernel)


def _convolve_backward(strides, padding, groups, saved, g):
    def onednn(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        attributes = _attributes(strides, padding, groups)
        to_x = jax.ffi.ffi_call(
            "distill_convolution_to_input", jax.ShapeDtypeStruct(x.shape, x.dtype)
        )(g, kernel, **attributes)
        to_kernel = jax.ffi.ffi_call(
            "distill_convolution_to_kernel", jax.ShapeDtypeStruct(kernel.shape, jnp.float32)
        )(x, g, **attributes)
        return to_x, to_kernel.astype(kernel.dtype)

    def xla(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        _, pullback = jax.vjp(lambda x, k: _lax(x, k, strides, padding, groups), x, kernel)
        return pullback(g)

    return jax.lax.platform_dependent(*saved, g, cpu=onednn, default=xla)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _by_parts(x: Array, kernel: Array, strides: tuple[int, int], padding: Pairs) -> Array:
    """XLA's convolution, with a faster gradient for the kernel on a CPU.

    There XLA computes that gradient, a convolution whose window is the whole map, on one core. The
    gradients of four parts of a batch are independent and run on several. A part takes every
    fourth image, so that each device of a mesh keeps its own images.
    """

    def plain(x: Array, kernel: Array) -> Array:
        return _lax(x, kernel, strides, padding, 1)

    def whole(x: Array, kernel: Array, g: Array) -> Array:
        return jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](g)[0]

    def by_parts(x: Array, kernel: Array, g: Array) -> Array:
        x, g = (a.reshape(-1, _PARTS, *a.shape[1:]) for a in (x, g))
        return jnp.asarray(sum(whole(x[:, i], kernel, g[:, i]) for i in range(_PARTS)))

    def backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
        x, kernel = saved
        to_x = jax.vjp(lambda x: plain(x, kernel), x)[1](g)[0]
        to_kernel = jax.lax.platform_dependent(x, kernel, g, cpu=by_parts, default=whole)
        return to_x, to_kernel

    convolved = jax.custom_vjp(plain)
    convolved.defvjp(lambda x, kernel: (plain(x, kernel), (x, kernel)), backward)
    return convolved(x, kernel)
