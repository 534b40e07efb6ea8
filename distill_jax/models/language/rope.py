"""Rotary position embeddings (Su et al., 2021, RoFormer): queries and keys rotated by position."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from distill_jax.models.language.rope_scaling import RopeScaling


class Rope(NamedTuple):
    """The rotation of every token: cosine and sine of its angles, float32 [B, T, R / 2] each.

    R is how many numbers of a head are rotated, the first ones.
    """

    cos: Array
    sin: Array


def frequencies(dim: int, theta: float, scaling: RopeScaling | None) -> Array:
    """The angular frequencies of the pairs of a head (section 3.2.2).

    Args:
      dim: R, how many numbers of a head are rotated, even.
      theta: the base of the wavelengths.
      scaling: stretches the wavelengths, see `RopeScaling`; None leaves them. Of "longrope", the
        frequencies of short texts.

    Returns:
      float32 [R / 2], in radians a token.
    """
    pairs = jnp.arange(0, dim, 2, dtype=jnp.float32)
    plain = 1.0 / jnp.float32(theta) ** (pairs / dim)
    if scaling is None:
        return plain
    if scaling.kind == "longrope":
        return plain / jnp.asarray(scaling.short_factors, jnp.float32)
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "yarn":
        kept = _kept_by_yarn(dim, theta, scaling)
        return (1 - kept) * plain / scaling.factor + kept * plain
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    periods = scaling.original_max_positions * plain / (2 * math.pi)
    kept = jnp.clip((periods - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _kept_by_yarn(dim: int, theta: float, scaling: RopeScaling) -> Array:
    """The part of each pair's frequency that is not divided: 1 of fast pairs, 0 of slow ones."""

    def pair_of(turns: float) -> float:
        """The pair that turns so often within the original context."""
        context = scaling.original_max_positions / (turns * 2 * math.pi)
        return dim * math.log(context) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    return 1 - jnp.clip((jnp.arange(dim // 2, dtype=jnp.float32) - low) / width, 0.0, 1.0)


def make_rope(positions: Array, dim: int, theta: float, scaling: RopeScaling | None) -> Rope:
    """The rotation at every position.

    Args:
      positions: int [B, T], within each document.
      dim: as in `frequencies`.
      theta: likewise.
      scaling: likewise.

    Returns:
      [B, T, R / 2].
    """
    frequency = frequencies(dim, theta, scaling)[None, None]
    if scaling is not None and scaling.kind == "longrope":
        ratio = jnp.asarray(scaling.short_factors) / jnp.asarray(scaling.long_factors)
        long = _document_lengths(positions)[..., None] > scaling.original_max_positions
        frequency = jnp.where(long, frequency * ratio.astype(jnp.float32), frequency)
    angles = positions.astype(jnp.float32)[..., None] * frequency
    factor = 1.0 if scaling is None else scaling.attention_factor
    if factor == 1.0:
        return Rope(jnp.cos(angles), jnp.sin(angles))
    return Rope(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def _document_lengths(positions: Array) -> Array:
    """The last position of each token's document, plus one: int [B, T] -> int [B, T]."""
    index = jnp.arange(positions.shape[1])[None]
    ends = jnp.pad(
        positions[:, 1:] != positions[:, :-1] + 1, ((0, 0), (0, 1)), constant_values=True
    )
    last = jax.lax.cummin(jnp.where(ends, index, positions.shape[1]), axis=1, reverse=True)
    return positions + last - index + 1


def apply_rope(x: Array, rope: Rope, *, interleaved: bool = False) -> Array:
    """Rotates the pairs of every head.

    Args:
      x: queries or keys, [B, T, N, H].
      rope: of the same tokens; of its R numbers a head, the rest stays as it is.
      interleaved: whether the pairs are (2 i, 2 i + 1); otherwise (i, i + R / 2), the pairing of
        most checkpoints of transformers.

    Returns:
      As x; computed in float32.
    """
    dim = 2 * rope.cos.shape[-1]
    wide, rest = x[..., :dim].astype(jnp.float32), x[..., dim:]
    cos, sin = rope.cos[:, :, None], rope.sin[:, :, None]
    if interleaved:
        first, second = wide[..., 0::2], wide[..., 1::2]
    else:
        first, second = jnp.split(wide, 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        turned = jnp.stack(rotated, axis=-1).reshape(wide.shape)
    else:
        turned = jnp.concatenate(rotated, axis=-1)
    turned = turned.astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned
