"""Attention on a TPU by the splash kernel of JAX, which keeps no [T, S] array.

Blocks of queries meet the blocks of keys that they see, and the softmax is brought up to date as
these pass by; what causality or the window hides as a whole is not computed. For the gradient the
result and one number a query are kept, and the logits are computed again. On a mesh every device
has its rows of the batch and its heads. On a CPU the kernel is interpreted, which is for tests.
Left out on purpose: caches, whose keys have places that are known only as they come.

Dao et al. 2022, "FlashAttention: fast and memory-efficient exact attention with IO-awareness".
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from distill_jax import parallel
from distill_jax.errors import UsageError

# Queries and keys of a block, the largest that divides the length. With heads of up to 256 in
# float32, VMEM has room for the backward pass of 512 on v4, v5e, v5p and v6e; with 512 not on v4.
_BLOCKS = (512, 256, 128)
_LANES = 128  # of a TPU's registers: keys of a block come in multiples of them
_SIZES = (64, 128, 192, 256)  # of heads, that were compiled


def fits(length: int, size: int) -> bool:
    """Whether the kernel takes `length` tokens with heads of `size`."""
    return length % _LANES == 0 and size in _SIZES


def check(length: int, size: int, platform: str) -> None:
    """UsageError where the kernel was asked for by name and cannot be had."""
    if platform not in ("tpu", "cpu"):
        raise UsageError(
            f"attention='splash': a kernel for TPUs, and this is a {platform}; expected auto"
        )
    if not fits(length, size):
        raise UsageError(
            f"attention='splash': {length} tokens and heads of {size}; expected a multiple of "
            f"{_LANES}, and one of {', '.join(map(str, _SIZES))}"
        )


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    scale: float,
    cap: float | None,
    window: int | None,
    segments: Array | None,
    mesh: Mesh | None,
) -> Array:
    """As `attention.attend`, of tokens that see what is at or before them in their segment.

    Args:
      query: [B, T, N, H], such that `fits(T, H)`.
      key: [B, T, K, H].
      value: likewise.
      scale: the factor of the logits.
      cap: c of c * tanh(logits / c); None for no cap.
      window: how many places a query sees, its own included; None for all.
      segments: int32 [B, T]; None for one segment a row.
      mesh: over which the rows are split, and the heads where `tensor` divides them; None for none.
    """
    # The product is rounded once, as an element of the query; in half precision the scale would be.
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    interpret = parallel.platform(mesh) == "cpu"

    def on_a_device(query, key, value, segments):
        kernel = _kernel(*query.shape[1:3], cap, window, interpret)
        by_heads = (array.swapaxes(1, 2) for array in (query, key, value))
        return jax.vmap(kernel)(*by_heads, _pairs(segments)).swapaxes(1, 2)

    if mesh is None:
        return on_a_device(query, key, value, segments)
    ways = mesh.shape["tensor"]
    divides = query.shape[2] % ways == 0
    if divides:
        # A device has whole groups of queries' heads, with the heads of keys that they meet.
        copies = math.lcm(key.shape[2], ways) // key.shape[2]
        if copies > 1:
            key, value = (jnp.repeat(array, copies, axis=2) for array in (key, value))
    rows = PartitionSpec(parallel.BATCH)
    heads = PartitionSpec(parallel.BATCH, None, "tensor" if divides else None)
    return jax.shard_map(
        on_a_device,
        mesh=mesh,
        in_specs=(heads, heads, heads, rows),
        out_specs=heads,
        check_vma=False,  # a kernel does not say over which axes its results vary
    )(query, key, value, segments)


def _kernel(length: int, heads: int, cap: float | None, window: int | None, interpret: bool):
    """(query [N, T, H], key [K, T, H], value, segments) -> [N, T, H]."""
    # Half a second that a command without this kernel need not wait.
    from jax.experimental.pallas.ops.tpu import splash_attention

    block = next(size for size in _BLOCKS if length % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([_mask(length, window)] * heads),
        block_sizes=splash_attention.BlockSizes(**{f"block_{name}": block for name in names}),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )


@functools.cache  # the kernel is compiled once for a mask, which it knows by its identity
def _mask(length: int, window: int | None):
    from jax.experimental.pallas.ops.tpu import splash_attention

    if window is None:
        return splash_attention.CausalMask((length, length))
    return splash_attention.LocalMask((length, length), (window - 1, 0), offset=0)


def _pairs(segments: Array | None):
    from jax.experimental.pallas.ops.tpu import splash_attention

    return None if segments is None else splash_attention.SegmentIds(segments, segments)
