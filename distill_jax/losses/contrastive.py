"""Contrastive distillation: is this pair of embeddings from the same example?

Left out on purpose: embeddings, memory banks, the choice of negatives and the normaliser of the
scores, all of which have state and belong to a method.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.errors import UsageError

# Added to the probabilities, as in the authors' code.
NCE_EPSILON = 1e-7


def contrastive_nce(
    positive: Float[Array, " batch"], negatives: Float[Array, "batch negatives"], *, count: int
) -> Float[Array, " batch"]:
    """Contrastive representation distillation (CRD): noise-contrastive estimation, per example.

    -[log(P+ / (P+ + K/N + e)) + sum_k log((K/N) / (P-_k + K/N + e))] with e = 1e-7: K negatives
    from N examples, so a pair drawn at random has the score 1/N.

    One anchor. The paper's loss is the sum of two: the student's embedding against the teacher's
    bank, and the teacher's against the student's.

    Args:
      positive: [B], the score exp(u . v / tau) / Z of the pair from one example; not negative. A
        score of 0 counts as the smallest positive float32, so that the loss stays finite.
      negatives: [B, K], the scores of the pairs from different examples; not negative; K >= 1.
      count: N, the number of examples in the data set.

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: the shapes are not [B] and [B, K] with K >= 1, or `count` is not positive.

    Example:
      >>> positive, negatives = jnp.array([0.3]), jnp.array([[0.1, 0.0]])
      >>> [f"{value:.4f}" for value in contrastive_nce(positive, negatives, count=20)]
      ['0.9808']

    Reference:
      Tian, Krishnan and Isola 2020, "Contrastive representation distillation", section 3.
    """
    a, b = jnp.shape(positive), jnp.shape(negatives)
    if len(a) != 1 or len(b) != 2 or a[0] != b[0] or not b[1]:
        raise UsageError(
            f"positive {a}, negatives {b}: expected [B] and [B, K] with one B and K at least 1"
        )
    if not count > 0:
        raise UsageError(f"count={count}: expected the number of examples in the data set")
    positive, negatives = (jnp.asarray(x).astype(jnp.float32) for x in (positive, negatives))
    noise = b[1] / count
    positive = jnp.maximum(positive, jnp.finfo(jnp.float32).tiny)
    hit = jnp.log(positive) - jnp.log(positive + (noise + NCE_EPSILON))
    rejections = -jnp.log1p((negatives + NCE_EPSILON) / noise)
    return -(hit + jnp.sum(rejections, axis=1))
