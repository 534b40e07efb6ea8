"""The work of `vocab`: sums over tokens, in chunks and over a mesh, with their gradients.

On a mesh every device keeps its tokens (axes `data` and `fsdp`) and its part of the vocabulary
(axis `tensor`). Sums over the vocabulary, such as the normaliser of a softmax, cross between
devices as [C] numbers a chunk; logits and heads do not, and the gradient of a head is summed over
the tokens of all devices once, after the last chunk.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from distill_jax.losses.divergences import kl_summands
from distill_jax.losses.vocab.formulas import VocabDivergence

#: Bytes of a chunk's arrays: enough that the matrix products are not held up by reading the heads
#: again for each chunk, and little beside the heads of a large model.
CHUNK_BYTES = {"cpu": 2**26, "gpu": 3 * 2**29, "tpu": 2**30}
_BYTES_A_LOGIT = 12  # student and teacher in float32, slope and its low-precision copy
_BYTES_A_TEACHER = 4  # of a logit of each teacher more
_TILE = 128  # rows of a chunk come in multiples of a matrix unit's
_IMPOSSIBLE = -1e30  # the logit of an id that is not real: finite, so that 0 times it is 0
_TOKENS, _SHARDS, _VOCABULARY = ("data", "fsdp"), "fsdp", "tensor"  # axes of a mesh

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Readout:
    """How a network's logits come from hidden @ head.

    Attributes:
      cap: soft cap; None for none.
      scale: factor before the cap.
      weight: of a teacher in the mean of several, above 0; they sum to 1.
    """

    cap: float | None = None
    scale: float = 1.0
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is fixed when the loss is compiled; see `vocab_divergence`."""

    divergence: VocabDivergence | None
    student: Readout
    teachers: tuple[Readout, ...]
    vocab_size: int
    chunk: int | None
    at_one: bool  # whether the temperature is known to be 1
    accumulate_dtype: str
    mesh: Mesh | None


def chunk_size(count: int, vocab: int, platform: str | None = None, teachers: int = 1) -> int:
    """How many of `count` tokens go through at a time, for a vocabulary of `vocab` ids.

    Args:
      platform: "cpu", "gpu" or "tpu"; that of JAX's default device if not given.
      teachers: how many networks answer beside the student.
    """
    bytes_a_logit = _BYTES_A_LOGIT + _BYTES_A_TEACHER * max(teachers - 1, 0)
    most = CHUNK_BYTES[platform or jax.default_backend()] // (bytes_a_logit * vocab)
    chunks = math.ceil(count / max(most, 1))
    even = math.ceil(count / chunks)
    return even if even <= _TILE or chunks == 1 else math.ceil(even / _TILE) * _TILE


def logits(hidden: jax.Array, head: jax.Array, readout: Readout) -> tuple[jax.Array, jax.Array]:
    """Logits [C, V], float32, and their slope with respect to hidden @ head."""
    cap, scale = readout.cap, readout.scale
    z = jnp.matmul(hidden, head, preferred_element_type=jnp.float32) * scale
    if cap is None:
        return z, jnp.float32(scale)
    squashed = jnp.tanh(z / cap)
    return cap * squashed, scale * (1 - jnp.square(squashed))


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """The part of the vocabulary that a device has, [W] ids of the V that are real.

    Attributes:
      real: V.
      axis: of the mesh, whose devices have the other parts; None for all ids here.
    """

    real: int
    axis: str | None = None

    def cut(self, logits: jax.Array) -> jax.Array:
        """The logits of real ids: others are cut off, or, in parts, all but impossible."""
        if self.axis is None:
            return logits[:, : self.real]
        width = logits.shape[1]
        if self.real == width * jax.lax.axis_size(self.axis):
            return logits
        return jnp.where(self.ids(width) < self.real, logits, _IMPOSSIBLE)

    def ids(self, width: int) -> jax.Array:
        """int32 [W]."""
        own = jnp.arange(width, dtype=jnp.int32)
        return own if self.axis is None else own + width * jax.lax.axis_index(self.axis)

    def total(self, values: jax.Array) -> jax.Array:
        """The sum over the vocabulary: [..., W] -> [...]."""
        own = jnp.sum(values, axis=-1)
        return own if self.axis is None else jax.lax.psum(own, self.axis)

    def log_sum(self, logits: jax.Array) -> jax.Array:
        """log of the sum of exponentials over the vocabulary: [C, W] -> [C]."""
        if self.axis is None:
            return jax.nn.logsumexp(logits, axis=-1)
        highest = jax.lax.pmax(jnp.max(logits, axis=-1), self.axis)
        return highest + jnp.log(self.total(jnp.exp(logits - highest[:, None])))

    def spread(self, ids: jax.Array, values: jax.Array, width: int, absent: float) -> jax.Array:
        """[C, W]: the values [C, K] at their ids [C, K], < 0 for nowhere; `absent` elsewhere."""
        local = ids if self.axis is None else ids - width * jax.lax.axis_index(self.axis)
        local = jnp.where((ids < 0) | (local < 0), width, local)  # a negative index would wrap
        empty = jnp.full((ids.shape[0], width), absent, values.dtype)
        rows = jnp.arange(ids.shape[0])[:, None]
        return empty.at[rows, local].set(values, mode="drop")

    def log_softmax(self, logits: jax.Array) -> jax.Array:
        if self.axis is None:
            return jax.nn.log_softmax(logits, axis=-1)
        shifted = logits - jax.lax.pmax(jnp.max(logits, axis=-1), self.axis)[:, None]
        return shifted - jnp.log(self.total(jnp.exp(shifted)))[:, None]

    def likeliest(self, logits: jax.Array) -> jax.Array:
        """The id of the highest logit, the first of equals: [C, W] -> int32 [C]."""
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        if self.axis is None:
            return best
        height = jnp.max(logits, axis=-1)
        best += logits.shape[1] * jax.lax.axis_index(self.axis)
        highest = height == jax.lax.pmax(height, self.axis)
        return jax.lax.pmin(jnp.where(highest, best, jnp.iinfo(jnp.int32).max), self.axis)


