"""Decoding: continues a batch of prompts of unequal lengths in one compiled program.

Prefill reads all prompts at once into a KV cache; a `lax.while_loop` of decode steps then samples
one token a step for every row, until every row has stopped. The random draws of a row depend on its
key and the position alone. Other rows affect it only through the rounding of its logits: sums may
be taken in another order at another batch size. Left out on purpose: rows that enter a running
batch (continuous batching).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax import models, parallel
from distill_jax.errors import UsageError
from distill_jax.generation.sampling import Sampler, log_probability, sample
from distill_jax.models import language

# The shortest padded prompt: for shorter ones another compiled program costs more than it saves.
SMALLEST_BUCKET = 32


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How responses are decoded; hashable, so that a compiled program can depend on it.

    Attributes:
      sampler: how a token is chosen from its logits.
      max_new_tokens: M, the longest response, at least 1.
      vocab_size: the number of real ids, at most the model's vocabulary size.
      stop_ids: ids that end a response.
      log_probs: whether to return the log-probability of each token.
      mesh: the devices that share the rows of a batch; None leaves the sharding to the compiler.
    """

    sampler: Sampler
    max_new_tokens: int
    vocab_size: int
    stop_ids: tuple[int, ...] = ()
    log_probs: bool = False
    mesh: Mesh | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GeneratedTokens:
    """The tokens generated for B prompts.

    Attributes:
      ids: int32 [B, M]; 0 at and after the length of a row.
      lengths: int32 [B], the number of tokens of each row, with the stop id.
      stopped: bool [B], whether the last token of a row is a stop id.
      log_probs: float32 [B, M], the model's log-probability of each token in nats, at temperature 1
        and over the real ids; 0 at and after the length. None if they were not requested.
    """

    ids: Array
    lengths: Array
    stopped: Array
    log_probs: Array | None


@dataclasses.dataclass(frozen=True)
class Response:
    """The tokens generated for one prompt.

    Attributes:
      ids: int32 [n], with the stop id.
      finish: "stop" if the last id is a stop id, else "length".
      log_probs: float32 [n], as in `GeneratedTokens`, or None.
    """

    ids: np.ndarray
    finish: str
    log_probs: np.ndarray | None = None


class _State(NamedTuple):
    """What the loop of decode steps carries.

    Attributes:
      position: int32, of the next token within the responses.
      token: int32 [B], the last sampled tokens.
      cache: the keys and values of all tokens before these.
      active: bool [B], the rows that have not stopped.
      generated: all tokens so far.
    """

    position: Array
    token: Array
    cache: language.Cache
    active: Array
    generated: GeneratedTokens


def row_keys(
    seed: int, numbers: Array | np.ndarray, samples: Array | np.ndarray | int = 0
) -> Array:
    """The random key of each row, which depends on the seed, the prompt and the sample alone.

    Args:
      seed: of the run, in [0, 2**32).
      numbers: int [N], the number of each row's prompt.
      samples: int [N] or scalar, which of the responses to its prompt each row is.

    Returns:
      Typed keys [N].
    """
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    numbers = jnp.asarray(numbers, jnp.uint32)
    keys = fold(jax.random.key(seed, impl="threefry2x32"), numbers)
    samples = jnp.broadcast_to(jnp.asarray(samples, jnp.uint32), numbers.shape)
    return jax.vmap(jax.random.fold_in)(keys, samples)


