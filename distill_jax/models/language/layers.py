"""The parts of a decoder. Parameters may be stacks: `lead` are axes before those of one layer."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distill_jax.models.initializers import initial
from distill_jax.models.language.config import DecoderConfig, RopeScaling

# GPT-2's and Llama's `initializer_range`.
INITIAL = initial("normal", 0.02)

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def _along_last(vector: Array, x: Array) -> Array:
    """A vector [D] with the number of axes of x [..., D]."""
    return jnp.expand_dims(vector, range(x.ndim - vector.ndim))


class Linear(nnx.Module):
    """x @ kernel + bias, in the dtype of x.

    Biases start at 0. Two more parts are there only once they are put in:
    `kernel_scale`, float32 [*lead, outputs], which makes the kernel int8 (see `int8`), and
    `low_rank`, whose answer to x is added (see `lora`).

    Args:
      inputs: width of x.
      outputs: width of the result.
      lead: see the docstring of this module.
      bias: whether there is one.
      param_dtype: of the parameters.
      rngs: of the initial values.
      start: (key, shape, dtype) -> initial weights; N(0, 0.02^2) by default.
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
        start: Callable[..., Array] = INITIAL,
    ):
        self.kernel = nnx.Param(start(rngs.params(), (*lead, inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros((*lead, outputs), param_dtype)) if bias else None
        self.kernel_scale = None
        self.low_rank = None

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        if self.kernel_scale is None:
            y = x @ kernel
        else:
            # The integers are exact in bfloat16 too; their sums are rounded once, after the scale.
            sums = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
            y = (sums * _along_last(self.kernel_scale[...], sums)).astype(x.dtype)
        if self.low_rank is not None:
            y = y + self.low_rank(x)
        return y if self.bias is None else y + _along_last(self.bias[...].astype(x.dtype), y)


class Norm(nnx.Module):
    """The normalisation of a config over the last axis, in float32 whatever goes through.

    Args:
      config: its fields norm, norm_eps and norm_offset are read.
      features: width of the last axis.
      lead: see the docstring of this module.
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
    """Two matrices with an activation between, or three where it is gated (Shazeer, 2020)."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
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
        self.gate = linear(config.dim, config.mlp_dim) if config.gated else None
        self.up = linear(config.dim, config.mlp_dim)
        self.down = linear(config.mlp_dim, config.dim)

    def __call__(self, x: Array) -> Array:
        activation = ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(activation(self.up(x)))
        return self.down(activation(self.gate(x)) * self.up(x))


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Array:
    """The angular frequencies of rotary embeddings (Su et al., 2021, section 3.2.2).

    Args:
      head_dim: of one head, even.
      theta: the base of the wavelengths.
      scaling: how they are stretched, see `RopeScaling`.

    Returns:
      float32 [head_dim / 2], in radians a token.
    """
    pairs = jnp.arange(0, head_dim, 2, dtype=jnp.float32)
    plain = 1.0 / jnp.float32(theta) ** (pairs / head_dim)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * plain / scaling.factor + kept * plain


def rotation(positions: Array, frequency: Array) -> tuple[Array, Array]:
    """Cosine and sine of every position and pair: int [B, T], float32 [H] -> float32 [B, T, H]."""
    angles = positions.astype(jnp.float32)[..., None] * frequency[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
    """Rotates pairs (i, i + H) of every head, as transformers' checkpoints have them.

    Args:
      x: [B, T, N, 2 * H].
      cosine: float32 [B, T, H].
      sine: likewise.

    Returns:
      As x; computed in float32.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
