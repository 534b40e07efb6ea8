"""Keys and values of the tokens so far, for decoding one token at a time."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from distill_jax.models.language.config import DecoderConfig, runs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a decoder remembers of B texts of unequal lengths.

    Attributes:
      keys: one array [n, B, S, K, H] for each run of n layers, rotated already.
      values: likewise.
      lengths: int32 [B], how many tokens each text has. A place at or above the length holds
        nothing of use; the next token overwrites it.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    lengths: Array

    @property
    def capacity(self) -> int:
        """S, how many tokens a text may have."""
        return self.keys[0].shape[2]


def init_cache(
    config: DecoderConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """An empty cache.

    Args:
      config: of the decoder.
      batch: B.
      length: S, prompt and answer together. Tokens beyond it are not remembered.
      dtype: of keys and values; that in which the decoder computes loses nothing.
    """
    shapes = [(run.layers, batch, length, config.kv_heads, config.head_dim) for run in runs(config)]
    keys, values = (tuple(jnp.zeros(shape, dtype) for shape in shapes) for _ in range(2))
    return Cache(keys, values, jnp.zeros(batch, jnp.int32))
