"""Divergences over a vocabulary from hidden states and heads: the logits are never built whole.

[N, V] logits of a language model take gigabytes: 8,192 tokens of 128,256 in float32 are 4.2 GB, and
a divergence by automatic differentiation keeps a dozen such arrays. Here tokens are computed in
chunks, and each chunk's gradient together with its value. At most the logits of one chunk, the
heads and their gradient are alive at a time.

Exact: every id of the vocabulary counts, in float32, whatever the dtype of the operands. The result
is differentiable, once, in the student's hidden states and head; teachers, labels, weights,
temperature and the other factors are constants. Left out on purpose: the models, the shift of the
labels, and what a mask means.
"""

import dataclasses
import numbers
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill_jax.errors import UsageError
from distill_jax.losses.vocab.formulas import VocabDivergence
from distill_jax.losses.vocab.loop import summed
from distill_jax.losses.vocab.operands import (
    Factors,
    Heads,
    LossSpec,
    Measures,
    Readout,
    Tokens,
    VocabSettings,
    check_shapes,
)

ManyArrays = Sequence[Float[Array, "_ _"]]


def vocab_divergence(
    student_hidden: Float[Array, "tokens student_dim"],
    student_head: Float[Array, "student_dim student_vocab"],
    teacher_hidden: Float[Array, "tokens teacher_dim"] | ManyArrays,
    teacher_head: Float[Array, "teacher_dim teacher_vocab"] | ManyArrays,
    *,
    weights: Float[Array, " tokens"],
    labels: Int[Array, " tokens"] | None = None,
    divergence: str | VocabDivergence = "forward_kl",
    temperature: float | Float[Array, ""] = 1.0,
    soft_weight: float | Float[Array, ""] = 1.0,
    hard_weight: float | Float[Array, ""] = 0.0,
    student_readout: Readout = Readout(),
    teacher_readout: Readout | Sequence[Readout] = Readout(),
    settings: VocabSettings = VocabSettings(),
) -> tuple[Float[Array, ""], Measures]:
    """Divergence from teachers, and cross-entropy, summed over tokens with weights.

    sum_n weight_n (soft_weight T^2 D(P_n, Q_n) + hard_weight CE_n), with P and Q the softmax of
    teacher and student at T; of several teachers P = sum_i w_i softmax(z_i / T). T^2 keeps the size
    of the gradient as T grows; for the total variation, linear in the logits, the factor is T.

    Args:
      student_hidden: [N, Ds], of N tokens; floating.
      student_head: [Ds, Vs].
      teacher_hidden: [N, Dt], no gradient; of several teachers a sequence, each of its own width.
      teacher_head: [Dt, Vt], no gradient; likewise.
      weights: [N]. A mask over the number of tokens that it leaves in the global batch gives the
        mean; a token of weight 0 may hold anything finite.
      labels: int32 [N], the next tokens; a negative label has no cross-entropy.
      divergence: D, one of `FORMULAS`, or a `VocabDivergence` where its skew is not the default.
      temperature: T, positive; a number or a scalar array.
      soft_weight: of T^2 D; likewise.
      hard_weight: of the cross-entropy at T = 1; likewise.
      student_readout: cap and scale of the logits.
      teacher_readout: likewise; of several one for all, or one each, with their weights w_i in P.
      settings: ids that are real, chunks and mesh.

    Returns:
      (loss, measures): float32 sums over tokens with `weights`; see `operands.Measures`.

    Raises:
      UsageError: a shape, name or number does not fit, or `hard_weight` is given without labels.

    Example:
      >>> student, teacher, head = jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 3.0]]), jnp.eye(2)
      >>> loss, measures = vocab_divergence(student, head, teacher, head, weights=jnp.ones(1))
      >>> f"{loss:.4f} {measures['teacher_entropy']:.4f}"
      '0.3278 0.3653'

    Reference:
      Hsu et al. 2024, "Liger Kernel: efficient Triton kernels for LLM training" (chunks, gradients
      in the forward pass). The functions in `losses` cite the papers of the divergences.
    """
    teachers = _teachers(teacher_hidden, teacher_head, teacher_readout)
    check_shapes((student_hidden, student_head), [one[:2] for one in teachers])
    hidden, teacher_heads, readouts = (tuple(each) for each in zip(*teachers, strict=True))
    heads = Heads(student_head, teacher_heads)
    spec = LossSpec.of(
        heads,
        student_readout,
        settings,
        divergence=VocabDivergence(divergence) if isinstance(divergence, str) else divergence,
        teachers=readouts,
        temperature=temperature,
    )
    labels = _labels(labels, hard_weight, len(student_hidden))
    tokens = Tokens(student_hidden, hidden, None, labels, weights)
    return summed(spec, tokens, heads, Factors.of(temperature, soft_weight, hard_weight))


def vocab_cross_entropy(
    hidden: Float[Array, "tokens dim"],
    head: Float[Array, "dim vocab"],
    *,
    labels: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
    readout: Readout = Readout(),
    settings: VocabSettings = VocabSettings(),
) -> tuple[Float[Array, ""], Measures]:
    """The cross-entropy alone, summed over tokens with weights, as `vocab_divergence` computes it.

    sum_n weight_n (-log Q_n[label_n]), with Q the softmax of the logits.

    Args:
      hidden: [N, D]; floating.
      head: [D, V].
      labels: int32 [N]; a negative label has no cross-entropy.
      weights: [N].
      readout: cap and scale of the logits.
      settings: ids that are real, chunks and mesh.

    Returns:
      (loss, measures): the measures are "hard_loss", "student_entropy" and "accuracy".

    Raises:
      UsageError: shapes do not fit, or `settings.vocab_size` is not a number of ids.

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
    check_shapes((hidden, head))
    heads = Heads(head)
    spec = LossSpec.of(heads, readout, settings)
    tokens = Tokens(hidden, (), None, labels, weights)
    return summed(spec, tokens, heads, Factors.of(1.0, 0.0, 1.0))


def _labels(
    given: Int[Array, " tokens"] | None, hard_weight: float | Float[Array, ""], count: int
) -> Int[Array, " tokens"]:
    """The labels, or none at any token; UsageError if the cross-entropy needs them."""
    if given is not None:
        return given
    if not (isinstance(hard_weight, numbers.Real) and hard_weight == 0):
        raise UsageError(f"hard_weight={hard_weight}: needs labels; expected labels, or 0")
    return jnp.full(count, -1, jnp.int32)


def _teachers(hidden, head, readout) -> list[tuple[Array, Array, Readout]]:
    """(hidden states, head, readout) of each teacher that has a weight; the weights sum to 1."""
    if not isinstance(hidden, Sequence):
        hidden, head = (hidden,), (head,)
    count = len(hidden)
    readouts = readout if isinstance(readout, Sequence) else (readout,) * count
    for name, values in {"teacher_head": head, "teacher_readout": readouts}.items():
        if len(values) != count or not count:
            raise UsageError(f"{name}: {len(values)} of them; expected {count}, one a teacher")
    weights = tuple(readout.weight for readout in readouts)
    if not sum(weights) > 0 or min(weights) < 0:
        raise UsageError(f"weights of teachers {weights}: expected numbers >= 0, one above 0")
    return [
        (own, other, dataclasses.replace(readout, weight=readout.weight / sum(weights)))
        for own, other, readout in zip(hidden, head, readouts, strict=True)
        if readout.weight > 0
    ]