def generate_tokens(
    model: language.Decoder, tokens: Array, lengths: Array, keys: Array, decoding: Decoding
) -> GeneratedTokens:
    """Continues prompts, inside a compiled program.

    Args:
      model: the decoder; the cache has its compute dtype.
      tokens: int32 [B, T], right-padded prompts.
      lengths: int32 [B], the length of each prompt, at most T; a row of length 0 stays empty.
      keys: typed keys [B], see `row_keys`; the token at position i is sampled with fold_in(key, i).
      decoding: how the responses are decoded.

    Returns:
      The generated tokens.
    """
    batch, length = tokens.shape

    def advance(
        hidden: Array,
        position: Array,
        cache: language.Cache | None,
        active: Array,
        so_far: GeneratedTokens,
    ) -> _State:
        """Samples the token at a position of the responses from the hidden states [B, D]."""
        assert cache is not None  # a decoder that is given a cache returns one
        token, log_prob = _next_token(model.logits(hidden), keys, position, decoding)
        generated = _append(so_far, token, log_prob, position, active, decoding)
        cache = _shard_cache(cache, model.config, decoding.mesh)
        return _State(position + 1, token, cache, active & ~generated.stopped, generated)

    def decode_step(state: _State) -> _State:
        decoded = model(state.token[:, None], cache=state.cache)
        hidden = decoded.hidden[:, 0]
        return advance(hidden, state.position, decoded.cache, state.active, state.generated)

    def unfinished(state: _State) -> Array:
        return (state.position < decoding.max_new_tokens) & jnp.any(state.active)

    cache = language.init_cache(model.config, batch, length + decoding.max_new_tokens, model.dtype)
    cache = _shard_cache(cache, model.config, decoding.mesh)
    segments = (jnp.arange(length)[None] < lengths[:, None]).astype(jnp.int32)
    prefill = model(tokens, segments=segments, cache=cache)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(prefill.hidden, last, axis=1)[:, 0]
    state = advance(hidden, jnp.int32(0), prefill.cache, lengths > 0, _no_tokens(batch, decoding))
    return jax.lax.while_loop(unfinished, decode_step, state).generated


def _shard_cache(
    cache: language.Cache, config: language.DecoderConfig, mesh: Mesh | None
) -> language.Cache:
    """The cache, its rows divided as the batch is."""
    if mesh is None:
        return cache
    # [n, B, S, K, H]. Sharded parameters might lead the compiler to divide it by heads alone.
    divides = config.kv_heads % mesh.shape["tensor"] == 0
    heads = "tensor" if divides else None
    spec = NamedSharding(mesh, PartitionSpec(None, parallel.BATCH, None, heads))
    keys, values = jax.lax.with_sharding_constraint((cache.keys, cache.values), spec)
    return dataclasses.replace(cache, keys=keys, values=values)


def _next_token(
    logits: Array, keys: Array, position: Array, decoding: Decoding
) -> tuple[Array, Array | None]:
    """A sampled token for every row, and its log-probability if that is requested."""
    position_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, position)
    token = sample(logits, position_keys, decoding.sampler, decoding.vocab_size)
    if not decoding.log_probs:
        return token, None
    return token, log_probability(logits, token, decoding.vocab_size)


