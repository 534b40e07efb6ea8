"""The sums over all tokens: chunk after chunk on each device, then over the devices of a mesh.

On a mesh every device keeps its tokens (axes `data` and `fsdp`) and its shard of the vocabulary
(axis `tensor`). Statistics of a chunk's softmax cross between devices, [C] numbers a chunk; logits
and heads do not, and the gradient of a head is summed over the tokens of all devices once, after
the last chunk.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from distill_jax.losses.vocab.chunk import chunk_gradients, chunk_sums
from distill_jax.losses.vocab.operands import Factors, Heads, LossSpec, Measures, Tokens
from distill_jax.losses.vocab.shard import VocabShard

#: Bytes of a chunk's arrays: enough that the matrix products do not wait for the heads, which each
#: chunk reads again, and little compared with the heads of a large model.
CHUNK_BYTES = {"cpu": 5 * 2**24, "gpu": 3 * 2**29, "tpu": 2**30}
_BYTES_A_LOGIT = 12  # student and teacher in float32, slope and its low-precision copy
_BYTES_A_TEACHER = 4  # a logit of each further teacher
_TILE = 128  # rows of a chunk come in multiples of a matrix unit's
_BATCH_AXES, _FSDP, _VOCABULARY = ("data", "fsdp"), "fsdp", "tensor"  # axes of a mesh


class Gradients(NamedTuple):
    """Of the loss, with respect to the student's hidden states [N, D] and head [D, V]."""

    hidden: Float[Array, "tokens dim"]
    head: Float[Array, "dim vocab"]


def chunk_size(count: int, vocab: int, platform: str | None = None, teachers: int = 1) -> int:
    """How many of `count` tokens are computed at a time, for a vocabulary of `vocab` ids.

    Args:
      count: tokens on a device.
      vocab: ids, with padding.
      platform: "cpu", "gpu" or "tpu"; that of JAX's default device if not given.
      teachers: how many networks have logits besides the student.
    """
    bytes_a_logit = _BYTES_A_LOGIT + _BYTES_A_TEACHER * max(teachers - 1, 0)
    most = CHUNK_BYTES[platform or jax.default_backend()] // (bytes_a_logit * vocab)
    chunks = math.ceil(count / max(most, 1))
    even = math.ceil(count / chunks)
    return even if even <= _TILE or chunks == 1 else math.ceil(even / _TILE) * _TILE


def summed(
    spec: LossSpec, tokens: Tokens, heads: Heads, factors: Factors
) -> tuple[Float[Array, ""], Measures]:
    """(loss, measures), differentiable, once, in the student's hidden states and head alone."""
    tokens = tokens._replace(weights=tokens.weights.astype(jnp.float32))
    constant_tokens, constant_heads, factors = jax.lax.stop_gradient((tokens, heads, factors))
    sums = _fused(
        spec,
        constant_tokens._replace(hidden=tokens.hidden),
        constant_heads._replace(student=heads.student),
        factors,
    )
    measures = dict(sums)
    return measures.pop("loss"), jax.lax.stop_gradient(measures)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(spec: LossSpec, tokens: Tokens, heads: Heads, factors: Factors) -> Measures:
    return _over_mesh(spec, tokens, heads, factors, gradient=False)[0]


def _forward(spec, tokens, heads, factors):
    return _over_mesh(spec, tokens, heads, factors, gradient=True)


def _backward(spec, gradients, cotangents):
    """The gradients of the forward pass, times the cotangent of the loss; nothing for constants."""
    factor = cotangents["loss"]
    to_hidden, to_head = (
        (factor * gradient.astype(jnp.float32)).astype(gradient.dtype) for gradient in gradients
    )
    nothing: Any = None  # as a cotangent: zero for all arrays below
    return Tokens(to_hidden, nothing, nothing, nothing, nothing), Heads(to_head, nothing), nothing


_fused.defvjp(_forward, _backward)


