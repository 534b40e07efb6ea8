"""Decoding: a batch of prompts of unequal lengths, continued in one compiled program.

The prompts are read at once into a cache, then a `lax.while_loop` draws one token a step until
every row has stopped. A row's random draws are a function of its key and of the position alone; of
the other rows it feels nothing but the rounding of its logits, whose sums another batch size may
take in another order. Left out on purpose: rows that enter a running batch (continuous batching).
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax import models, parallel
from distill_jax.errors import UsageError
from distill_jax.generation.sampling import Sampler, log_probability, sample
from distill_jax.models import language

# The shortest padded prompt: below it another program costs more than it saves.
SMALLEST_BUCKET = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GeneratedTokens:
    """What was drawn for B prompts.

    Attributes:
      ids: int32 [B, M]; 0 at and after a row's length.
      lengths: int32 [B], how many were drawn, the stop id included.
      stopped: bool [B], whether the last of them is a stop id.
      log_probs: float32 [B, M], the model's log-probability of each in nats, at temperature 1 and
        among the real ids; 0 at and after the length. None where it was not asked for.
    """

    ids: Array
    lengths: Array
    stopped: Array
    log_probs: Array | None


@dataclasses.dataclass(frozen=True)
class Response:
    """What was drawn for one prompt.

    Attributes:
      ids: int32 [n], the stop id included.
      finish: "stop" if the last id is a stop id, else "length".
      log_probs: float32 [n], as in `GeneratedTokens`, or None.
    """

    ids: np.ndarray
    finish: str
    log_probs: np.ndarray | None = None


def row_keys(seed: int, numbers: Array | np.ndarray, samples: Array | np.ndarray = 0) -> Array:
    """The keys of rows: functions of the seed, the prompt's number and the sample's alone.

    Args:
      seed: of the run, in [0, 2**32).
      numbers: int [N], of the prompts.
      samples: int [N] or scalar, which of the responses to its prompt a row is.

    Returns:
      Typed keys [N].
    """
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    numbers = jnp.asarray(numbers, jnp.uint32)
    keys = fold(jax.random.key(seed, impl="threefry2x32"), numbers)
    samples = jnp.broadcast_to(jnp.asarray(samples, jnp.uint32), numbers.shape)
    return jax.vmap(jax.random.fold_in)(keys, samples)


def generate_tokens(
    model: language.Decoder,
    tokens: Array,
    lengths: Array,
    keys: Array,
    *,
    sampler: Sampler,
    max_new_tokens: int,
    vocab_size: int,
    stop_ids: Sequence[int] = (),
    log_probs: bool = False,
    mesh: Mesh | None = None,
) -> GeneratedTokens:
    """Continues prompts; to be called inside `jit`.

    Args:
      model: the decoder; its compute dtype is that of the cache.
      tokens: int32 [B, T], prompts with padding after them.
      lengths: int32 [B], of the prompts, at most T; 0 for a row that is none, which stays empty.
      keys: typed keys [B], see `row_keys`; the token at position i is drawn with fold_in(key, i).
      sampler: how a token is chosen.
      max_new_tokens: M, at least 1.
      vocab_size: how many ids are real, at most the model's.
      stop_ids: ids after which a row ends.
      log_probs: whether to return those.
      mesh: over which the rows are split; None leaves that to the compiler.

    Returns:
      What was drawn.
    """
    batch, length = tokens.shape
    index = jnp.arange(max_new_tokens)

    def placed(cache: language.Cache) -> language.Cache:
        if mesh is None:
            return cache
        # [n, B, S, K, H]. Parameters in shards might have the compiler split it by heads alone.
        divides = model.config.kv_heads % mesh.shape["tensor"] == 0
        heads = "tensor" if divides else None
        spec = NamedSharding(mesh, PartitionSpec(None, parallel.BATCH, None, heads))
        keys, values = jax.lax.with_sharding_constraint((cache.keys, cache.values), spec)
        return dataclasses.replace(cache, keys=keys, values=values)

    def choose(hidden: Array, position: Array | int) -> tuple[Array, Array | None]:
        """The next token of every row from the state [B, D] of its last one."""
        logits = model.logits(hidden)
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, position)
        chosen = sample(logits, now, sampler, vocab_size)
        return chosen, log_probability(logits, chosen, vocab_size) if log_probs else None

    def is_stop(token: Array) -> Array:
        if not stop_ids:
            return jnp.zeros(token.shape, bool)
        return jnp.any(token[:, None] == jnp.asarray(stop_ids, jnp.int32), axis=1)

    def record(
        drawn: GeneratedTokens, active: Array, token: Array, log_prob: Array | None, at
    ) -> GeneratedTokens:
        here = active[:, None] & (index == at)
        return GeneratedTokens(
            ids=jnp.where(here, token[:, None], drawn.ids),
            lengths=drawn.lengths + active,
            stopped=drawn.stopped | (active & is_stop(token)),
            log_probs=None
            if log_prob is None
            else jnp.where(here, log_prob[:, None], drawn.log_probs),
        )

    def step(carry):
        at, token, cache, active, drawn = carry
        decoded = model(token[:, None], cache=cache)
        token, log_prob = choose(decoded.hidden[:, 0], at)
        drawn = record(drawn, active, token, log_prob, at)
        return at + 1, token, placed(decoded.cache), active & ~drawn.stopped, drawn

    cache = language.init_cache(model.config, batch, length + max_new_tokens, model.dtype)
    segments = (jnp.arange(length) < lengths[:, None]).astype(jnp.int32)
    decoded = model(tokens, segments=segments, cache=placed(cache))
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(decoded.hidden, last, axis=1)[:, 0]
    token, log_prob = choose(hidden, 0)
    active = lengths > 0
    nothing = GeneratedTokens(
        ids=jnp.zeros((batch, max_new_tokens), jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        stopped=jnp.zeros(batch, bool),
        log_probs=jnp.zeros((batch, max_new_tokens), jnp.float32) if log_probs else None,
    )
    drawn = record(nothing, active, token, log_prob, 0)
    carry = (jnp.int32(1), token, placed(decoded.cache), active & ~drawn.stopped, drawn)
    carry = jax.lax.while_loop(lambda c: (c[0] < max_new_tokens) & jnp.any(c[3]), step, carry)
    return carry[-1]


@functools.partial(jax.jit, static_argnames=("graphdef", "options"))
def _generate_tokens(graphdef, params, tokens, lengths, keys, *, options):
    return generate_tokens(models.merge(graphdef, params), tokens, lengths, keys, **dict(options))


def padded_length(config: language.DecoderConfig, length: int, smallest: int) -> int:
    """The padded length of a prompt: a power of two times `smallest`.

    Args:
      config: of the model; one with learned positions has no more than these.
      length: of the longest prompt of a batch.
      smallest: the shortest padded length.
    """
    size = smallest
    while size < length:
        size *= 2
    return min(size, config.max_positions) if config.positions == "learned" else size


def generate(
    model: language.Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    sampler: Sampler,
    max_new_tokens: int,
    vocab_size: int,
    keys: Array | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    batch_size: int = 32,
    log_probs: bool = False,
    mesh: Mesh | None = None,
    smallest_bucket: int = SMALLEST_BUCKET,
) -> list[Response]:
    """Responses to prompts of any lengths, in batches of prompts of like lengths.

    One program is compiled for each padded length, of which there is one an octave.

    Args:
      model: the decoder, its parameters laid out as they shall be: whole on each device of the
        mesh, or in shards.
      prompts: ids, at least one each.
      sampler: how a token is chosen.
      max_new_tokens: the longest response.
      vocab_size: how many ids are real, at most the model's.
      keys: typed keys [N], one a prompt; None for `row_keys(seed, range(N))`.
      seed: of the keys.
      stop_ids: ids after which a response ends.
      batch_size: prompts at a time; a multiple of the devices that share them.
      log_probs: whether to return those.
      mesh: the devices that share a batch; None for one.
      smallest_bucket: see `padded_length`.

    Returns:
      A response a prompt, in their order.

    Raises:
      UsageError: an empty prompt, or one that with its response is longer than learned positions.
    """
    for number, prompt in enumerate(prompts):
        check_length(model.config, prompt, max_new_tokens, f"prompts[{number}]")
    keys = row_keys(seed, np.arange(len(prompts))) if keys is None else keys
    graphdef, params, _ = models.split(model)
    options = dict(
        sampler=sampler,
        max_new_tokens=max_new_tokens,
        vocab_size=vocab_size,
        stop_ids=tuple(stop_ids),
        log_probs=log_probs,
        mesh=mesh,
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Response] = {}
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        size = padded_length(model.config, max(len(prompts[i]) for i in rows), smallest_bucket)
        tokens = np.zeros((batch_size, size), np.int32)
        lengths = np.zeros(batch_size, np.int32)
        for place, i in enumerate(rows):
            lengths[place] = len(prompts[i])
            tokens[place, : lengths[place]] = prompts[i]
        # Rows beyond the last prompt have length 0, and the key of any.
        own = keys[np.array(rows + rows[:1] * (batch_size - len(rows)))]
        arrays = (jnp.asarray(tokens), jnp.asarray(lengths), own)
        if mesh is not None:
            arrays = parallel.put(arrays, parallel.batch_sharding(mesh))
        drawn = _generate_tokens(graphdef, params, *arrays, options=tuple(options.items()))
        drawn = parallel.fetch(drawn)
        found |= {i: _response(drawn, place) for place, i in enumerate(rows)}
    return [found[i] for i in range(len(prompts))]


def check_length(
    config: language.DecoderConfig, prompt: Sequence[int], max_new_tokens: int, where: str
) -> None:
    """UsageError, which begins with `where`, for a prompt that is empty or leaves no room.

    Only a model with learned positions has a limit.
    """
    if not len(prompt):
        raise UsageError(f"{where}: no token; expected text, or a tokenizer that begins with bos")
    limit = config.max_positions
    if config.positions == "learned" and len(prompt) + max_new_tokens > limit:
        raise UsageError(
            f"{where}: {len(prompt)} tokens and a response of up to {max_new_tokens}; expected at "
            f"most {limit} together, the model's positions"
        )


def _response(drawn: GeneratedTokens, row: int) -> Response:
    length = int(drawn.lengths[row])
    chances = None if drawn.log_probs is None else drawn.log_probs[row, :length]
    finish = "stop" if drawn.stopped[row] else "length"
    return Response(drawn.ids[row, :length], finish, chances)
