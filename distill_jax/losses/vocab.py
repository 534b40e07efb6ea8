"""Divergences over a vocabulary from hidden states and heads: the logits are never built whole.

[N, V] logits of a language model take gigabytes: 8,192 tokens of 128,256 in float32 are 4.2 GB, and
a divergence by automatic differentiation keeps a dozen such arrays. Here tokens go through in
chunks, and each chunk's gradient is computed at once, beside its value. At no time is more alive
than the logits of one chunk, the heads and their gradient. Left out on purpose: the models, the
shift of the labels, and what a mask means.
"""

import dataclasses
import functools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.errors import UsageError, unknown
from distill_jax.losses.divergences import kl_of_logs
from distill_jax.losses.logits import check_fraction
from distill_jax.losses.vocab_terms import DIVERGENCES

#: Bytes of a chunk's arrays: enough that the matrix products are not held up by reading the heads
#: again for each chunk, and little beside the heads of a large model.
CHUNK_BYTES = {"cpu": 2**26, "gpu": 3 * 2**29, "tpu": 2**30}
_BYTES_A_LOGIT = 12  # student and teacher in float32, slope and its low-precision copy
_TILE = 128  # rows of a chunk come in multiples of a matrix unit's

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What is fixed when the loss is compiled; see `vocab_divergence`."""

    divergence: str
    skew: float
    student_cap: float | None
    teacher_cap: float | None
    student_scale: float
    teacher_scale: float
    vocab_size: int
    chunk: int
    at_one: bool  # whether the temperature is known to be 1
    accumulate_dtype: str


def vocab_divergence(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    *,
    weights: jax.Array,
    divergence: str = "forward_kl",
    skew: float | None = None,
    temperature: float | jax.Array = 1.0,
    labels: jax.Array | None = None,
    soft_weight: float | jax.Array = 1.0,
    hard_weight: float | jax.Array = 0.0,
    student_cap: float | None = None,
    teacher_cap: float | None = None,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    vocab_size: int | None = None,
    chunk: int | None = None,
    accumulate_dtype: str = "float32",
) -> tuple[jax.Array, Arrays]:
    """T^2 D(P, Q) and the cross-entropy of the same logits, summed over tokens with weights.

    T^2 keeps the size of the gradient as T grows; for the total variation, which is linear in the
    difference of the logits, it is T.

    Exact: every entry of the vocabulary counts, in float32, whatever the dtype of the operands. The
    result is differentiable, once, with respect to the student's hidden states and head; its
    gradients are computed with the value. The teacher, labels, weights and the temperature are
    constants.

    The logits of a network are f(scale * hidden @ head), with f(z) = cap * tanh(z / cap) where a
    cap is given (Gemma 2), in float32; then P and Q are their softmax at temperature T.

    Args:
      student_hidden: [N, Ds], of N tokens.
      student_head: [Ds, Vs].
      teacher_hidden: [N, Dt].
      teacher_head: [Dt, Vt].
      weights: [N], of each token in the sum. A mask divided by the number of tokens of the global
        batch that it leaves gives the mean; a token of weight 0 may hold anything finite.
      divergence: D, "forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl" or
        "total_variation", each as the function of that name in this room.
      skew: beta of "jensen_shannon" (1/2 by default), alpha of the skewed ones (0.1 by default).
      temperature: T, positive; a number or a scalar array.
      labels: int32 [N], the next tokens. A negative label has no cross-entropy.
      soft_weight: of T^2 D; a number or a scalar array.
      hard_weight: of the cross-entropy at T = 1; a number or a scalar array.
      student_cap: soft cap of the student's logits.
      teacher_cap: of the teacher's.
      student_scale: factor of the student's logits, before the cap.
      teacher_scale: of the teacher's.
      vocab_size: V, how many ids are real; both networks are read up to there, as if the rest, with
        which vocabularies are padded, did not exist. The smaller of Vs and Vt by default.
      chunk: tokens at a time; by default from the shapes and `CHUNK_BYTES`.
      accumulate_dtype: in which the head's gradient is summed over chunks.

    Returns:
      (loss, measures): float32 scalars, all sums over tokens with `weights`. Of the measures,
      "soft_loss" is T^2 D and "hard_loss" the cross-entropy, unweighted; "kl" is KL(P || Q),
      "student_entropy", "teacher_entropy" and "agreement" (of the likeliest ids) are at T = 1, and
      "teacher_loss" is the teacher's cross-entropy, and "accuracy" says how often the likeliest id
      is the label. Perplexities are exp of the two cross-entropies where weights sum to 1. Without
      labels, these three are 0.

    Raises:
      UsageError: shapes do not fit, a name or number is not one of those above, or `hard_weight` is
        given without labels.

    Example:
      >>> student, teacher, head = jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 3.0]]), jnp.eye(2)
      >>> loss, measures = vocab_divergence(student, head, teacher, head, weights=jnp.ones(1))
      >>> f"{loss:.4f} {measures['teacher_entropy']:.4f}"
      '0.3278 0.3653'

    Reference:
      Hsu et al. 2024, "Liger Kernel: efficient Triton kernels for LLM training" (gradients in the
      forward pass, by chunks); the divergences' own references stand at their functions.
    """
    if divergence not in DIVERGENCES:
        raise unknown("divergence", divergence, DIVERGENCES, "divergence")
    default = DIVERGENCES[divergence].skew
    if default is None and skew is not None:
        raise UsageError(f"skew={skew}: {divergence} has none; expected None")
    skew = default if skew is None else skew
    check_fraction("skew", skew)
    if isinstance(temperature, numbers.Real) and not temperature > 0:
        raise UsageError(f"temperature={temperature}: expected a positive number")
    if labels is None and not (isinstance(hard_weight, numbers.Real) and hard_weight == 0):
        raise UsageError(f"hard_weight={hard_weight}: needs labels; expected labels, or 0")
    count = _check_shapes(
        student=(student_hidden, student_head), teacher=(teacher_hidden, teacher_head)
    )
    smaller = min(student_head.shape[1], teacher_head.shape[1])
    larger = max(student_head.shape[1], teacher_head.shape[1])
    if labels is None:
        labels = jnp.full(count, -1, jnp.int32)
    settings = _Settings(
        divergence=divergence,
        skew=0.0 if skew is None else float(skew),
        student_cap=student_cap,
        teacher_cap=teacher_cap,
        student_scale=student_scale,
        teacher_scale=teacher_scale,
        vocab_size=_vocab_size(vocab_size, smaller),
        chunk=min(chunk or chunk_size(count, larger), count),
        at_one=isinstance(temperature, numbers.Real) and temperature == 1,
        accumulate_dtype=accumulate_dtype,
    )
    factors = [jnp.asarray(a, jnp.float32) for a in (temperature, soft_weight, hard_weight)]
    teacher = (teacher_hidden, teacher_head)
    return _summed(settings, student_hidden, student_head, teacher, labels, weights, factors)


def vocab_cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    *,
    labels: jax.Array,
    weights: jax.Array,
    cap: float | None = None,
    scale: float = 1.0,
    vocab_size: int | None = None,
    chunk: int | None = None,
    accumulate_dtype: str = "float32",
) -> tuple[jax.Array, Arrays]:
    """The cross-entropy alone, summed over tokens with weights, as `vocab_divergence` computes it.

    Args:
      hidden: [N, D].
      head: [D, V].
      labels: int32 [N]; a negative label has no cross-entropy.
      weights: [N].
      cap: soft cap of the logits.
      scale: their factor, before the cap.
      vocab_size: how many ids are real; all by default.
      chunk: tokens at a time, as in `vocab_divergence`.
      accumulate_dtype: in which the head's gradient is summed over chunks.

    Returns:
      (loss, measures): the measures are "hard_loss", "student_entropy" and "accuracy".

    Raises:
      UsageError: shapes do not fit, or `vocab_size` is not a number of ids.

    Example:
      >>> hidden, head = jnp.array([[0.0, 2.0]]), jnp.eye(2)
      >>> labels, weights = jnp.array([1]), jnp.ones(1)
      >>> loss, _ = vocab_cross_entropy(hidden, head, labels=labels, weights=weights)
      >>> f"{loss:.4f}"
      '0.1269'

    Reference:
      Wijmans et al. 2025, "Cut your losses in large-vocabulary language models", section 3 (the
      problem; their kernel keeps no logits at all).
    """
    count = _check_shapes(student=(hidden, head))
    settings = _Settings(
        divergence="",
        skew=0.0,
        student_cap=cap,
        teacher_cap=None,
        student_scale=scale,
        teacher_scale=1.0,
        vocab_size=_vocab_size(vocab_size, head.shape[1]),
        chunk=min(chunk or chunk_size(count, head.shape[1]), count),
        at_one=True,
        accumulate_dtype=accumulate_dtype,
    )
    factors = [jnp.float32(1), jnp.float32(0), jnp.float32(1)]
    return _summed(settings, hidden, head, None, labels, weights, factors)


def _vocab_size(given: int | None, most: int) -> int:
    if given is not None and not 0 < given <= most:
        raise UsageError(f"vocab_size={given}: expected a number from 1 to {most}")
    return most if given is None else given


def chunk_size(count: int, vocab: int, platform: str | None = None) -> int:
    """How many of `count` tokens go through at a time, for a vocabulary of `vocab` ids.

    Args:
      platform: "cpu", "gpu" or "tpu"; that of JAX's default device if not given.
    """
    most = CHUNK_BYTES[platform or jax.default_backend()] // (_BYTES_A_LOGIT * vocab)
    chunks = math.ceil(count / max(most, 1))
    even = math.ceil(count / chunks)
    return even if even <= _TILE or chunks == 1 else math.ceil(even / _TILE) * _TILE


def _check_shapes(**pairs: tuple[jax.Array, jax.Array]) -> int:
    counts = {}
    for name, arrays in pairs.items():
        hidden, head = map(jnp.shape, arrays)
        if len(hidden) != 2 or len(head) != 2 or hidden[1] != head[0]:
            raise UsageError(f"{name}_hidden {hidden}, {name}_head {head}: expected [N, D], [D, V]")
        counts[name] = hidden[0]
    if len(set(counts.values())) > 1:
        raise UsageError(
            f"student_hidden has {counts['student']} tokens, teacher_hidden {counts['teacher']}: "
            "expected the same"
        )
    return counts["student"]


def _logits(hidden, head, cap, scale) -> tuple[jax.Array, jax.Array]:
    """Logits [C, V], float32, and their slope with respect to hidden @ head."""
    z = jnp.matmul(hidden, head, preferred_element_type=jnp.float32) * scale
    if cap is None:
        return z, jnp.float32(scale)
    squashed = jnp.tanh(z / cap)
    return cap * squashed, scale * (1 - jnp.square(squashed))


def _soft(settings: _Settings, z_s, z_t, log_q, log_p, temperature):
    """T^2 D [C], or T D, and its slope [C, V] with respect to the student's logits."""
    tempered = log_q, log_p
    if not settings.at_one:
        tempered = (jax.nn.log_softmax(z / temperature, axis=-1) for z in (z_s, z_t))
    divergence = DIVERGENCES[settings.divergence]
    value, slope = divergence.terms(*tempered, settings.skew)
    power = divergence.power
    return value * temperature**power, slope * temperature ** (power - 1)


