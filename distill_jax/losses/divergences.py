"""Divergences between the tempered softmax of a student and that of a teacher, per example.

Throughout, P = softmax(teacher_logits / T) and Q = softmax(student_logits / T). All are zero, with
zero gradient, when P = Q, and never negative beyond rounding. None carries the factor T^2 except
`soft_target`, whose name is that of the paper that has it. Left out on purpose: losses that look at
the label or across examples, and those that never build the logits.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.losses.logits import check_fraction, check_pair, log_probabilities
from distill_jax.losses.vectors import magnitude


def _log_pair(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    temperature: float | Float[Array, ""],
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"]]:
    """(log Q, log P). The teacher's logits are constant; a learned temperature acts on both."""
    check_pair(student_logits, teacher_logits)
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    return (
        log_probabilities(student_logits, temperature),
        log_probabilities(teacher_logits, temperature),
    )


def kl_of_logs(
    log_a: Float[Array, "*batch classes"], log_b: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """KL(A || B) over the last axis."""
    return jnp.sum(kl_summands(log_a, log_b), axis=-1)


def kl_summands(
    log_a: Float[Array, "*batch classes"], log_b: Float[Array, "*batch classes"]
) -> Float[Array, "*batch classes"]:
    """What is summed over the classes for KL(A || B).

    sum (b - a) is zero for distributions, but adding it term by term makes the summand second order
    in log a - log b: the rounding of the two normalisers then cancels instead of drowning a small
    divergence, and the gradient with respect to log b is b - a, exactly zero where A = B.
    """
    a, b = jnp.exp(log_a), jnp.exp(log_b)
    return a * (log_a - log_b) + (b - a)


def log_mixture(
    weight: float | Float[Array, ""],
    log_a: Float[Array, "*batch classes"],
    log_b: Float[Array, "*batch classes"],
) -> Float[Array, "*batch classes"]:
    """log(weight * a + (1 - weight) * b), without leaving log space."""
    weight = jnp.asarray(weight, jnp.float32)
    return jnp.logaddexp(jnp.log(weight) + log_a, jnp.log1p(-weight) + log_b)


def forward_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch"]:
    """Temperature-scaled KL from teacher to student, per example: covers every mode of the teacher.

    KL(P || Q) = sum_c P_c (log P_c - log Q_c).  No factor T^2; see `soft_target`.
    Its gradient with respect to the student's logits is (Q - P) / T.

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.

    Returns:
      float32 [...], from 0, in nats; not averaged.

    Raises:
      UsageError: the shapes differ, or `temperature` is a number and not positive.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> [f"{value:.4f}" for value in forward_kl(student, teacher)]
      ['0.3278', '0.6031']

    Reference:
      Kullback and Leibler 1951, "On information and sufficiency"; as a distillation loss, Hinton,
      Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2 (there as a
      cross-entropy, which differs by the teacher's entropy, a constant).
    """
    log_q, log_p = _log_pair(student_logits, teacher_logits, temperature)
    return kl_of_logs(log_p, log_q)


def soft_target(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, ""],
) -> Float[Array, "*batch"]:
    """The soft-target loss of knowledge distillation: T^2 times `forward_kl`, per example.

    T^2 KL(P || Q).  The factor keeps the size of the gradient, T (Q - P), about the same when T
    changes, so that the weight against the hard loss need not be tuned again.

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.

    Returns:
      float32 [...], from 0; not averaged.

    Raises:
      UsageError: the shapes differ, or `temperature` is a number and not positive.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> [f"{value:.4f}" for value in soft_target(student, teacher, temperature=4.0)]
      ['0.4848', '1.7751']

    Reference:
      Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2.
    """
    scale = jnp.square(jnp.asarray(temperature, jnp.float32))
    return scale * forward_kl(student_logits, teacher_logits, temperature=temperature)


def reverse_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch"]:
    """Temperature-scaled KL from student to teacher, per example: seeks one mode of the teacher.

    KL(Q || P) = sum_c Q_c (log Q_c - log P_c).  Its gradient with respect to the student's logits
    is Q (log Q - log P - KL) / T, which vanishes where the student is sure of a wrong class.

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.

    Returns:
      float32 [...], from 0, in nats; not averaged.

    Raises:
      UsageError: the shapes differ, or `temperature` is a number and not positive.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> [f"{value:.4f}" for value in reverse_kl(student, teacher)]
      ['0.4338', '1.3250']

    Reference:
      Gu, Dong, Wei and Huang 2024, "MiniLLM: knowledge distillation of large language models",
      section 2.
    """
    log_q, log_p = _log_pair(student_logits, teacher_logits, temperature)
    return kl_of_logs(log_q, log_p)