def _log_mean(settings: Settings, logs: Iterable[jax.Array]) -> jax.Array:
    """log of the teachers' weighted mean distribution, of the log of each, [C, W]."""
    first, *more = logs
    if not more:
        return first
    weights = [jnp.log(jnp.float32(teacher.weight)) for teacher in settings.teachers]
    weighted = [weight + log for weight, log in zip(weights, (first, *more), strict=True)]
    return functools.reduce(jnp.logaddexp, weighted)


def _soft(settings: Settings, part: _Vocabulary, z_s, z_t, log_q, log_p, temperature):
    """T^2 D [C], or T D, and its slope [C, W] with respect to the student's logits."""
    tempered = log_q, log_p
    if not settings.at_one:
        log_q = part.log_softmax(z_s / temperature)
        log_p = _log_mean(settings, (part.log_softmax(z / temperature) for z in z_t))
        tempered = log_q, log_p
    formula = settings.divergence.formula
    skew = settings.divergence.skew or 0.0
    value, slope = formula.value_and_slope(*tempered, skew, part.total)
    power = formula.power
    return value * temperature**power, slope * temperature ** (power - 1)


def _completed(part: _Vocabulary, answer: Arrays, log_q: jax.Array) -> jax.Array:
    """log P [C, W] of an answer that names some ids alone.

    What is left for the others is spread over them as the student spreads it: KL(P || Q) is then
    that of the outcomes {each id, the rest}, and Q - P its slope.
    """
    log_p = jnp.where(answer["ids"] < 0, _IMPOSSIBLE, answer["log_probs"])
    if "log_rest" not in answer:
        return part.spread(answer["ids"], log_p, log_q.shape[1], _IMPOSSIBLE)
    named = part.spread(answer["ids"], log_p, log_q.shape[1], jnp.inf)
    # Summed over the rest, since 1 - the sum of the others is nothing where it is small.
    log_q_rest = part.log_sum(jnp.where(named < jnp.inf, _IMPOSSIBLE, log_q))
    missing = jnp.maximum(answer["log_rest"], _IMPOSSIBLE) - log_q_rest
    return jnp.where(named < jnp.inf, named, log_q + missing[:, None])


def _sparse(settings: Settings, part: _Vocabulary, z_s, log_q, answer: Arrays, temperature):
    """As `_soft`, of an answer that names some ids alone."""
    if not settings.at_one:
        log_q = part.log_softmax(z_s / temperature)
    formula = settings.divergence.formula
    value, slope = formula.value_and_slope(log_q, _completed(part, answer, log_q), 0.0, part.total)
    power = formula.power
    return value * temperature**power, slope * temperature ** (power - 1)


