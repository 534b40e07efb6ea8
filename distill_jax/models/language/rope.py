"""Rotary position embeddings (Su et al., 2021, RoFormer): queries and keys rotated by position."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from distill_jax.models.language.config import RopeScaling


class Rope(NamedTuple):
    """The rotation of every token: cosine and sine of its angles, float32 [B, T, H / 2] each."""

    cos: Array
    sin: Array


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Array:
    """The angular frequencies of the pairs of a head (section 3.2.2).

    Args:
      head_dim: H, the size of one head, even.
      theta: the base of the wavelengths.
      scaling: stretches the wavelengths, see `RopeScaling`; None leaves them.

    Returns:
      float32 [H / 2], in radians a token.
    """
    pairs = jnp.arange(0, head_dim, 2, dtype=jnp.float32)
    plain = 1.0 / jnp.float32(theta) ** (pairs / head_dim)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    periods = scaling.original_max_positions * plain / (2 * math.pi)
    kept = jnp.clip((periods - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * plain / scaling.factor + kept * plain


def make_rope(positions: Array, frequency: Array) -> Rope:
    """The rotation at every position: int [B, T] and float32 [H / 2] -> [B, T, H / 2]."""
    angles = positions.astype(jnp.float32)[..., None] * frequency[None, None]
    return Rope(jnp.cos(angles), jnp.sin(angles))


def apply_rope(x: Array, rope: Rope) -> Array:
    """Rotates the pairs (i, i + H / 2) of every head, the pairing of transformers' checkpoints.

    Args:
      x: queries or keys, [B, T, N, H].
      rope: of the same tokens.

    Returns:
      As x; computed in float32.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = rope.cos[:, :, None], rope.sin[:, :, None]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
