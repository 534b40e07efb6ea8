"""One chunk of tokens: the terms of the loss with their slopes, and the gradients that follow.

Forward and backward pass are one: while the logits [C, W] of a chunk exist, each term gives its
value and its slope with respect to the student's logits, and two matrix products turn the slope
into gradients. Nothing of the size of logits outlives the chunk.

Logits, log-probabilities and slopes are float32. The slope is rounded to the head's dtype before
the matrix products, which run in that dtype on accelerators and sum in float32.

In shapes, C is the number of tokens of the chunk and W the number of ids on this device.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distill_jax.losses.divergences import kl_summands
from distill_jax.losses.vocab.formulas import ValueAndSlope
from distill_jax.losses.vocab.operands import (
    Factors,
    Heads,
    LossSpec,
    Measures,
    SparseAnswer,
    Tokens,
)
from distill_jax.losses.vocab.shard import IMPOSSIBLE, VocabShard


class Student(NamedTuple):
    """The student at the tokens of a chunk.

    Attributes:
      logits: float32 [C, W].
      log_q: [C, W], log-probabilities at temperature 1.
      best: int32 [C], the likeliest id.
      is_label: bool [C, W], whether an id is the token's label.
    """

    logits: Float[Array, "tokens width"]
    log_q: Float[Array, "tokens width"]
    best: Int[Array, " tokens"]
    is_label: Bool[Array, "tokens width"]


class SoftTerm(NamedTuple):
    """The divergence from the teacher at each token of a chunk.

    Attributes:
      value: [C], T^2 D, or T D where that keeps the size of the gradient.
      slope: [C, W], of the value with respect to the student's logits.
      measures: name -> [C].
    """

    value: Float[Array, " tokens"]
    slope: Float[Array, "tokens width"]
    measures: dict[str, Float[Array, " tokens"]]


def chunk_sums(
    spec: LossSpec, shard: VocabShard, tokens: Tokens, heads: Heads, factors: Factors
) -> tuple[Measures, Float[Array, "tokens padded"]]:
    """The weighted sums of a chunk, "loss" among them, and the loss's slope in hidden @ head.

    Args:
      spec: what is fixed.
      shard: the ids of this device.
      tokens: of the chunk.
      heads: of this device's ids, with padding.
      factors: temperature and weights.
    """
    logits, logits_slope = spec.student.logits_and_slope(tokens.hidden, heads.student)
    logits = shard.drop_padding(logits)
    log_q = shard.log_softmax(logits)
    is_label = shard.ids(logits.shape[1])[None] == tokens.labels[:, None]
    has_label = (tokens.labels >= 0).astype(jnp.float32)
    hard = _cross_entropy(shard, is_label, log_q)
    student = Student(logits, log_q, shard.argmax(logits), is_label)

    loss = factors.hard_weight * hard
    slope = (factors.hard_weight * has_label)[:, None] * (
        jnp.exp(log_q) - is_label.astype(jnp.float32)
    )
    measures = {
        "hard_loss": hard,
        "student_entropy": _entropy(shard, log_q),
        "accuracy": (student.best == tokens.labels).astype(jnp.float32),
    }
    soft = None
    if heads.teachers:
        soft = _from_teachers(spec, shard, student, tokens, heads, factors.temperature)
    elif tokens.answer is not None:
        soft = _from_answer(spec, shard, student, tokens.answer, factors.temperature)
    if soft is not None:
        loss += factors.soft_weight * soft.value
        slope += factors.soft_weight * soft.slope
        measures |= {"soft_loss": soft.value, **soft.measures}
    measures["loss"] = loss

    weights = tokens.weights
    # A token of weight 0 may hold values that overflow: it is left out, not multiplied by 0.
    sums = {
        name: jnp.sum(jnp.where(weights != 0, weights * values, 0.0))
        for name, values in measures.items()
    }
    padding = heads.student.shape[1] - slope.shape[1]
    return sums, jnp.pad(slope * weights[:, None], ((0, 0), (0, padding))) * logits_slope


def chunk_gradients(
    shard: VocabShard,
    slope: Float[Array, "tokens width"],
    hidden: Float[Array, "tokens dim"],
    head: Float[Array, "dim width"],
) -> tuple[Float[Array, "tokens dim"], Float[Array, "dim width"]]:
    """The gradients of hidden states, in their dtype, and of the head, in float32 to be summed."""
    slope = slope.astype(head.dtype)
    # Contracted as they lie: a transposed head would be written once more by some compilers.
    to_hidden = jnp.einsum("tv,dv->td", slope, head, preferred_element_type=jnp.float32)
    if shard.axis is not None:
        to_hidden = jax.lax.psum(to_hidden, shard.axis)
    to_head = jnp.einsum("td,tv->dv", hidden, slope, preferred_element_type=jnp.float32)
    return to_hidden.astype(hidden.dtype), to_head


def _cross_entropy(shard: VocabShard, is_label: Array, logs: Array) -> Array:
    return -shard.total(jnp.where(is_label, logs, 0.0))


def _entropy(shard: VocabShard, logs: Array) -> Array:
    return -shard.total(jnp.exp(logs) * logs)


def _from_teachers(
    spec: LossSpec,
    shard: VocabShard,
    student: Student,
    tokens: Tokens,
    heads: Heads,
    temperature: Array,
) -> SoftTerm:
    """The divergence from the mean distribution of the teachers, and its measures at T = 1."""
    operands = zip(spec.teachers, tokens.teachers, heads.teachers, strict=True)
    logits = [shard.drop_padding(readout.logits(own, head)) for readout, own, head in operands]
    log_p = _log_mean(spec, map(shard.log_softmax, logits))
    highest = logits[0] if len(logits) == 1 else log_p

    tempered_q, tempered_p = student.log_q, log_p
    if not spec.untempered:
        tempered_q = shard.log_softmax(student.logits / temperature)
        tempered_p = _log_mean(spec, (shard.log_softmax(z / temperature) for z in logits))
    value, slope = _diverge(spec, shard, tempered_q, tempered_p, temperature)
    measures = {
        "teacher_loss": _cross_entropy(shard, student.is_label, log_p),
        "kl": shard.total(kl_summands(log_p, student.log_q)),
        "teacher_entropy": _entropy(shard, log_p),
        "agreement": (student.best == shard.argmax(highest)).astype(jnp.float32),
    }
    return SoftTerm(value, slope, measures)


def _from_answer(
    spec: LossSpec,
    shard: VocabShard,
    student: Student,
    answer: SparseAnswer,
    temperature: Array,
) -> SoftTerm:
    """The divergence from a stored answer."""
    log_q = student.log_q
    if not spec.untempered:
        log_q = shard.log_softmax(student.logits / temperature)
    log_p = _completed(shard, answer, log_q)
    value, slope = _diverge(spec, shard, log_q, log_p, temperature)
    measures = {}
    if answer.log_rest is not None:  # without it, the likeliest id need not be among the named
        first = jnp.argmax(answer.log_probs, axis=-1)[:, None]
        likeliest = jnp.take_along_axis(answer.ids, first, axis=-1)[:, 0]
        measures["agreement"] = (student.best == likeliest).astype(jnp.float32)
    return SoftTerm(value, slope, measures)


def _diverge(
    spec: LossSpec, shard: VocabShard, log_q: Array, log_p: Array, temperature: Array
) -> ValueAndSlope:
    """T^2 D [C] of tempered distributions, and its slope [C, W] in the untempered logits."""
    assert spec.divergence is not None
    formula, skew = spec.divergence.formula, spec.divergence.skew or 0.0
    value, slope = formula.value_and_slope(log_q, log_p, skew, shard.total)
    power = formula.power  # the logits are divided by T, hence one power less for the slope
    return ValueAndSlope(value * temperature**power, slope * temperature ** (power - 1))


def _log_mean(spec: LossSpec, log_ps: Iterable[Array]) -> Array:
    """log of the teachers' weighted mean distribution [C, W]."""
    first, *more = log_ps
    if not more:
        return first
    weights = [jnp.log(jnp.float32(teacher.weight)) for teacher in spec.teachers]
    weighted = [weight + log_p for weight, log_p in zip(weights, (first, *more), strict=True)]
    return functools.reduce(jnp.logaddexp, weighted)


def _completed(shard: VocabShard, answer: SparseAnswer, log_q: Array) -> Array:
    """log P [C, W] of an answer, which names a few ids only.

    The probability of the rest is spread over the other ids in the student's own proportions:
    KL(P || Q) is then that of the outcomes {each named id, the rest}, and Q - P its slope.
    """
    width = log_q.shape[1]
    log_p = jnp.where(answer.ids < 0, IMPOSSIBLE, answer.log_probs)
    if answer.log_rest is None:
        return shard.scatter(answer.ids, log_p, width, IMPOSSIBLE)
    named = shard.scatter(answer.ids, log_p, width, jnp.inf)
    # Summed over the rest: 1 minus the sum of the named loses all digits where the rest is small.
    log_q_rest = shard.logsumexp(jnp.where(named < jnp.inf, IMPOSSIBLE, log_q))
    missing = jnp.maximum(answer.log_rest, IMPOSSIBLE) - log_q_rest
    return jnp.where(named < jnp.inf, named, log_q + missing[:, None])
