"""Causal self-attention with fewer heads of keys and values, windows, caps, segments and a cache.

On a TPU the kernel of `splash` computes it where that fits. Elsewhere, and with a cache, it is
`jax.nn.dot_product_attention`, by cuDNN's kernel where that fits. A soft cap is beyond that
function: then it is plain einsums with a float32 softmax, which keep all [B, N, T, S] logits.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from distill_jax import parallel
from distill_jax.errors import UsageError
from distill_jax.models.language import splash
from distill_jax.models.language.cache import Cache
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.layers import Linear, Norm, rotate

#: What computes an attention; "auto" is splash on a TPU and cuDNN on a GPU where they fit, else
#: XLA. Splash is for attention without a cache, cuDNN for attention without a cap: others are XLA's
#: whatever is asked for.
IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")


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


@dataclasses.dataclass(frozen=True)
class Seen:
    """Which keys a query sees, as what computes the attention reads it.

    Attributes:
      implementation: "xla", "cudnn" or "splash".
      window: as in `visible`; not read where there is a mask, which says it too.
      mask: bool [B, T, S]; None for all up to a query's own place in S = T. Not for splash.
      segments: int32 [B, T]: only what is of a query's own segment; None for one. Splash alone.
      mesh: over which splash is laid out; None for none.
    """

    implementation: str
    window: int | None
    mask: Array | None = None
    segments: Array | None = None
    mesh: Mesh | None = None


def look(
    config: DecoderConfig,
    asked: str,
    mesh: Mesh | None,
    dtype: DTypeLike,
    index: Array,
    segments: Array | None,
    cache: Cache | None,
    *,
    local: bool,
) -> Seen:
    """What queries see in the layers with a window (`local`), or in those without.

    Args:
      config: of the decoder.
      asked: one of `IMPLEMENTATIONS`.
      mesh: of the program; None for the default devices of JAX.
      dtype: of queries, keys and values.
      index: int32 [B, T], 0 .. T - 1.
      segments: int32 [B, T] or None, as the decoder takes them.
      cache: likewise.

    Raises:
      UsageError: splash is asked for and cannot be had.
    """
    window, length = config.window if local else None, index.shape[1]
    if cache is not None:
        # Padding comes after a row's tokens: no token sees it.
        held = jnp.arange(cache.capacity, dtype=jnp.int32)
        mask = visible(cache.lengths[:, None] + index, held[None], window)
        dense = _without_splash(asked, mesh, config, dtype, (length, cache.capacity))
        return Seen(dense, window, mask)
    platform = parallel.platform(mesh)
    if asked == "splash":
        splash.check(length, config.head_dim, platform)
    fits = platform == "tpu" and splash.fits(length, config.head_dim)
    if asked == "splash" or (asked == "auto" and fits):
        return Seen("splash", window, segments=segments, mesh=mesh)
    mask = None
    if segments is not None:
        same = segments[:, :, None] == segments[:, None, :]
        mask = visible(index, index, window) & same
    return Seen(_without_splash(asked, mesh, config, dtype, (length, length)), window, mask)


def _without_splash(
    asked: str,
    mesh: Mesh | None,
    config: DecoderConfig,
    dtype: DTypeLike,
    lengths: tuple[int, int],
) -> str:
    """cuDNN's kernel takes half precision, heads of up to 128 in steps of 8, and even lengths."""
    if config.attention_cap is not None or asked in ("xla", "splash"):
        return "xla"
    half, size = dtype in (jnp.bfloat16, jnp.float16), config.head_dim
    fits = half and size % 8 == 0 and size <= 128 and all(n % 2 == 0 for n in lengths)
    return "cudnn" if asked == "cudnn" or (parallel.platform(mesh) == "gpu" and fits) else "xla"


def attend(
    query: Array, key: Array, value: Array, seen: Seen, *, scale: float, cap: float | None
) -> Array:
    """softmax(cap(scale * query @ key)) @ value.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H], K a divisor of N.
      value: likewise.
      seen: what each query sees.
      scale: the factor of the logits.
      cap: c of c * tanh(logits / c); None for no cap.

    Returns:
      [B, T, N, H], in the dtype of `value`.
    """
    window, mask = seen.window, seen.mask
    if seen.implementation == "splash":
        found = dict(scale=scale, cap=cap, window=window, segments=seen.segments, mesh=seen.mesh)
        return splash.attend(query, key, value, **found)
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
        implementation=seen.implementation,
    )


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
    """UsageError for an attention that there is not, or that the dtype rules out."""
    if name not in IMPLEMENTATIONS:
        raise UsageError(f"attention={name!r}: expected one of {', '.join(IMPLEMENTATIONS)}")
    if name == "cudnn" and jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        raise UsageError(
            f"attention='cudnn' computes in bfloat16 or float16, not {jnp.dtype(dtype)}"
        )
