"""The KL from an answer that names a few ids of a vocabulary: of stored teachers.

All that `vocab` says of chunks, heads and meshes holds here too. Left out on purpose: how an answer
is made and where it lies.
"""

import numbers

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax.errors import UsageError
from distill_jax.losses.vocab.chunks import Arrays, Readout, Settings, summed
from distill_jax.losses.vocab.divergence import check_shapes, checked_vocab_size
from distill_jax.losses.vocab.formulas import VocabDivergence


def vocab_sparse_kl(
    hidden: jax.Array,
    head: jax.Array,
    *,
    ids: jax.Array,
    log_probs: jax.Array,
    log_rest: jax.Array | None = None,
    labels: jax.Array,
    weights: jax.Array,
    temperature: float | jax.Array = 1.0,
    soft_weight: float | jax.Array = 1.0,
    hard_weight: float | jax.Array = 0.0,
    cap: float | None = None,
    scale: float = 1.0,
    vocab_size: int | None = None,
    chunk: int | None = None,
    accumulate_dtype: str = "float32",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Arrays]:
    """T^2 KL(P || Q) of a P that names K ids, and the cross-entropy, summed over tokens.

    Without `log_rest`, P is nothing but these ids. With P = count / draws of draws from a teacher
    at temperature T the gradient is an unbiased estimate of the whole forward KL's; the value is
    not, for the draws' own entropy is smaller than the teacher's.

    With `log_rest`, the outcomes are the K ids and all others together: with p_r and q_r their
    masses, KL = sum_k p_k log(p_k / q_k) + p_r log(p_r / q_r), a lower bound of the whole forward
    KL, whose slope with respect to a logit of the rest is (q_j - p_r q_j / q_r) / T. The K + 1
    numbers are normalised here, so that a coarse dtype does no harm; an absent rest is never
    divided among the K ids, which would teach a distribution that is too sure.

    Args:
      hidden: [N, D], the student's, of N tokens.
      head: [D, V], the student's.
      ids: integer [N, K], distinct in a token; a negative one names nothing.
      log_probs: float [N, K], of each at temperature T, finite where the id is not negative.
      log_rest: float [N], log p_r, -inf for none.
      labels: int32 [N]; a negative label has no cross-entropy.
      weights: [N], of each token in the sum.
      temperature: T, positive; a number or a scalar array.
      soft_weight: of T^2 KL.
      hard_weight: of the cross-entropy at T = 1.
      cap: soft cap of the student's logits.
      scale: their factor, before the cap.
      vocab_size: how many ids are real; all by default.
      chunk: tokens at a time, as in `vocab_divergence`.
      accumulate_dtype: in which the head's gradient is summed over chunks.
      mesh: as in `vocab_divergence`; answers lie as the tokens do.

    Returns:
      (loss, measures): the measures are "soft_loss", "hard_loss", "student_entropy", "accuracy",
      and with `log_rest` "agreement", how often the student's likeliest id is the likeliest of
      the answer.

    Raises:
      UsageError: shapes do not fit, or a number is out of range.

    Example:
      >>> hidden, head = jnp.array([[0.0, 2.0, 1.0]]), jnp.eye(3)
      >>> answer = {"ids": jnp.array([[1]]), "log_probs": jnp.log(jnp.array([[0.5]]))}
      >>> loss, _ = vocab_sparse_kl(
      ...     hidden, head, **answer, log_rest=jnp.log(jnp.array([0.5])),
      ...     labels=jnp.array([1]), weights=jnp.ones(1),
      ... )
      >>> f"{loss:.4f}"
      '0.0578'

    Reference:
      Anshumann et al. 2025, "Sparse logit sampling: accelerating knowledge distillation in LLMs",
      section 3 (the bias of the renormalised top K) and section 4 (random sampling, RS-KD).
    """
    count = check_shapes((hidden, head))
    shape = jnp.shape(ids)
    if len(shape) != 2 or shape[0] != count or jnp.shape(log_probs) != shape or not shape[1]:
        raise UsageError(
            f"ids {shape}, log_probs {jnp.shape(log_probs)}: expected [N, K] of {count} tokens"
        )
    if log_rest is not None and jnp.shape(log_rest) != (count,):
        raise UsageError(f"log_rest {jnp.shape(log_rest)}: expected [N] of {count} tokens")
    if isinstance(temperature, numbers.Real) and not temperature > 0:
        raise UsageError(f"temperature={temperature}: expected a positive number")
    settings = Settings(
        divergence=VocabDivergence("forward_kl"),
        student=Readout(cap, scale),
        teachers=(),
        vocab_size=checked_vocab_size(vocab_size, head.shape[1]),
        chunk=chunk,
        at_one=isinstance(temperature, numbers.Real) and temperature == 1,
        accumulate_dtype=accumulate_dtype,
        mesh=mesh,
    )
    factors = [jnp.asarray(a, jnp.float32) for a in (temperature, soft_weight, hard_weight)]
    answer = _normalised(jnp.asarray(ids, jnp.int32), log_probs, log_rest)
    return summed(settings, hidden, head, ((), answer), labels, weights, factors)


def _normalised(ids: jax.Array, log_probs: jax.Array, log_rest: jax.Array | None) -> Arrays:
    """The answer in float32, its probabilities summing to 1."""
    log_probs = jnp.where(ids < 0, -jnp.inf, jnp.asarray(log_probs, jnp.float32))
    if log_rest is None:
        total = jax.nn.logsumexp(log_probs, axis=-1)
        total = jnp.where(jnp.isfinite(total), total, 0.0)  # of a token that names nothing
        return {"ids": ids, "log_probs": log_probs - total[:, None]}
    log_rest = jnp.asarray(log_rest, jnp.float32)
    total = jnp.logaddexp(jax.nn.logsumexp(log_probs, axis=-1), log_rest)
    return {"ids": ids, "log_probs": log_probs - total[:, None], "log_rest": log_rest - total}
