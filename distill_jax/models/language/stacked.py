"""Layers' parameters on their way into a scan, in a form that XLA does not widen on a CPU.

XLA's CPU compiler computes with bfloat16 in float32. For rows that a loop takes from stacked
bfloat16 parameters it moves this conversion out of the loop: a second copy of all layers, twice as
large, in every step. Integers of the same bits are left alone, and so are rows of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def to_bits(stacked: Any) -> tuple[Any, Any]:
    """What a scan takes in place of parameters; `of_row` gives each row of it back."""
    return jax.tree.map(_bits, stacked), stacked


def of_row(row: tuple[Any, Any]) -> Any:
    """The parameters of a row of `to_bits`; their gradients are those of the parameters."""
    bits, values = row
    return jax.tree.map(_value, bits, values)


def _bits(array: Array) -> Array:
    if array.dtype != jnp.bfloat16:
        return array
    return jax.lax.bitcast_convert_type(jax.lax.stop_gradient(array), jnp.uint16)


def _value(bits: Array, value: Array) -> Array:
    return value if bits.dtype == value.dtype else _from_bits(bits, value)


@jax.custom_jvp
def _from_bits(bits: Array, value: Array) -> Array:
    """The value, computed from its bits: without a gradient the value itself is never read."""
    return jax.lax.bitcast_convert_type(bits, value.dtype)


@_from_bits.defjvp
def _from_bits_jvp(primals, tangents):
    return _from_bits(*primals), tangents[1]