def _entropy(logs: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.exp(logs) * logs, axis=-1)


def _chunk(settings: _Settings, student, teacher, labels, weights, factors):
    """The sums of one chunk, and the slope [C, Vs] of its loss with respect to hidden @ head."""
    real = settings.vocab_size
    temperature, soft_weight, hard_weight = factors
    z_s, inner = _logits(*student, settings.student_cap, settings.student_scale)
    z_s = z_s[:, :real]
    log_q = jax.nn.log_softmax(z_s, axis=-1)
    mark = jnp.arange(real) == labels[:, None]
    has_label = (labels >= 0).astype(jnp.float32)

    def cross_entropy(logs):
        return -jnp.sum(jnp.where(mark, logs, 0.0), axis=-1)

    hard = cross_entropy(log_q)
    best = jnp.argmax(z_s, axis=-1)
    loss = hard_weight * hard
    slope = (hard_weight * has_label)[:, None] * (jnp.exp(log_q) - mark)
    values = {
        "hard_loss": hard,
        "student_entropy": _entropy(log_q),
        "accuracy": (best == labels).astype(jnp.float32),
    }
    if teacher is not None:
        z_t = _logits(*teacher, settings.teacher_cap, settings.teacher_scale)[0][:, :real]
        log_p = jax.nn.log_softmax(z_t, axis=-1)
        soft, soft_slope = _soft(settings, z_s, z_t, log_q, log_p, temperature)
        loss += soft_weight * soft
        slope += soft_weight * soft_slope
        values |= {
            "soft_loss": soft,
            "teacher_loss": cross_entropy(log_p),
            "kl": kl_of_logs(log_p, log_q),
            "teacher_entropy": _entropy(log_p),
            "agreement": (best == jnp.argmax(z_t, axis=-1)).astype(jnp.float32),
        }
    values["loss"] = loss
    sums = {name: jnp.sum(jnp.where(weights != 0, weights * v, 0.0)) for name, v in values.items()}
    slope = jnp.pad(slope * weights[:, None], ((0, 0), (0, student[1].shape[1] - real))) * inner
    return sums, slope