def _no_tokens(batch: int, decoding: Decoding) -> GeneratedTokens:
    shape = (batch, decoding.max_new_tokens)
    return GeneratedTokens(
        ids=jnp.zeros(shape, jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        stopped=jnp.zeros(batch, bool),
        log_probs=jnp.zeros(shape, jnp.float32) if decoding.log_probs else None,
    )


def _append(
    so_far: GeneratedTokens,
    token: Array,
    log_prob: Array | None,
    position: Array,
    active: Array,
    decoding: Decoding,
) -> GeneratedTokens:
    """The tokens with one more, at `position`, in every active row."""
    written = active[:, None] & (jnp.arange(decoding.max_new_tokens) == position)
    stop = jnp.zeros(token.shape, bool)
    if decoding.stop_ids:
        stop = jnp.any(token[:, None] == jnp.asarray(decoding.stop_ids, jnp.int32), axis=1)
    log_probs = so_far.log_probs
    if log_prob is not None and log_probs is not None:
        log_probs = jnp.where(written, log_prob[:, None], log_probs)
    return GeneratedTokens(
        ids=jnp.where(written, token[:, None], so_far.ids),
        lengths=so_far.lengths + active.astype(jnp.int32),
        stopped=so_far.stopped | (active & stop),
        log_probs=log_probs,
    )


@functools.partial(jax.jit, static_argnames=("graphdef", "decoding"))
def _generate_tokens(
    graphdef: nnx.GraphDef,
    params: models.Flat,
    tokens: Array,
    lengths: Array,
    keys: Array,
    *,
    decoding: Decoding,
) -> GeneratedTokens:
    model = cast(language.Decoder, models.merge(graphdef, params))
    return generate_tokens(model, tokens, lengths, keys, decoding)


def padded_length(config: language.DecoderConfig, length: int, smallest: int) -> int:
    """The padded length of the prompts of a batch: `smallest` times a power of two.

    Args:
      config: of the model, whose context limits the length.
      length: of the longest prompt of the batch.
      smallest: the shortest padded length.
    """
    size = smallest
    while size < length:
        size *= 2
    return max(length, min(size, config.max_positions))


def generate(
    model: language.Decoder,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    keys: Array | None = None,
    seed: int = 0,
    batch_size: int = 32,
    smallest_bucket: int = SMALLEST_BUCKET,
) -> list[Response]:
    """Responses to prompts of any lengths, in batches of prompts of similar lengths.

    One program is compiled for each padded length; these are `smallest_bucket` times powers of two.

    Args:
      model: the decoder, its parameters on the devices of `decoding.mesh`, replicated or sharded.
      prompts: the ids of each prompt, at least one.
      decoding: how the responses are decoded.
      keys: typed keys [N], one for each prompt; None for `row_keys(seed, range(N))`.
      seed: of the default keys.
      batch_size: prompts in a batch; a multiple of the number of devices that share them.
      smallest_bucket: the shortest padded length, see `padded_length`.

    Returns:
      A response for each prompt, in the order of the prompts.

    Raises:
      UsageError: an empty prompt, or one that with its response exceeds the model's context.
    """
    for number, prompt in enumerate(prompts):
        check_length(model.config, prompt, decoding.max_new_tokens, f"prompts[{number}]")
    keys = row_keys(seed, np.arange(len(prompts))) if keys is None else keys
    graphdef, params, _ = models.split(model)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: dict[int, Response] = {}
    for first in range(0, len(by_length), batch_size):
        rows = by_length[first : first + batch_size]
        longest = max(len(prompts[i]) for i in rows)
        size = _batch_rows(len(rows), batch_size, decoding.mesh)
        tokens, lengths = _right_padded(
            [prompts[i] for i in rows],
            size,
            padded_length(model.config, longest, smallest_bucket),
        )
        # Rows without a prompt have length 0, so any key will do for them.
        row_numbers = np.array(rows + rows[:1] * (size - len(rows)))
        arrays = (jnp.asarray(tokens), jnp.asarray(lengths), keys[row_numbers])
        if decoding.mesh is not None:
            arrays = parallel.put(arrays, parallel.batch_sharding(decoding.mesh))
        generated = parallel.fetch(_generate_tokens(graphdef, params, *arrays, decoding=decoding))
        responses |= {i: _response(generated, row) for row, i in enumerate(rows)}
    return [responses[i] for i in range(len(prompts))]


def _batch_rows(prompts: int, batch_size: int, mesh: Mesh | None) -> int:
    """The rows of a batch: `batch_size`, or fewer where at most half of them would have a prompt.

    Fewer are a power of two for each device that shares them, so that few programs are compiled.
    """
    rows = 1 if mesh is None else parallel.batch_ways(mesh)
    while rows < prompts:
        rows *= 2
    return rows if 2 * rows <= batch_size else batch_size


def _right_padded(
    prompts: Sequence[Sequence[int]], batch_size: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [B, T] and lengths int32 [B] of at most B prompts; missing ones are empty."""
    tokens = np.zeros((batch_size, length), np.int32)
    lengths = np.zeros(batch_size, np.int32)
    for row, prompt in enumerate(prompts):
        lengths[row] = len(prompt)
        tokens[row, : len(prompt)] = prompt
    return tokens, lengths


def check_length(
    config: language.DecoderConfig, prompt: Sequence[int], max_new_tokens: int, location: str
) -> None:
    """Checks that a prompt is not empty and leaves room for its response.

    Raises:
      UsageError: it is empty or too long; the line begins with `location`.
    """
    if not len(prompt):
        raise UsageError(f"{location}: no token; expected text, or a tokenizer that adds bos")
    limit = config.max_positions
    if len(prompt) + max_new_tokens > limit:
        raise UsageError(
            f"{location}: {len(prompt)} tokens and a response of up to {max_new_tokens}; expected "
            f"at most {limit} together, the model's context"
        )


def _response(generated: GeneratedTokens, row: int) -> Response:
    """The response of a row of tokens that are on the host."""
    length = int(generated.lengths[row])
    log_probs = None
    if generated.log_probs is not None:
        log_probs = np.asarray(generated.log_probs)[row, :length]
    finish = "stop" if generated.stopped[row] else "length"
    return Response(np.asarray(generated.ids)[row, :length], finish, log_probs)
