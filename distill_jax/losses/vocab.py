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
    soft_weight: float
    hard_weight: float
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
    soft_weight: float = 1.0,
    hard_weight: float = 0.0,
    student_cap: float | None = None,
    teacher_cap: float | None = None,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    vocab_size: int | None = None,
    chunk: int | None = None,
    accumulate_dtype: str = "float32",
) -> tuple[jax.Array, Arrays]:
    """T^2 D(P, Q) and the cross-entropy of the same logits, summed over tokens with weights.

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
        "total_variation", each as the function of that name in this room. "skew_reverse_kl" is
        KL(Q || (1 - skew) P + skew Q) (Ko et al., 2024, section 3.1).
      skew: beta of "jensen_shannon" (1/2 by default), alpha of the skewed ones (0.1 by default).
      temperature: T, positive; a number or a scalar array.
      labels: int32 [N], the next tokens. A negative label has no cross-entropy.
      soft_weight: of T^2 D.
      hard_weight: of the cross-entropy at T = 1.
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
      "teacher_loss" is the teacher's cross-entropy. Perplexities are exp of the two cross-entropies
      where weights sum to 1. Without labels, both are 0.

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
    default = DIVERGENCES[divergence][1]
    if default is None and skew is not None:
        raise UsageError(f"skew={skew}: {divergence} has none; expected None")
    skew = default if skew is None else skew
    check_fraction("skew", skew)
    if isinstance(temperature, numbers.Real) and not temperature > 0:
        raise UsageError(f"temperature={temperature}: expected a positive number")
    if hard_weight and labels is None:
        raise UsageError(f"hard_weight={hard_weight}: needs labels; expected labels, or 0")
    count = _check_shapes(student_hidden, student_head, teacher_hidden, teacher_head)
    smaller = min(student_head.shape[1], teacher_head.shape[1])
    vocab_size = smaller if vocab_size is None else vocab_size
    if not 0 < vocab_size <= smaller:
        raise UsageError(f"vocab_size={vocab_size}: expected a number from 1 to {smaller}")
    if chunk is None:
        chunk = chunk_size(count, max(student_head.shape[1], teacher_head.shape[1]))
    if labels is None:
        labels = jnp.full(count, -1, jnp.int32)
    settings = _Settings(
        divergence=divergence,
        skew=0.0 if skew is None else float(skew),
        soft_weight=float(soft_weight),
        hard_weight=float(hard_weight),
        student_cap=student_cap,
        teacher_cap=teacher_cap,
        student_scale=student_scale,
        teacher_scale=teacher_scale,
        vocab_size=vocab_size,
        chunk=min(chunk, count),
        at_one=isinstance(temperature, numbers.Real) and temperature == 1,
        accumulate_dtype=accumulate_dtype,
    )
    given = (teacher_hidden, teacher_head, labels, weights, jnp.asarray(temperature, jnp.float32))
    sums = _fused(settings, student_hidden, student_head, jax.lax.stop_gradient(given))
    measures = jax.lax.stop_gradient({name: sums[name] for name in sums if name != "loss"})
    return sums["loss"], measures


def chunk_size(count: int, vocab: int, platform: str | None = None) -> int:
    """How many of `count` tokens go through at a time, for a vocabulary of `vocab` ids.

    Args:
      platform: "cpu", "gpu" or "tpu"; that of JAX's default device if not given.
    """
    most = CHUNK_BYTES[platform or jax.default_backend()] // (_BYTES_A_LOGIT * vocab)
    chunks = math.ceil(count / max(most, 1))
    even = math.ceil(count / chunks)
    return even if even <= _TILE or chunks == 1 else math.ceil(even / _TILE) * _TILE


def _check_shapes(student_hidden, student_head, teacher_hidden, teacher_head) -> int:
    shapes = {
        "student": (jnp.shape(student_hidden), jnp.shape(student_head)),
        "teacher": (jnp.shape(teacher_hidden), jnp.shape(teacher_head)),
    }
    for name, (hidden, head) in shapes.items():
        if len(hidden) != 2 or len(head) != 2 or hidden[1] != head[0]:
            raise UsageError(f"{name}_hidden {hidden}, {name}_head {head}: expected [N, D], [D, V]")
    counts = [hidden[0] for hidden, _ in shapes.values()]
    if counts[0] != counts[1]:
        raise UsageError(
            f"student_hidden has {counts[0]} tokens, teacher_hidden {counts[1]}: expected the same"
        )
    return counts[0]


def _logits(hidden, head, cap, scale) -> tuple[jax.Array, jax.Array]:
    """Logits [C, V], float32, and their slope with respect to hidden @ head."""
    z = jnp.matmul(hidden, head, preferred_element_type=jnp.float32) * scale
    if cap is None:
        return z, jnp.float32(scale)
    squashed = jnp.tanh(z / cap)
    return cap * squashed, scale * (1 - jnp.square(squashed))


def _chunk(settings: _Settings, student, teacher, labels, weights, temperature):
    """The sums of one chunk, and the slope [C, Vs] of its loss with respect to hidden @ head."""
    real = settings.vocab_size
    z_s, inner = _logits(*student, settings.student_cap, settings.student_scale)
    z_t, _ = _logits(*teacher, settings.teacher_cap, settings.teacher_scale)
    z_s, z_t = z_s[:, :real], z_t[:, :real]
    log_q, log_p = (jax.nn.log_softmax(z, axis=-1) for z in (z_s, z_t))
    if settings.at_one:
        tempered = log_q, log_p
    else:
        tempered = [jax.nn.log_softmax(z / temperature, axis=-1) for z in (z_s, z_t)]
    soft, slope = DIVERGENCES[settings.divergence][0](*tempered, settings.skew)
    soft, slope = soft * jnp.square(temperature), slope * temperature
    mark = jnp.arange(real) == labels[:, None]
    has_label = (labels >= 0).astype(jnp.float32)
    hard, teacher_hard = (-jnp.sum(jnp.where(mark, logs, 0.0), axis=-1) for logs in (log_q, log_p))
    slope *= settings.soft_weight
    if settings.hard_weight:
        slope += (settings.hard_weight * has_label)[:, None] * (jnp.exp(log_q) - mark)
    slope *= weights[:, None]
    values = {
        "loss": settings.soft_weight * soft + settings.hard_weight * hard,
        "soft_loss": soft,
        "hard_loss": hard,
        "teacher_loss": teacher_hard,
        "kl": DIVERGENCES["forward_kl"][0](log_q, log_p, 0.0).value,
        "student_entropy": -jnp.sum(jnp.exp(log_q) * log_q, axis=-1),
        "teacher_entropy": -jnp.sum(jnp.exp(log_p) * log_p, axis=-1),
        "agreement": (jnp.argmax(z_s, axis=-1) == jnp.argmax(z_t, axis=-1)).astype(jnp.float32),
    }
    sums = {name: jnp.sum(jnp.where(weights != 0, weights * v, 0.0)) for name, v in values.items()}
    slope = jnp.pad(slope, ((0, 0), (0, student[1].shape[1] - real))) * inner
    return sums, slope


def _over_chunks(settings: _Settings, hidden, head, given, *, gradient: bool):
    """The sums over all tokens, and, if asked for, the gradients of hidden states and head."""
    teacher_hidden, teacher_head, labels, weights, temperature = given
    count = hidden.shape[0]
    chunks = math.ceil(count / settings.chunk)
    missing = chunks * settings.chunk - count

    # Every chunks-th token makes a chunk, so that each device of a mesh keeps a share of each.
    def split(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        return jnp.moveaxis(array.reshape(settings.chunk, chunks, *array.shape[1:]), 1, 0)

    def body(to_head, chunk):
        x, teacher_x, label, weight = chunk
        student, teacher = (x, head), (teacher_x, teacher_head)
        sums, slope = _chunk(settings, student, teacher, label, weight, temperature)
        if not gradient:
            return to_head, (sums, None)
        slope = slope.astype(head.dtype)
        to_x = jnp.matmul(slope, head.T, preferred_element_type=jnp.float32).astype(x.dtype)
        more = jnp.matmul(x.T, slope, preferred_element_type=jnp.float32)
        return to_head + more.astype(to_head.dtype), (sums, to_x)

    to_head = jnp.zeros(head.shape, settings.accumulate_dtype) if gradient else None
    items = tuple(split(a) for a in (hidden, teacher_hidden, labels, weights.astype(jnp.float32)))
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
