"""Causal self-attention with fewer heads of keys and values, windows, caps, segments and a cache.

`jax.nn.dot_product_attention` computes it, by cuDNN's kernel where that fits. A soft cap is beyond
that function: then it is plain einsums with a float32 softmax, which keep all [B, N, T, S] logits.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.layers import Linear, Norm, rotate

#: What computes an uncapped attention; "auto" is cuDNN on a GPU where it fits, else XLA.
IMPLEMENTATIONS = ("auto", "xla", "cudnn")


class Attention(nnx.Module):
    """The projections of an attention; `project` and `merge` are what stands around `attend`."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        lead: tuple[int, ...],
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def linear(inputs: int, outputs: int, bias: bool) -> Linear:
            return Linear(inputs, outputs, lead=lead, bias=bias, param_dtype=param_dtype, rngs=rngs)

        def norm(heads: int) -> Norm | None:
            if config.qk_norm == "none":
                return None
            features = config.head_dim * (heads if config.qk_norm == "all" else 1)
            return Norm(config, features, lead=lead, param_dtype=param_dtype)

        width, narrow = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.norm_all = config.qk_norm == "all"
        self.query = linear(config.dim, width, config.qkv_bias)
        self.key = linear(config.dim, narrow, config.qkv_bias)
        self.value = linear(config.dim, narrow, config.qkv_bias)
        self.output = linear(width, config.dim, config.output_bias)
        self.query_norm = norm(config.heads)
        self.key_norm = norm(config.kv_heads)

    def _heads(self, x: Array, norm: Norm | None = None) -> Array:
        if norm is not None and self.norm_all:
            x = norm(x)
        x = x.reshape(*x.shape[:-1], -1, self.head_dim)
        return x if norm is None or self.norm_all else norm(x)

    def project(self, x: Array, turns: tuple[Array, Array] | None) -> tuple[Array, Array, Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H] of x [B, T, D], rotated by `turns`."""
        query = self._heads(self.query(x), self.query_norm)
        key = self._heads(self.key(x), self.key_norm)
        if turns is not None:
            query, key = rotate(query, *turns), rotate(key, *turns)
        return query, key, self._heads(self.value(x))

    def merge(self, mixed: Array) -> Array:
        """[B, T, N, H] -> [B, T, D]."""
        return self.output(mixed.reshape(*mixed.shape[:-2], -1))


def visible(queries: Array, keys: Array, window: int | None) -> Array:
    """Which keys lie at or before a query, and within the window.

    Args:
      queries: int [..., T], places of the queries.
      keys: int [..., S], places of the keys.
      window: how many places a query sees, its own included; None for all.

    Returns:
      bool [..., T, S].
    """
    distance = queries[..., :, None] - keys[..., None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    scale: float,
    cap: float | None,
    window: int | None,
    mask: Array | None,
    implementation: str = "auto",
) -> Array:
    """softmax(cap(scale * query @ key)) @ value.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H], K a divisor of N.
      value: likewise.
      scale: the factor of the logits.
      cap: c of c * tanh(logits / c); None for no cap.
      window: as in `visible`; read where `mask` is None, as the mask says it otherwise.
      mask: bool [B, T, S], what each query sees; None for all up to its own place in S = T.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      [B, T, N, H], in the dtype of `value`.
    """
    if cap is not None:
        if mask is None:
            places = jnp.arange(query.shape[1])
            mask = visible(places, places, window)[None]
        return _capped(query, key, value, scale, cap, mask)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if mask is None else mask[:, None],
        scale=scale,
        is_causal=mask is None,
        local_window_size=None if mask is not None or window is None else (window - 1, 0),
        implementation=_implementation(implementation, query, key),
    )


def _implementation(chosen: str, query: Array, key: Array) -> str:
    """cuDNN's kernel takes half precision, heads of up to 128 in steps of 8, and even lengths."""
    if chosen != "auto":
        return chosen
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    size = query.shape[-1]
    even = query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0
    fits = half and even and size % 8 == 0 and size <= 128
    return "cudnn" if fits and jax.default_backend() == "gpu" else "xla"


def _capped(query: Array, key: Array, value: Array, scale: float, cap: float, mask: Array) -> Array:
    batch, length, heads, size = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, size)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    logits = cap * jnp.tanh(logits * (scale / cap))
    lowest = jnp.finfo(jnp.float32).min
    chances = jax.nn.softmax(jnp.where(mask[:, None, None], logits, lowest), axis=-1)
    mixed = jnp.einsum("bkgts,bskh->btkgh", chances.astype(value.dtype), value)
    return mixed.reshape(batch, length, heads, size)


def write(cache: Array, layer: Array, new: Array, places: Array) -> Array:
    """Puts the keys or values of new tokens into a layer of a cache.

    Args:
      cache: [n, B, S, K, H].
      layer: int32 scalar, which of the n.
      new: [B, T, K, H].
      places: int32 [B, T]; those at S and above are dropped.

    Returns:
      The cache, changed in place where XLA can.
    """
    rows = jnp.arange(new.shape[0])[:, None]
    return cache.at[layer, rows, places].set(
        new.astype(cache.dtype), mode="drop", unique_indices=True
    )


def check_implementation(name: str, dtype: DTypeLike) -> None:
    """Raises ValueError for an attention that there is not, or that the dtype rules out."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention={name!r}: expected one of {', '.join(IMPLEMENTATIONS)}")
    if name == "cudnn" and jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"attention='cudnn' computes in bfloat16 or float16, not {dtype}")
