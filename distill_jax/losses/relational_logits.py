"""Relations between logits: over the classes of an example, and over the examples of a batch.

`standardise` belongs to one example. The other losses compare examples with each other, so their
value depends on the batch: B is the number of rows that arrive, padded ones included. Left out on
purpose: the factor T^2 and the set of temperatures that some papers use, both a method's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.errors import UsageError
from distill_jax.losses.logits import as_float32, log_probabilities
from distill_jax.losses.vectors import centred, einsum, safe_sqrt

# In the denominator of a correlation, as in the authors' code.
CORRELATION_EPSILON = 1e-8


def standardise(
    logits: Float[Array, "*batch classes"], *, epsilon: float = 1e-7
) -> Float[Array, "*batch classes"]:
    """Logits with mean 0 and standard deviation 1 over the classes.

    (z - mean_c z) / (epsilon + std_c z), with the unbiased standard deviation (divided by C - 1).
    The gradient flows through mean and deviation. A row of equal logits becomes zero, with zero
    gradient. Every class must exist: one of -inf leaves no mean.

    Args:
      logits: [..., classes], unnormalised.
      epsilon: not negative; added to the standard deviation.

    Returns:
      float32, same shape as `logits`.

    Raises:
      UsageError: `logits` has no class axis.

    Example:
      >>> print(standardise(jnp.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).round(3))
      [[-1.  0.  1.]
       [ 0.  0.  0.]]

    Reference:
      Sun, Ren, Li, Wang and Cao 2024, "Logit standardization in knowledge distillation", section 4,
      algorithm 1. The paper divides the result by T; a divergence does that here.
    """
    if not jnp.ndim(logits):
        raise UsageError(f"logits {jnp.shape(logits)}: expected [..., classes]")
    z = centred(as_float32(logits))
    variance = jnp.sum(jnp.square(z), axis=-1, keepdims=True) / max(z.shape[-1] - 1, 1)
    varies = variance > 0
    return jnp.where(varies, z / (epsilon + safe_sqrt(variance)), 0.0)


def _probability_pair(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    temperature: float | Float[Array, ""],
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
    """Tempered softmax of both, [B, C]; the teacher's logits are constant."""
    student, teacher = jnp.shape(student_logits), jnp.shape(teacher_logits)
    if student != teacher or len(student) != 2:
        raise UsageError(
            f"student_logits {student}, teacher_logits {teacher}: expected one shape [B, classes] "
            "for both; check the teacher's number of classes"
        )
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    return (
        jnp.exp(log_probabilities(student_logits, temperature)),
        jnp.exp(log_probabilities(teacher_logits, temperature)),
    )


def _correlation(a: Array, b: Array, axis: int) -> Array:
    """Pearson's correlation over `axis`; 0, with zero gradient, where either is constant."""
    a, b = centred(a, axis), centred(b, axis)
    length_a = safe_sqrt(jnp.sum(jnp.square(a), axis=axis))
    length_b = safe_sqrt(jnp.sum(jnp.square(b), axis=axis))
    length = length_a * length_b
    rho = jnp.sum(a * b, axis=axis) / (length + CORRELATION_EPSILON)
    return jnp.where(length > 0, rho, 0.0)


def dist(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    beta: float | Float[Array, ""] = 1.0,
    gamma: float | Float[Array, ""] = 1.0,
) -> Float[Array, " batch"]:
    """Distillation from a stronger teacher (DIST): correlation in place of a divergence.

    beta (1 - rho(Q_b, P_b)) + gamma (1 - mean_c rho(Q_:c, P_:c)), where P and Q [B, C] are the
    softmax of teacher and student at T and rho is Pearson's correlation: over the classes of an
    example (inter-class), and over the batch for each class (intra-class, the same for every b).
    A constant row or column correlates with nothing: its rho is 0, with zero gradient.

    No factor T^2: the paper has none, the authors' code multiplies by it.

    Args:
      student_logits: [B, classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.
      beta: weight of the inter-class part.
      gamma: weight of the intra-class part.

    Returns:
      float32 [B], from 0 to 2 (beta + gamma); not averaged.

    Raises:
      UsageError: the shapes differ or are not [B, classes], or `temperature` is a number and not
        positive.

    Example:
      >>> student = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
      >>> teacher = jnp.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
      >>> [f"{value:.4f}" for value in dist(student, teacher)]
      ['0.0033', '0.0344']

    Reference:
      Huang, You, Wang, Qian and Xu 2022, "Knowledge distillation from a stronger teacher", section
      3 (inter-class and intra-class relation).
    """
    q, p = _probability_pair(student_logits, teacher_logits, temperature)
    inter = 1.0 - _correlation(q, p, axis=1)
    intra = 1.0 - jnp.mean(_correlation(q, p, axis=0))
    return beta * inter + gamma * intra


def batch_correlation(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    temperature: float | Float[Array, ""],
) -> Float[Array, " batch"]:
    """Squared difference of the Gram matrices over the batch: which examples look alike.

    sum_j (P P^T - Q Q^T)_bj^2, where P and Q [B, C] are the softmax of teacher and student at T.
    Its mean over b is ||P P^T - Q Q^T||_F^2 / B.

    Args:
      student_logits: [B, classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: the shapes differ or are not [B, classes], or `temperature` is a number and not
        positive.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> [f"{value:.4f}" for value in batch_correlation(student, teacher, temperature=1.0)]
      ['0.2189', '0.3507']

    Reference:
      Jin, Wang and Lin 2023, "Multi-level logit distillation", section 3 (batch-level alignment).
    """
    q, p = _probability_pair(student_logits, teacher_logits, temperature)
    gap = einsum("ic,jc->ij", p, p) - einsum("ic,jc->ij", q, q)
    return jnp.sum(jnp.square(gap), axis=1)


def class_correlation(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    temperature: float | Float[Array, ""],
) -> Float[Array, " batch"]:
    """Squared difference of the Gram matrices over the classes: which classes go together.

    ||P^T P - Q^T Q||_F^2 / C, where P and Q [B, C] are the softmax of teacher and student at T. A
    quantity of the batch as a whole, so every example has the same value.

    Args:
      student_logits: [B, classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.

    Returns:
      float32 [B], from 0, all equal; not averaged.

    Raises:
      UsageError: the shapes differ or are not [B, classes], or `temperature` is a number and not
        positive.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> [f"{value:.4f}" for value in class_correlation(student, teacher, temperature=1.0)]
      ['0.2950', '0.2950']

    Reference:
      Jin, Wang and Lin 2023, "Multi-level logit distillation", section 3 (class-level alignment).
    """
    q, p = _probability_pair(student_logits, teacher_logits, temperature)
    gap = einsum("bi,bj->ij", p, p) - einsum("bi,bj->ij", q, q)
    value = jnp.sum(jnp.square(gap)) / gap.shape[0]
    return jnp.broadcast_to(value, q.shape[:1])