def _summed(settings: _Settings, hidden, head, teacher, labels, weights, factors):
    """(loss, measures), differentiable with respect to `hidden` and `head`."""
    given = jax.lax.stop_gradient((teacher, labels, weights.astype(jnp.float32), factors))
    sums = dict(_fused(settings, hidden, head, given))
    return sums.pop("loss"), jax.lax.stop_gradient(sums)


def _over_chunks(settings: _Settings, hidden, head, given, *, gradient: bool):
    """The sums over all tokens, and, if asked for, the gradients of hidden states and head."""
    teacher, labels, weights, factors = given
    count = hidden.shape[0]
    chunks = math.ceil(count / settings.chunk)
    missing = chunks * settings.chunk - count

    # Every chunks-th token makes a chunk, so that each device of a mesh keeps a share of each.
    def split(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        return jnp.moveaxis(array.reshape(settings.chunk, chunks, *array.shape[1:]), 1, 0)

    def body(to_head, chunk):
        x, teacher_x, label, weight = chunk
        answer = None if teacher is None else (teacher_x, teacher[1])
        sums, slope = _chunk(settings, (x, head), answer, label, weight, factors)
        if not gradient:
            return to_head, (sums, None)
        slope = slope.astype(head.dtype)
        to_x = jnp.matmul(slope, head.T, preferred_element_type=jnp.float32).astype(x.dtype)
        more = jnp.matmul(x.T, slope, preferred_element_type=jnp.float32)
        return to_head + more.astype(to_head.dtype), (sums, to_x)

    to_head = jnp.zeros(head.shape, settings.accumulate_dtype) if gradient else None
    teacher_hidden = None if teacher is None else teacher[0]
    items = jax.tree.map(split, (hidden, teacher_hidden, labels, weights))
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(settings: _Settings, hidden: jax.Array, head: jax.Array, given: Any) -> Arrays:
    return _over_chunks(settings, hidden, head, given, gradient=False)[0]


def _forward(settings: _Settings, hidden: jax.Array, head: jax.Array, given: Any):
    return _over_chunks(settings, hidden, head, given, gradient=True)


def _backward(settings: _Settings, gradients: tuple[jax.Array, jax.Array], cotangents: Arrays):
    factor = cotangents["loss"]
    scaled = tuple((factor * g.astype(jnp.float32)).astype(g.dtype) for g in gradients)
    return (*scaled, None)


_fused.defvjp(_forward, _backward)