def _over_chunks(
    spec: LossSpec,
    shard: VocabShard,
    tokens: Tokens,
    heads: Heads,
    factors: Factors,
    *,
    gradient: bool,
) -> tuple[Measures, Gradients | None]:
    """The sums over the tokens of this device, and, if `gradient`, the gradients."""
    count, head = tokens.hidden.shape[0], heads.student
    size = _size_of_chunks(spec, count, heads)
    chunks = math.ceil(count / size)

    def body(head_gradient, chunk: Tokens):
        sums, slope = chunk_sums(spec, shard, chunk, heads, factors)
        if not gradient:
            return head_gradient, (sums, None)
        to_hidden, to_head = chunk_gradients(shard, slope, chunk.hidden, head)
        return head_gradient + to_head.astype(head_gradient.dtype), (sums, to_hidden)

    # Hundreds of chunks add up: in the head's own bfloat16 the late ones would round away.
    head_gradient = jnp.zeros(head.shape, spec.settings.accumulate_dtype) if gradient else None
    split = jax.tree.map(lambda array: _strided(array, size, chunks), tokens)
    if chunks == 1:
        only = jax.tree.map(lambda array: array[0], split)
        head_gradient, (sums, hidden_gradient) = body(head_gradient, only)
    else:
        head_gradient, (sums, hidden_gradient) = jax.lax.scan(body, head_gradient, split)
        sums = {name: jnp.sum(values) for name, values in sums.items()}
    if head_gradient is None:
        return sums, None
    if chunks > 1:
        hidden_gradient = jnp.moveaxis(hidden_gradient, 0, 1)
        hidden_gradient = hidden_gradient.reshape(-1, tokens.hidden.shape[1])[:count]
    return sums, Gradients(hidden_gradient, head_gradient.astype(head.dtype))


def _size_of_chunks(spec: LossSpec, count: int, heads: Heads) -> int:
    mesh = spec.settings.mesh
    platform = None if mesh is None else mesh.devices.flat[0].platform
    chosen = spec.settings.chunk or chunk_size(count, heads.widest, platform, len(heads.teachers))
    return min(chosen, count)


def _strided(array: Any, size: int, chunks: int) -> Array:
    """[N, ...] padded with zeros and cut into [chunks, size, ...], every chunks-th row in a chunk.

    Without `mesh` the compiler may have sharded the tokens: a stride leaves each device its rows.
    """
    missing = chunks * size - array.shape[0]
    array = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    return jnp.moveaxis(array.reshape(size, chunks, *array.shape[1:]), 1, 0)


def _over_mesh(
    spec: LossSpec, tokens: Tokens, heads: Heads, factors: Factors, *, gradient: bool
) -> tuple[Measures, Gradients | None]:
    """The sums over all tokens and the whole vocabulary, and, if `gradient`, the gradients."""
    mesh = spec.settings.mesh
    if mesh is None or mesh.size == 1:
        shard = VocabShard(spec.vocab_size)
        return _over_chunks(spec, shard, tokens, heads, factors, gradient=gradient)
    shards = mesh.shape[_VOCABULARY]
    shard = VocabShard(spec.vocab_size, _VOCABULARY if shards > 1 else None)
    dim, own_width = heads.student.shape
    if shards > 1:
        # One width for all networks, so that a device has the same ids of each.
        width = math.ceil(heads.widest / shards) * shards
        heads = jax.tree.map(lambda head: _widened(head, width), heads)
    scattered = mesh.shape[_FSDP] > 1 and not dim % mesh.shape[_FSDP]
    several = [axis for axis in _BATCH_AXES if mesh.shape[axis] > 1]

    def on_device(tokens: Tokens, heads: Heads, factors: Factors):
        sums, gradients = _over_chunks(spec, shard, tokens, heads, factors, gradient=gradient)
        sums = jax.lax.psum(sums, several)
        if gradients is None:
            return sums, None
        to_head, rest = gradients.head, several
        if scattered:
            to_head = jax.lax.psum_scatter(to_head, _FSDP, scatter_dimension=0, tiled=True)
            rest = [axis for axis in several if axis != _FSDP]
        return sums, Gradients(gradients.hidden, jax.lax.psum(to_head, rest))

    rows, columns = PartitionSpec(_BATCH_AXES), PartitionSpec(None, shard.axis)
    of_head = PartitionSpec(_FSDP if scattered else None, shard.axis)
    sums, gradients = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(rows, columns, PartitionSpec()),
        out_specs=(PartitionSpec(), Gradients._make((rows, of_head)) if gradient else None),
        check_vma=False,
    )(tokens, heads, factors)
    if gradients is None:
        return sums, None
    return sums, Gradients(gradients.hidden, gradients.head[:, :own_width])


def _widened(head: Array, width: int) -> Array:
    missing = width - head.shape[1]
    return jnp.pad(head, ((0, 0), (0, missing))) if missing else head
