"""The layers of a decoder that hold parameters: linear, norm and MLP.

The parameters of several layers may be stacked: `lead` is the shape of the axes that come before
those of one layer. Within the scan over the layers these axes are gone.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distill_jax.models.initializers import initial
from distill_jax.models.language.config import DecoderConfig
from distill_jax.quantization import grids, packing

# GPT-2's and Llama's `initializer_range`.
INITIAL = initial("normal", 0.02)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def _along_last(vector: Array, x: Array) -> Array:
    """A vector [D] with the number of axes of x [..., D]."""
    return jnp.expand_dims(vector, range(x.ndim - vector.ndim))


class Linear(nnx.Module):
    """x @ kernel + bias, in the dtype of x; biases start at 0.

    Three attributes are None until another module sets them: `kernel_scale`, the scales of a
    quantized kernel, and `activations`, how x is quantized for it (see `quantized`); and
    `low_rank`, an adapter whose output is added (see `lora`).

    Args:
      inputs: width of x.
      outputs: width of the result.
      lead: shape of the stacked axes.
      bias: whether there is a bias.
      param_dtype: of the parameters.
      rngs: draws the initial values.
      init: (key, shape, dtype) -> initial kernel; N(0, 0.02^2) by default.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        lead: tuple[int, ...],
        bias: bool,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
        init: Callable[..., Array] = INITIAL,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (*lead, inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros((*lead, outputs), param_dtype)) if bias else None
        self.kernel_scale: nnx.Param[Array] | None = None
        self.activations: Literal["int8", "fp8"] | None = None
        self.low_rank: Callable[[Array], Array] | None = None

    def __call__(self, x: Array) -> Array:
        scale = None if self.kernel_scale is None else self.kernel_scale[...]
        kernel, scale = decoded(self.kernel[...], scale, x.dtype)
        if scale is None and self.activations is None:
            y = x @ kernel
        else:
            # Codes are exact in bfloat16 too; their sums are rounded once, after the scales.
            codes, of_tokens = quantized_tokens(x, self.activations)
            sums = jnp.matmul(codes, kernel, preferred_element_type=jnp.float32)
            sums = sums if scale is None else sums * _along_last(scale, sums)
            y = (sums if of_tokens is None else sums * of_tokens).astype(x.dtype)
        if self.low_rank is not None:
            y = y + self.low_rank(x)
        return y if self.bias is None else y + _along_last(self.bias[...].astype(x.dtype), y)


def decoded(kernel: Array, scale: Array | None, dtype: DTypeLike) -> tuple[Array, Array | None]:
    """A kernel, quantized or not (see `quantized`), for a product with activations of a dtype.

    Returns:
      (kernel, scale): in `dtype`, and float32 [..., outputs] that the sums of the product are to
      be multiplied with, or None.
    """
    if scale is None:
        return kernel.astype(dtype), None
    if kernel.dtype == jnp.uint8:
        kernel = packing.unpack_nibbles(kernel)
    if scale.ndim == kernel.ndim:
        return grids.decode(kernel, scale, dtype), None
    return kernel.astype(dtype), scale


def quantized_tokens(
    x: Array, activations: Literal["int8", "fp8"] | None
) -> tuple[Array, Array | None]:
    """Activations for a product, as codes in their own dtype: (codes, scale of each token).

    The gradient of codes times scales is that of x as it is (a straight-through estimator).
    """
    return (x, None) if activations is None else _token_codes(x, activations)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _token_codes(x: Array, kind: Literal["int8", "fp8"]) -> tuple[Array, Array]:
    codes, scales = grids.encode_tokens(x, kind)
    return codes.astype(x.dtype), scales


def _token_codes_forward(
    x: Array, kind: Literal["int8", "fp8"]
) -> tuple[tuple[Array, Array], Array]:
    found = _token_codes(x, kind)
    return found, found[1]


def _token_codes_backward(
    kind: Literal["int8", "fp8"], scales: Array, gradients: tuple[Array, Array]
) -> tuple[Array]:
    del kind  # the scales are constants
    return ((gradients[0] / scales).astype(gradients[0].dtype),)


_token_codes.defvjp(_token_codes_forward, _token_codes_backward)


class Norm(nnx.Module):
    """RMS or layer normalisation over the last axis, computed in float32 for any dtype of x.

    Args:
      config: its fields norm, norm_eps and norm_offset are read.
      features: width of the last axis.
      lead: shape of the stacked axes.
      param_dtype: of the parameters.
    """

    def __init__(
        self,
        config: DecoderConfig,
        features: int,
        *,
        lead: tuple[int, ...],
        param_dtype: DTypeLike,
    ):
        start = jnp.zeros if config.norm_offset else jnp.ones
        self.scale = nnx.Param(start((*lead, features), param_dtype))
        layer = config.norm == "layer"
        self.bias = nnx.Param(jnp.zeros((*lead, features), param_dtype)) if layer else None
        self.epsilon = config.norm_eps
        self.offset = float(config.norm_offset)

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        if self.bias is not None:
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        y = wide * jax.lax.rsqrt(square + self.epsilon)
        y = y * _along_last(self.scale[...].astype(jnp.float32) + self.offset, y)
        if self.bias is not None:
            y = y + _along_last(self.bias[...].astype(jnp.float32), y)
        return y.astype(x.dtype)


class MLP(nnx.Module):
    """Two matrices with an activation in between, or three if gated (Shazeer, 2020).

    Args:
      config: its fields dim, activation, gated and mlp_bias are read.
      width: between the matrices.
      lead: shape of the stacked axes.
      param_dtype: of the parameters.
      rngs: draws the initial values.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        width: int,
        lead: tuple[int, ...],
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(
                inputs,
                outputs,
                lead=lead,
                bias=config.mlp_bias,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.activation = config.activation
        self.gate = linear(config.dim, width) if config.gated else None
        self.up = linear(config.dim, width)
        self.down = linear(width, config.dim)

    def __call__(self, x: Array) -> Array:
        activation = ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(activation(self.up(x)))
        return self.down(activation(self.gate(x)) * self.up(x))