def _chunk(settings: Settings, part: _Vocabulary, student, others, labels, weights, factors):
    """The sums of one chunk, and the slope [C, Ws] of its loss with respect to hidden @ head."""
    teachers, answer = others
    temperature, soft_weight, hard_weight = factors
    z_s, inner = logits(*student, settings.student)
    z_s = part.cut(z_s)
    log_q = part.log_softmax(z_s)
    mark = part.ids(z_s.shape[1]) == labels[:, None]
    has_label = (labels >= 0).astype(jnp.float32)

    def cross_entropy(logs):
        return -part.total(jnp.where(mark, logs, 0.0))

    def entropy(logs):
        return -part.total(jnp.exp(logs) * logs)

    hard = cross_entropy(log_q)
    best = part.likeliest(z_s)
    loss = hard_weight * hard
    slope = (hard_weight * has_label)[:, None] * (jnp.exp(log_q) - mark)
    values = {
        "hard_loss": hard,
        "student_entropy": entropy(log_q),
        "accuracy": (best == labels).astype(jnp.float32),
    }
    if teachers:
        read = zip(teachers, settings.teachers, strict=True)
        z_t = [part.cut(logits(*teacher, readout)[0]) for teacher, readout in read]
        log_p = _log_mean(settings, map(part.log_softmax, z_t))
        highest = z_t[0] if len(z_t) == 1 else log_p
        soft, soft_slope = _soft(settings, part, z_s, z_t, log_q, log_p, temperature)
        loss += soft_weight * soft
        slope += soft_weight * soft_slope
        values |= {
            "soft_loss": soft,
            "teacher_loss": cross_entropy(log_p),
            "kl": part.total(kl_summands(log_p, log_q)),
            "teacher_entropy": entropy(log_p),
            "agreement": (best == part.likeliest(highest)).astype(jnp.float32),
        }
    if answer:
        soft, soft_slope = _sparse(settings, part, z_s, log_q, answer, temperature)
        loss += soft_weight * soft
        slope += soft_weight * soft_slope
        values["soft_loss"] = soft
        if "log_rest" in answer:  # else the likeliest id need not be among them
            first = jnp.argmax(answer["log_probs"], axis=-1)[:, None]
            likeliest = jnp.take_along_axis(answer["ids"], first, axis=-1)[:, 0]
            values["agreement"] = (best == likeliest).astype(jnp.float32)
    values["loss"] = loss
    sums = {name: jnp.sum(jnp.where(weights != 0, weights * v, 0.0)) for name, v in values.items()}
    missing = student[1].shape[1] - slope.shape[1]
    return sums, jnp.pad(slope * weights[:, None], ((0, 0), (0, missing))) * inner


def summed(settings: Settings, hidden, head, others, labels, weights, factors):
    """(loss, measures), differentiable with respect to `hidden` and `head`.

    Args:
      settings: what is fixed.
      hidden: the student's, [N, D].
      head: the student's, [D, V].
      others: (the (hidden, head) of each teacher, an answer that names some ids alone or {}): the
        answer has "ids" int32 [N, K], < 0 for none; "log_probs" [N, K]; and "log_rest" [N] where
        other ids have a probability too.
      labels: [N].
      weights: [N].
      factors: temperature, soft weight, hard weight.
    """
    given = jax.lax.stop_gradient((others, labels, weights.astype(jnp.float32), factors))
    sums = dict(_fused(settings, hidden, head, given))
    return sums.pop("loss"), jax.lax.stop_gradient(sums)


