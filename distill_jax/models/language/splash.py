"""Flash attention on a TPU by JAX's splash kernel, which materialises no [T, S] array.

The kernel walks over blocks of queries and keys and updates the softmax as it goes; it skips blocks
that causality or the window masks as a whole. For the backward pass it keeps the result and one
number a query, and computes the logits again. On a mesh every device has its rows of the batch and
its heads. On a CPU the kernel is interpreted, which is for tests.
Left out on purpose: the key/value cache, because the kernel wants the mask at compile time, and
where the keys of a cache lie is known only at run time.

Dao et al. 2022, "FlashAttention: fast and memory-efficient exact attention with IO-awareness".
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from distill_jax import parallel
from distill_jax.errors import UsageError

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention import Mask, SegmentIds

# Block sizes of queries and keys, of which the largest that divides the length is taken. With head
# sizes up to 256 in float32, the backward pass with blocks of 512 fits the VMEM of v4, v5e, v5p and
# v6e; with heads of 512 it does not fit v4.
_BLOCKS = (512, 256, 128)
_LANES = 128  # of a TPU's vector registers: a block of keys is a multiple of them
_HEAD_SIZES = (64, 128, 192, 256)  # those that were compiled


def fits(length: int, head_dim: int) -> bool:
    """Whether the kernel takes `length` tokens with heads of size `head_dim`."""
    return length % _LANES == 0 and head_dim in _HEAD_SIZES


def check(length: int, head_dim: int, platform: str) -> None:
    """Raises UsageError where attention='splash' cannot run."""
    if platform not in ("tpu", "cpu"):
        raise UsageError(
            f"attention='splash': a kernel for TPUs, and this is a {platform}; expected auto"
        )
    if not fits(length, head_dim):
        raise UsageError(
            f"attention='splash': {length} tokens and heads of {head_dim}; expected a multiple of "
            f"{_LANES}, and one of {', '.join(map(str, _HEAD_SIZES))}"
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
    """Causal attention as `attention.attend` computes it, without a cache.

    Args:
      query: [B, T, N, H], such that `fits(T, H)`.
      key: [B, T, K, H].
      value: as `key`.
      scale: the factor of the logits.
      cap: c of the soft cap c * tanh(logits / c); None for no cap.
      window: how many positions a query attends to, its own included; None for all.
      segments: int32 [B, T], tokens attend within their own segment; None for one segment a row.
      mesh: over which the rows are sharded, and the heads where `tensor` divides them; None for no
        mesh.

    Returns:
      [B, T, N, H].
    """
    # The kernel has no scale: it goes into the query. In float32 the product is rounded once; in
    # half precision the scale itself would be rounded too.
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    interpret = parallel.platform(mesh) == "cpu"

    def on_device(query: Array, key: Array, value: Array, segments: Array | None) -> Array:
        _, length, heads, _ = query.shape
        kernel = _kernel(length, heads, cap=cap, window=window, interpret=interpret)
        by_heads = (array.swapaxes(1, 2) for array in (query, key, value))
        return jax.vmap(kernel)(*by_heads, _segment_ids(segments)).swapaxes(1, 2)

    if mesh is None:
        return on_device(query, key, value, segments)
    ways = mesh.shape["tensor"]
    divides = query.shape[2] % ways == 0
    if divides:
        # Each device needs the key heads of its own query heads: where there are fewer key heads
        # than devices, they are repeated.
        copies = math.lcm(key.shape[2], ways) // key.shape[2]
        if copies > 1:
            key, value = (jnp.repeat(array, copies, axis=2) for array in (key, value))
    rows = PartitionSpec(parallel.BATCH)
    heads = PartitionSpec(parallel.BATCH, None, "tensor" if divides else None)
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(heads, heads, heads, rows),
        out_specs=heads,
        check_vma=False,  # a kernel does not declare over which axes its results vary
    )(query, key, value, segments)


def _kernel(
    length: int, heads: int, *, cap: float | None, window: int | None, interpret: bool
) -> Callable[..., Array]:
    """The kernel of one text: (query [N, T, H], key [K, T, H], value, segment ids) -> [N, T, H]."""
    # Imported here because it takes half a second, which commands without this kernel save.
    from jax.experimental.pallas.ops.tpu import splash_attention

    block = next(size for size in _BLOCKS if length % size == 0)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([_mask(length, window)] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )


@functools.cache  # the compiled kernel is cached by the identity of its mask
def _mask(length: int, window: int | None) -> "Mask":
    from jax.experimental.pallas.ops.tpu import splash_attention

    if window is None:
        return splash_attention.CausalMask((length, length))
    return splash_attention.LocalMask((length, length), (window - 1, 0), offset=0)


def _segment_ids(segments: Array | None) -> "SegmentIds | None":
    from jax.experimental.pallas.ops.tpu import splash_attention

    return None if segments is None else splash_attention.SegmentIds(segments, segments)
