"""Divergences over a vocabulary from hidden states and heads: the logits are never built whole.

[N, V] logits of a language model take gigabytes: 8,192 tokens of 128,256 in float32 are 4.2 GB, and
a divergence by automatic differentiation keeps a dozen such arrays. Here tokens go through in
chunks, and each chunk's gradient is computed at once, beside its value. At no time is more alive
than the logits of one chunk, the heads and their gradient. Left out on purpose: the models, the
shift of the labels, and what a mask means.
"""

import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax.errors import UsageError
from distill_jax.losses.vocab.chunks import Arrays, Readout, Settings, summed
from distill_jax.losses.vocab.formulas import VocabDivergence


def vocab_divergence(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array | Sequence[jax.Array],
    teacher_head: jax.Array | Sequence[jax.Array],
    *,
    weights: jax.Array,
    divergence: str = "forward_kl",
    skew: float | None = None,
    temperature: float | jax.Array = 1.0,
    labels: jax.Array | None = None,
    soft_weight: float | jax.Array = 1.0,
    hard_weight: float | jax.Array = 0.0,
    student_cap: float | None = None,
    teacher_cap: float | None | Sequence[float | None] = None,
    student_scale: float = 1.0,
    teacher_scale: float | Sequence[float] = 1.0,
    teacher_weights: Sequence[float] = (),
    vocab_size: int | None = None,
    chunk: int | None = None,
    accumulate_dtype: str = "float32",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Arrays]:
    """T^2 D(P, Q) and the cross-entropy of the same logits, summed over tokens with weights.

    T^2 keeps the size of the gradient as T grows; for the total variation, which is linear in the
    difference of the logits, it is T.

    Exact: every entry of the vocabulary counts, in float32, whatever the dtype of the operands. The
    result is differentiable, once, with respect to the student's hidden states and head; its
    gradients are computed with the value. The teacher, labels, weights and the temperature are
    constants.

    The logits of a network are f(scale * hidden @ head), with f(z) = cap * tanh(z / cap) where a
    cap is given (Gemma 2), in float32; then P and Q are their softmax at temperature T. Of several
    teachers P is the weighted mean, sum_i w_i softmax(z_i / T), kept in log space.

    Args:
      student_hidden: [N, Ds], of N tokens.
      student_head: [Ds, Vs].
      teacher_hidden: [N, Dt]; of several teachers a sequence, each with a width of its own.
      teacher_head: [Dt, Vt]; likewise.
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
      teacher_cap: of the teacher's; of several one for all, or one each.
      student_scale: factor of the student's logits, before the cap.
      teacher_scale: of the teacher's; likewise.
      teacher_weights: of several teachers in their mean, each >= 0, normalised here; () for equal
        ones.
      vocab_size: V, how many ids are real; all networks are read up to there, as if the rest, with
        which vocabularies are padded, did not exist. The smallest of Vs and Vt by default.
      chunk: tokens at a time on a device; by default from the shapes and `CHUNK_BYTES`.
      accumulate_dtype: in which the head's gradient is summed over chunks.
      mesh: devices with the axes `data` and `fsdp`, which split the tokens, N a multiple of their
        product, and `tensor`, which splits the vocabulary. A head may lie in shards of either side;
        the gradient of the student's comes in shards of both. None leaves it to the compiler.

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
    minimised = VocabDivergence(divergence, skew)
    if isinstance(temperature, numbers.Real) and not temperature > 0:
        raise UsageError(f"temperature={temperature}: expected a positive number")
    if labels is None and not (isinstance(hard_weight, numbers.Real) and hard_weight == 0):
        raise UsageError(f"hard_weight={hard_weight}: needs labels; expected labels, or 0")
    teachers, readouts = _teachers(
        teacher_hidden, teacher_head, teacher_cap, teacher_scale, teacher_weights
    )
    count = check_shapes((student_hidden, student_head), teachers)
    smallest = min(head.shape[1] for _, head in ((student_hidden, student_head), *teachers))
    if labels is None:
        labels = jnp.full(count, -1, jnp.int32)
    settings = Settings(
        divergence=minimised,
        student=Readout(student_cap, student_scale),
        teachers=readouts,
        vocab_size=checked_vocab_size(vocab_size, smallest),
        chunk=chunk,
        at_one=isinstance(temperature, numbers.Real) and temperature == 1,
        accumulate_dtype=accumulate_dtype,
        mesh=mesh,
    )
    factors = [jnp.asarray(a, jnp.float32) for a in (temperature, soft_weight, hard_weight)]
    others = teachers, {}
    return summed(settings, student_hidden, student_head, others, labels, weights, factors)


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
    mesh: Mesh | None = None,
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
      mesh: as in `vocab_divergence`.

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
    check_shapes((hidden, head))
    settings = Settings(
        divergence=None,
        student=Readout(cap, scale),
        teachers=(),
        vocab_size=checked_vocab_size(vocab_size, head.shape[1]),
        chunk=chunk,
        at_one=True,
        accumulate_dtype=accumulate_dtype,
        mesh=mesh,
    )
    factors = [jnp.float32(1), jnp.float32(0), jnp.float32(1)]
    return summed(settings, hidden, head, ((), {}), labels, weights, factors)


def checked_vocab_size(given: int | None, most: int) -> int:
    """How many ids are real, all of them by default; UsageError where it cannot be."""
    if given is not None and not 0 < given <= most:
        raise UsageError(f"vocab_size={given}: expected a number from 1 to {most}")
    return most if given is None else given


def _teachers(hidden, head, cap, scale, weights):
    """The (hidden states, head) and the readout of each teacher that has a weight."""
    if not isinstance(hidden, Sequence):
        hidden, head = (hidden,), (head,)
    count = len(hidden)
    each = {
        name: value if isinstance(value, Sequence) else (value,) * count
        for name, value in {"teacher_cap": cap, "teacher_scale": scale}.items()
    }
    each |= {"teacher_head": head, "teacher_weights": weights or (1.0,) * count}
    for name, values in each.items():
        if len(values) != count or not count:
            raise UsageError(f"{name}: {len(values)} of them; expected {count}, one a teacher")
    total = sum(each["teacher_weights"])
    if not total > 0 or min(each["teacher_weights"]) < 0:
        raise UsageError(f"teacher_weights={tuple(weights)}: expected numbers >= 0, one above 0")
    kept = [
        ((own, other), Readout(cap, scale, weight / total))
        for own, other, cap, scale, weight in zip(
            hidden, head, each["teacher_cap"], each["teacher_scale"], each["teacher_weights"],
            strict=True,
        )
        if weight > 0
    ]  # fmt: skip
    return tuple(pair for pair, _ in kept), tuple(readout for _, readout in kept)


def check_shapes(
    student: tuple[jax.Array, jax.Array], teachers: Sequence[tuple[jax.Array, jax.Array]] = ()
) -> int:
    """The number of tokens; UsageError where arrays do not fit together."""
    counts = []
    for name, arrays in (("student", student), *(("teacher", one) for one in teachers)):
        hidden, head = map(jnp.shape, arrays)
        if len(hidden) != 2 or len(head) != 2 or hidden[1] != head[0]:
            raise UsageError(f"{name}_hidden {hidden}, {name}_head {head}: expected [N, D], [D, V]")
        counts.append(hidden[0])
        if counts[-1] != counts[0]:
            raise UsageError(
                f"student_hidden has {counts[0]} tokens, teacher_hidden {counts[-1]}: "
                "expected the same"
            )
    return counts[0]
