"""The KL from a stored answer, which names a few ids of the vocabulary.

There are two kinds of answer. *Sampled ids*, without `log_rest`: P has no mass but on these ids.
With p_k = count_k / draws of draws from a teacher at T, the gradient is an unbiased estimate of
that of the full forward KL. The value is biased: the draws have less entropy than the teacher.

*The top ids and the rest*, with `log_rest`: the outcomes are the K ids, and all other ids together.
The KL is a lower bound of the full forward KL; its slope in a logit of the rest is
(q_j - p_r q_j / q_r) / T. P is normalised here over the K + 1 outcomes, since a coarse dtype rounds
them; never over the K ids alone, because that makes the student overconfident.

Chunks, heads and meshes are as in `divergence`. Left out on purpose: how an answer is made and
stored.
"""

import jax
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
    SparseAnswer,
    Tokens,
    VocabSettings,
    check_shapes,
)

_FORWARD_KL = VocabDivergence("forward_kl")


def vocab_sparse_kl(
    hidden: Float[Array, "tokens dim"],
    head: Float[Array, "dim vocab"],
    *,
    ids: Int[Array, "tokens named"],
    log_probs: Float[Array, "tokens named"],
    log_rest: Float[Array, " tokens"] | None = None,
    labels: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
    temperature: float | Float[Array, ""] = 1.0,
    soft_weight: float | Float[Array, ""] = 1.0,
    hard_weight: float | Float[Array, ""] = 0.0,
    readout: Readout = Readout(),
    settings: VocabSettings = VocabSettings(),
) -> tuple[Float[Array, ""], Measures]:
    """T^2 KL(P || Q) of a P that names K ids, and the cross-entropy, summed over tokens.

    sum_n weight_n (soft_weight T^2 KL_n + hard_weight CE_n), where KL_n is
    sum_k p_k log(p_k / q_k) and, with `log_rest`, + p_r log(p_r / q_r) for all other ids together.

    Args:
      hidden: [N, D], the student's, of N tokens; floating.
      head: [D, V], the student's.
      ids: integer [N, K], distinct within a token; a negative one names nothing.
      log_probs: [N, K], log p_k at temperature T, finite where the id is not negative.
      log_rest: [N], log p_r, -inf for none.
      labels: int32 [N]; a negative label has no cross-entropy.
      weights: [N], of each token in the sum.
      temperature: T, positive; a number or a scalar array.
      soft_weight: of T^2 KL.
      hard_weight: of the cross-entropy at T = 1.
      readout: cap and scale of the student's logits.
      settings: ids that are real, chunks and mesh; answers are sharded as the tokens.

    Returns:
      (loss, measures): float32 sums over tokens with `weights`; see `operands.Measures`.

    Raises:
      UsageError: shapes do not fit, or a number is out of range.

    Example:
      >>> hidden, head, half = jnp.array([[0.0, 2.0, 1.0]]), jnp.eye(3), jnp.log(jnp.array([0.5]))
      >>> loss, _ = vocab_sparse_kl(
      ...     hidden, head, ids=jnp.array([[1]]), log_probs=half[:, None], log_rest=half,
      ...     labels=jnp.array([1]), weights=jnp.ones(1),
      ... )
      >>> f"{loss:.4f}"
      '0.0578'

    Reference:
      Anshumann et al. 2025, "Sparse logit sampling: accelerating knowledge distillation in LLMs",
      section 3 (the bias of the renormalised top K) and section 4 (random sampling, RS-KD).
    """
    _check_answer(check_shapes((hidden, head)), ids, log_probs, log_rest)
    heads = Heads(head)
    spec = LossSpec.of(heads, readout, settings, divergence=_FORWARD_KL, temperature=temperature)
    answer = _normalised(jnp.asarray(ids, jnp.int32), log_probs, log_rest)
    tokens = Tokens(hidden, (), answer, labels, weights)
    return summed(spec, tokens, heads, Factors.of(temperature, soft_weight, hard_weight))


def _check_answer(count: int, ids, log_probs, log_rest) -> None:
    """UsageError unless the shapes are [count, K], [count, K] and [count]."""
    shape = jnp.shape(ids)
    if len(shape) != 2 or shape[0] != count or jnp.shape(log_probs) != shape or not shape[1]:
        raise UsageError(
            f"ids {shape}, log_probs {jnp.shape(log_probs)}: expected [N, K] of {count} tokens"
        )
    if log_rest is not None and jnp.shape(log_rest) != (count,):
        raise UsageError(f"log_rest {jnp.shape(log_rest)}: expected [N] of {count} tokens")


def _normalised(ids: Array, log_probs: Array, log_rest: Array | None) -> SparseAnswer:
    """The answer in float32, with probabilities that sum to 1."""
    log_probs = jnp.where(ids < 0, -jnp.inf, jnp.asarray(log_probs, jnp.float32))
    if log_rest is None:
        total = jax.nn.logsumexp(log_probs, axis=-1)
        total = jnp.where(jnp.isfinite(total), total, 0.0)  # of a token that names nothing
        return SparseAnswer(ids, log_probs - total[:, None], None)
    log_rest = jnp.asarray(log_rest, jnp.float32)
    total = jnp.logaddexp(jax.nn.logsumexp(log_probs, axis=-1), log_rest)
    return SparseAnswer(ids, log_probs - total[:, None], log_rest - total)
