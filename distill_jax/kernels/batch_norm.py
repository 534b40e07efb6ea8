"""Batch normalisation in training, a residual and ReLU: one native call on a CPU."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from distill_jax.kernels import native


class Normalized(NamedTuple):
    """A map, normalised by its own statistics, and these: biased, float32 [C], no gradient."""

    map: Array
    mean: Array
    var: Array


def has_form(x: Array) -> bool:
    """Whether a native call exists for this map."""
    return native.enabled() and x.dtype == jnp.float32 and x.size > 0


def normalize(
    x: Array,
    scale: Array,
    bias: Array,
    residual: Array | None = None,
    *,
    epsilon: float,
    relu: bool,
) -> Normalized:
    """relu((x - mean) / sqrt(var + epsilon) * scale + bias + residual), over all axes but the last.

    Ioffe and Szegedy (2015), algorithm 1.

    Args:
      x: float32 [..., C], at least one value a channel.
      scale, bias: float32 [C].
      residual: like x, added before the ReLU; None adds nothing.
      epsilon: added to the variance.
      relu: whether the ReLU is applied.
    """
    y, mean, var = _normalize(x, scale, bias, residual, epsilon, relu)
    return Normalized(y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var))


def _reference(
    x: Array, scale: Array, bias: Array, residual: Array | None, *, epsilon: float, relu: bool
) -> tuple[Array, Array, Array]:
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.mean(jnp.square(x - mean), axes)
    y = (x - mean) * (scale * jax.lax.rsqrt(var + epsilon)) + bias
    y = y if residual is None else y + residual
    return jax.nn.relu(y) if relu else y, mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _normalize(
    x: Array, scale: Array, bias: Array, residual: Array | None, epsilon: float, relu: bool
) -> tuple[Array, Array, Array]:
    def call(x: Array, scale: Array, bias: Array, residual: Array | None):
        channel = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
        added = jnp.zeros((0,), jnp.float32) if residual is None else residual
        return jax.ffi.ffi_call(
            "distill_batch_norm", (jax.ShapeDtypeStruct(x.shape, x.dtype), channel, channel)
        )(x, scale, bias, added, epsilon=np.float32(epsilon), relu=relu)

    xla = functools.partial(_reference, epsilon=epsilon, relu=relu)
    return tuple(
        jax.lax.platform_dependent(
            x, scale, bias, residual, cpu=lambda *a: tuple(call(*a)), default=xla
        )
    )


def _forward(x, scale, bias, residual, epsilon, relu):
    y, mean, var = _normalize(x, scale, bias, residual, epsilon, relu)
    return (y, mean, var), (x, scale, bias, residual, y, mean, var)


def _backward(epsilon, relu, saved, cotangents):
    g = cotangents[0]  # those of the statistics are zero, see `normalize`

    def call(g, x, scale, bias, residual, y, mean, var):
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        channel = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
        nothing = jnp.zeros((0,), jnp.float32)
        to_added = jax.ShapeDtypeStruct(nothing.shape if residual is None else x.shape, x.dtype)
        results = (like, channel, channel, to_added)
        to_x, to_scale, to_bias, to_residual = jax.ffi.ffi_call(
            "distill_batch_norm_gradient", results
        )(
            g,
            x,
            nothing if residual is None else y,
            scale,
            bias,
            mean,
            var,
            epsilon=np.float32(epsilon),
            relu=relu,
        )
        return to_x, to_scale, to_bias, None if residual is None else to_residual

    def xla(g, x, scale, bias, residual, y, mean, var):
        del y, mean, var
        _, pullback = jax.vjp(
            lambda *a: _reference(*a, epsilon=epsilon, relu=relu)[0], x, scale, bias, residual
        )
        return pullback(g)

    return jax.lax.platform_dependent(g, *saved, cpu=call, default=xla)


_normalize.defvjp(_forward, _backward)