def jensen_shannon(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    beta: float | Float[Array, ""] = 0.5,
) -> Float[Array, "*batch"]:
    """Generalised Jensen-Shannon divergence, per example: between forward and reverse KL.

    JSD(beta) = beta KL(P || M) + (1 - beta) KL(Q || M),  M = beta P + (1 - beta) Q,
    so beta is the weight of the TEACHER, both in the mixture and on its own term.

    beta = 1/2 is the symmetric divergence, at most log 2. At the ends the formula is followed, not
    its rescaled limit: JSD(0) = JSD(1) = 0 with zero gradient, as M is then one of the two. Near
    them it points the way of a KL but shrinks: JSD(beta) / beta tends to KL(P || Q) for beta -> 0,
    and JSD(beta) / (1 - beta) to KL(Q || P) for beta -> 1. (Some libraries return those limits at
    exactly 0 and 1, which makes the value jump; use `forward_kl` or `reverse_kl` for them.)

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.
      beta: from 0 to 1; a number or a scalar array.

    Returns:
      float32 [...], from 0 to the entropy of (beta, 1 - beta), in nats; not averaged.

    Raises:
      UsageError: the shapes differ, `temperature` is a number and not positive, or `beta` is a
        number outside 0..1.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> [f"{value:.4f}" for value in jensen_shannon(student, teacher)]
      ['0.0895', '0.1804']
      >>> [f"{value:.4f}" for value in jensen_shannon(student, teacher, beta=0.1)]
      ['0.0299', '0.0557']

    Reference:
      Agarwal et al. 2024, "On-policy distillation of language models: learning from self-generated
      mistakes" (GKD), section 2, D_JSD(beta)(P || Q) with P the teacher.
    """
    check_fraction("beta", beta)
    log_q, log_p = _log_pair(student_logits, teacher_logits, temperature)
    log_m = log_mixture(beta, log_p, log_q)
    beta = jnp.asarray(beta, jnp.float32)
    return beta * kl_of_logs(log_p, log_m) + (1.0 - beta) * kl_of_logs(log_q, log_m)


def skew_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    alpha: float | Float[Array, ""] = 0.1,
) -> Float[Array, "*batch"]:
    """Forward KL to a mixture of student and teacher, per example: its gradient is bounded.

    KL(P || alpha P + (1 - alpha) Q),  so alpha is the weight of the TEACHER in the mixture.
    alpha = 0 is `forward_kl`; alpha = 1 is zero, with zero gradient.

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.
      alpha: from 0 to 1; a number or a scalar array.

    Returns:
      float32 [...], from 0 to -log(alpha), in nats; not averaged.

    Raises:
      UsageError: the shapes differ, `temperature` is a number and not positive, or `alpha` is a
        number outside 0..1.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> [f"{value:.4f}" for value in skew_kl(student, teacher)]
      ['0.2726', '0.5145']

    Reference:
      Ko, Kim, Chen and Yun 2024, "DistiLLM: towards streamlined distillation for large language
      models", section 3.1 (skew KL, alpha = 0.1).
    """
    check_fraction("alpha", alpha)
    log_q, log_p = _log_pair(student_logits, teacher_logits, temperature)
    return kl_of_logs(log_p, log_mixture(alpha, log_p, log_q))


def skew_reverse_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    alpha: float | Float[Array, ""] = 0.1,
) -> Float[Array, "*batch"]:
    """Reverse KL to a mixture of student and teacher, per example: its gradient is bounded.

    KL(Q || (1 - alpha) P + alpha Q),  so alpha is the weight of the STUDENT in the mixture.
    alpha = 0 is `reverse_kl`; alpha = 1 is zero, with zero gradient.

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.
      alpha: from 0 to 1; a number or a scalar array.

    Returns:
      float32 [...], from 0 to -log(alpha), in nats; not averaged.

    Raises:
      UsageError: the shapes differ, `temperature` is a number and not positive, or `alpha` is a
        number outside 0..1.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> [f"{value:.4f}" for value in skew_reverse_kl(student, teacher)]
      ['0.3173', '0.6987']

    Reference:
      Ko, Kim, Chen and Yun 2024, "DistiLLM: towards streamlined distillation for large language
      models", section 3.1 (skew reverse KL, alpha = 0.1).
    """
    check_fraction("alpha", alpha)
    log_q, log_p = _log_pair(student_logits, teacher_logits, temperature)
    return kl_of_logs(log_q, log_mixture(alpha, log_q, log_p))


def total_variation(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch"]:
    """Total variation distance, per example: the largest gap that any event can show.

    (1 / 2) sum_c |P_c - Q_c|.  Where P_c = Q_c the subgradient zero is taken.

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      temperature: positive; a number or a scalar array.

    Returns:
      float32 [...], from 0 to 1; not averaged.

    Raises:
      UsageError: the shapes differ, or `temperature` is a number and not positive.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> [f"{value:.4f}" for value in total_variation(student, teacher)]
      ['0.3808', '0.4820']

    Reference:
      Wen, Li, Du and Mou 2023, "f-divergence minimization for sequence-level knowledge
      distillation" (TVD).
    """
    log_q, log_p = _log_pair(student_logits, teacher_logits, temperature)
    return 0.5 * jnp.sum(magnitude(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)
