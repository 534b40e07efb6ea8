"""Causal grouped-query attention, with sliding windows, a logit soft cap, segments and a KV cache.

`make_mask` chooses the implementation for a forward pass and builds the mask in the form that this
implementation reads; `attend` computes the attention under it:

- "splash", JAX's flash-attention kernel for TPUs (see `splash`), where its shapes fit;
- "cudnn" or "xla", through `jax.nn.dot_product_attention`, elsewhere and with a cache;
- plain einsums with a float32 softmax for a soft cap outside of splash, which that function does
  not have. They materialise all logits, [B, N, T, S].
"""

import dataclasses
from typing import Literal

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
from distill_jax.models.language.layers import Linear, Norm
from distill_jax.models.language.rope import Rope, apply_rope

#: The values of `training.attention`. "auto" is splash on a TPU and cuDNN on a GPU where they fit,
#: else XLA. Splash does not read a cache and cuDNN has no soft cap: XLA computes such an attention
#: whatever the option says.
IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")


class Attention(nnx.Module):
    """The projections of an attention layer; the decoder calls `attend` between the two methods."""

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

        query_width = config.heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.norm_all = config.qk_norm == "all"
        self.interleaved = config.rope_interleaved
        self.query = linear(config.dim, query_width, config.qkv_bias)
        self.key = linear(config.dim, kv_width, config.qkv_bias)
        self.value = linear(config.dim, kv_width, config.qkv_bias)
        self.output = linear(query_width, config.dim, config.output_bias)
        self.query_norm = norm(config.heads)
        self.key_norm = norm(config.kv_heads)

    def _split_heads(self, x: Array, norm: Norm | None = None) -> Array:
        if norm is not None and self.norm_all:
            x = norm(x)
        x = x.reshape(*x.shape[:-1], -1, self.head_dim)
        return x if norm is None or self.norm_all else norm(x)

    def project(self, x: Array, rope: Rope | None) -> tuple[Array, Array, Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H] of x [B, T, D].

        Queries and keys are normalised if the config says so, then rotated by `rope`.
        """
        query = self._split_heads(self.query(x), self.query_norm)
        key = self._split_heads(self.key(x), self.key_norm)
        if rope is not None:
            query, key = (
                apply_rope(each, rope, interleaved=self.interleaved) for each in (query, key)
            )
        return query, key, self._split_heads(self.value(x))

    def project_output(self, attended: Array) -> Array:
        """Merges the heads and projects them: [B, T, N, H] -> [B, T, D]."""
        return self.output(attended.reshape(*attended.shape[:-2], -1))


def causal_mask(query_positions: Array, key_positions: Array, window: int | None) -> Array:
    """True where a key is at or before the query, and within its window.

    Args:
      query_positions: int [..., T].
      key_positions: int [..., S].
      window: how many positions a query attends to, its own included; None for all.

    Returns:
      bool [..., T, S].
    """
    distance = query_positions[..., :, None] - key_positions[..., None, :]
    causal = distance >= 0
    return causal if window is None else causal & (distance < window)


@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """Which keys each query attends to, and the implementation that computes the attention.

    Attributes:
      implementation: "xla", "cudnn" or "splash".
      window: as in `causal_mask`; ignored where `mask` is given, which includes it.
      mask: bool [B, T, S] for XLA and cuDNN; None for the causal mask of S = T tokens.
      segments: int32 [B, T] for splash: tokens attend within their own segment; None for one.
      mesh: for splash, over which devices it is sharded; None for none.
    """

    implementation: Literal["xla", "cudnn", "splash"]
    window: int | None
    mask: Array | None = None
    segments: Array | None = None
    mesh: Mesh | None = None


def make_mask(
    config: DecoderConfig,
    *,
    sliding: bool,
    implementation: str,
    mesh: Mesh | None,
    dtype: DTypeLike,
    index: Array,
    segments: Array | None,
    cache: Cache | None,
) -> AttentionMask:
    """The mask of the layers with a sliding window, or of those without.

    Args:
      config: of the decoder.
      sliding: whether the layers have the window.
      implementation: one of `IMPLEMENTATIONS`.
      mesh: of the program; None for the default devices of JAX.
      dtype: of queries, keys and values.
      index: int32 [B, T], 0 .. T - 1.
      segments: int32 [B, T] or None, see `Decoder.__call__`.
      cache: of the tokens before these, or None.

    Raises:
      UsageError: "splash" cannot run on this platform or with these shapes.
    """
    window, length = config.window if sliding else None, index.shape[1]
    if cache is not None:
        # Padding follows a row's tokens, so that the causal mask hides it from all of them.
        slots = jnp.arange(cache.capacity, dtype=jnp.int32)
        mask = causal_mask(cache.lengths[:, None] + index, slots[None], window)
        dense = _dense_implementation(implementation, mesh, config, dtype, (length, cache.capacity))
        return AttentionMask(dense, window, mask)
    platform = parallel.platform(mesh)
    if implementation == "splash":
        splash.check(length, config.head_dim, platform)
    fits = platform == "tpu" and splash.fits(length, config.head_dim)
    if implementation == "splash" or (implementation == "auto" and fits):
        return AttentionMask("splash", window, segments=segments, mesh=mesh)
    dense = _dense_implementation(implementation, mesh, config, dtype, (length, length))
    if segments is None:
        return AttentionMask(dense, window)
    same = segments[:, :, None] == segments[:, None, :]
    return AttentionMask(dense, window, causal_mask(index, index, window) & same)


def _dense_implementation(
    implementation: str,
    mesh: Mesh | None,
    config: DecoderConfig,
    dtype: DTypeLike,
    lengths: tuple[int, int],
) -> Literal["xla", "cudnn"]:
    """XLA or cuDNN, whose kernel takes half precision, heads up to 128 in eights, even lengths."""
    if config.attention_cap is not None or implementation in ("xla", "splash"):
        return "xla"
    half, size = dtype in (jnp.bfloat16, jnp.float16), config.head_dim
    fits = half and size % 8 == 0 and size <= 128 and all(n % 2 == 0 for n in lengths)
    if implementation == "cudnn" or (parallel.platform(mesh) == "gpu" and fits):
        return "cudnn"
    return "xla"


def attend(
    query: Array,
    key: Array,
    value: Array,
    attention_mask: AttentionMask,
    *,
    scale: float,
    cap: float | None,
) -> Array:
    """softmax(cap(scale * query @ key)) @ value, under the mask.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H], K a divisor of N: a group of N / K queries shares one head of keys.
      value: as `key`.
      attention_mask: from `make_mask`.
      scale: the factor of the logits.
      cap: c of the soft cap c * tanh(logits / c); None for no cap.

    Returns:
      [B, T, N, H], in the dtype of `value`.
    """
    window, mask = attention_mask.window, attention_mask.mask
    if attention_mask.implementation == "splash":
        return splash.attend(
            query,
            key,
            value,
            scale=scale,
            cap=cap,
            window=window,
            segments=attention_mask.segments,
            mesh=attention_mask.mesh,
        )
    if cap is not None:
        if mask is None:
            positions = jnp.arange(query.shape[1])
            mask = causal_mask(positions, positions, window)[None]
        return _attend_with_soft_cap(query, key, value, mask, scale=scale, cap=cap)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if mask is None else mask[:, None],
        scale=scale,
        is_causal=mask is None,
        local_window_size=None if mask is not None or window is None else (window - 1, 0),
        implementation=attention_mask.implementation,
    )


def _attend_with_soft_cap(
    query: Array, key: Array, value: Array, mask: Array, *, scale: float, cap: float
) -> Array:
    batch, length, heads, size = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, size)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    logits = cap * jnp.tanh(logits * (scale / cap))
    lowest = jnp.finfo(jnp.float32).min
    probabilities = jax.nn.softmax(jnp.where(mask[:, None, None], logits, lowest), axis=-1)
    attended = jnp.einsum("bkgts,bskh->btkgh", probabilities.astype(value.dtype), value)
    return attended.reshape(batch, length, heads, size)


def check_implementation(name: str, dtype: DTypeLike) -> None:
    """Raises UsageError for an unknown implementation, or one that does not take the dtype."""
    if name not in IMPLEMENTATIONS:
        raise UsageError(f"attention={name!r}: expected one of {', '.join(IMPLEMENTATIONS)}")
    if name == "cudnn" and jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        raise UsageError(
            f"attention='cudnn' computes in bfloat16 or float16, not {jnp.dtype(dtype)}"
        )
