"""The key/value cache: decoding one token at a time without computing the earlier ones again."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from distill_jax.models.language.config import DecoderConfig, layer_runs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far, of B texts of unequal lengths.

    Attributes:
      keys: one array [n, B, S, K, H] for each run of n layers, after the rotary embedding.
      values: likewise.
      lengths: int32 [B], how many tokens each text has. A slot at or above the length holds
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
      length: S, prompt and continuation together. Tokens beyond it are dropped.
      dtype: of keys and values; with the compute dtype of the decoder nothing is rounded.
    """
    shapes = [
        (run.layers, batch, length, config.kv_heads, config.head_dim) for run in layer_runs(config)
    ]
    keys, values = (tuple(jnp.zeros(shape, dtype) for shape in shapes) for _ in range(2))
    return Cache(keys, values, jnp.zeros(batch, jnp.int32))


def update(cached: Array, layer: Array, new: Array, slots: Array) -> Array:
    """Writes the keys or the values of new tokens into one layer of a cache.

    Args:
      cached: keys or values of a run of layers, [n, B, S, K, H].
      layer: int32 scalar, which of the n.
      new: [B, T, K, H].
      slots: int32 [B, T], where each token is written; those at S and above are dropped.

    Returns:
      The updated array; XLA updates it in place where it can.
    """
    rows = jnp.arange(new.shape[0])[:, None]
    return cached.at[layer, rows, slots].set(
        new.astype(cached.dtype), mode="drop", unique_indices=True
    )