def _over_chunks(settings: Settings, part: _Vocabulary, hidden, head, given, *, gradient: bool):
    """The sums over the tokens here, and, if asked for, the gradients of hidden states and head."""
    (teachers, answer), labels, weights, factors = given
    count = hidden.shape[0]
    widest = max(array.shape[1] for array in (head, *(other for _, other in teachers)))
    platform = None if settings.mesh is None else settings.mesh.devices.flat[0].platform
    size = min(settings.chunk or chunk_size(count, widest, platform, len(teachers)), count)
    chunks = math.ceil(count / size)
    missing = chunks * size - count

    # Every chunks-th token makes a chunk: without a mesh, the compiler may have split the tokens.
    def split(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        return jnp.moveaxis(array.reshape(size, chunks, *array.shape[1:]), 1, 0)

    def body(to_head, chunk):
        x, teachers_x, own_answer, label, weight = chunk
        answers = [(own, other) for own, (_, other) in zip(teachers_x, teachers, strict=True)]
        others = answers, own_answer
        sums, slope = _chunk(settings, part, (x, head), others, label, weight, factors)
        if not gradient:
            return to_head, (sums, None)
        slope = slope.astype(head.dtype)
        to_x = jnp.matmul(slope, head.T, preferred_element_type=jnp.float32)
        if part.axis is not None:
            to_x = jax.lax.psum(to_x, part.axis)
        to_x = to_x.astype(x.dtype)
        more = jnp.matmul(x.T, slope, preferred_element_type=jnp.float32)
        return to_head + more.astype(to_head.dtype), (sums, to_x)

    to_head = jnp.zeros(head.shape, settings.accumulate_dtype) if gradient else None
    items = jax.tree.map(split, (hidden, [own for own, _ in teachers], answer, labels, weights))
    if chunks == 1:
        to_head, (sums, to_x) = body(to_head, jax.tree.map(lambda a: a[0], items))
    else:
        to_head, (sums, to_x) = jax.lax.scan(body, to_head, items)
        sums = {name: jnp.sum(values) for name, values in sums.items()}
    if not gradient:
        return sums, None
    if chunks > 1:
        to_x = jnp.moveaxis(to_x, 0, 1).reshape(-1, hidden.shape[1])[:count]
    return sums, (to_x, to_head.astype(head.dtype))


def _over_mesh(settings: Settings, hidden, head, given, *, gradient: bool):
    """As `_over_chunks`, over all tokens and the whole vocabulary."""
    mesh = settings.mesh
    if mesh is None or mesh.size == 1:
        part = _Vocabulary(settings.vocab_size)
        return _over_chunks(settings, part, hidden, head, given, gradient=gradient)
    (teachers, answer), labels, weights, factors = given
    parts = mesh.shape[_VOCABULARY]
    part = _Vocabulary(settings.vocab_size, _VOCABULARY if parts > 1 else None)
    own_width, dim = head.shape[1], head.shape[0]
    if parts > 1:
        # One width for all, so that every device has the same ids of all.
        widest = max([own_width, *(other.shape[1] for _, other in teachers)])
        width = math.ceil(widest / parts) * parts
        head = _widened(head, width)
        teachers = tuple((own, _widened(other, width)) for own, other in teachers)
    scattered = mesh.shape[_SHARDS] > 1 and not dim % mesh.shape[_SHARDS]

    several = [axis for axis in _TOKENS if mesh.shape[axis] > 1]

    def here(hidden, head, given):
        sums, slopes = _over_chunks(settings, part, hidden, head, given, gradient=gradient)
        sums = jax.lax.psum(sums, several)
        if not gradient:
            return sums, None
        to_x, to_head = slopes
        rest = several
        if scattered:
            to_head = jax.lax.psum_scatter(to_head, _SHARDS, scatter_dimension=0, tiled=True)
            rest = [axis for axis in several if axis != _SHARDS]
        return sums, (to_x, jax.lax.psum(to_head, rest))

    rows, columns = PartitionSpec(_TOKENS), PartitionSpec(None, part.axis)
    slopes = (rows, PartitionSpec(_SHARDS if scattered else None, part.axis))
    others = ((rows, columns),) * len(teachers), dict.fromkeys(answer, rows)
    sums, gradients = jax.shard_map(
        here,
        mesh=mesh,
        in_specs=(rows, columns, (others, rows, rows, PartitionSpec())),
        out_specs=(PartitionSpec(), slopes if gradient else None),
        check_vma=False,
    )(hidden, head, ((teachers, answer), labels, weights, factors))
    if not gradient:
        return sums, None
    to_x, to_head = gradients
    return sums, (to_x, to_head[:, :own_width])


def _widened(head: jax.Array, width: int) -> jax.Array:
    missing = width - head.shape[1]
    return jnp.pad(head, ((0, 0), (0, missing))) if missing else head


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(settings: Settings, hidden: jax.Array, head: jax.Array, given: Any) -> Arrays:
    return _over_mesh(settings, hidden, head, given, gradient=False)[0]


def _forward(settings: Settings, hidden: jax.Array, head: jax.Array, given: Any):
    return _over_mesh(settings, hidden, head, given, gradient=True)


def _backward(settings: Settings, gradients: tuple[jax.Array, jax.Array], cotangents: Arrays):
    factor = cotangents["loss"]
    scaled = tuple((factor * g.astype(jnp.float32)).astype(g.dtype) for g in gradients)
    return (*scaled, None)


_fused.defvjp(_forward, _backward)
