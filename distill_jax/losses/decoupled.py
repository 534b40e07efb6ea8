"""Decoupled distillation: the soft-target loss in two parts, the target class and the rest.

Both parts are divergences of their own, so both are built from `forward_kl`: one over two classes,
the other over the classes without the target. Left out on purpose: the
warm-up and the hard loss that the paper adds, both a method's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distill_jax.errors import UsageError
from distill_jax.losses.divergences import forward_kl, soft_target
from distill_jax.losses.logits import LOWEST_LOGIT, as_float32, check_pair, log_probabilities


def decoupled_parts(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    temperature: float | Float[Array, ""],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Target-class and non-target-class distillation, per example, each times T^2.

    With P and Q the softmax of teacher and student at T and y the label:
    TCKD = T^2 KL((P_y, 1 - P_y) || (Q_y, 1 - Q_y)),
    NCKD = T^2 KL(P without y || Q without y), both renormalised; zero for two classes.
    `soft_target` is TCKD + (1 - P_y) NCKD.

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      labels: integer [...] with ids from 0 to classes - 1; any other id gives NaN, with zero
        gradient, so that it is either masked or noticed.
      temperature: positive; a number or a scalar array.

    Returns:
      (TCKD, NCKD), each float32 [...], from 0; not averaged.

    Raises:
      UsageError: the shapes differ, `labels` are not integers [...], or `temperature` is a number
        and not positive.

    Example:
      >>> student, teacher = jnp.zeros((1, 3)), jnp.array([[3.0, 1.0, 0.0]])
      >>> target, rest = decoupled_parts(student, teacher, jnp.array([0]), temperature=1.0)
      >>> f"{target[0]:.4f} {rest[0]:.4f}"
      '0.5570 0.1109'

    Reference:
      Zhao, Cui, Song, Qiu and Liang 2022, "Decoupled knowledge distillation", section 3
      (TCKD and NCKD).
    """
    check_pair(student_logits, teacher_logits)
    labels, shape = jnp.asarray(labels), jnp.shape(student_logits)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != shape[:-1]:
        raise UsageError(
            f"labels {labels.dtype}{list(labels.shape)}: expected integers{list(shape[:-1])} for "
            f"logits{list(shape)}"
        )
    classes = jnp.expand_dims(jnp.arange(shape[-1]), range(labels.ndim))
    is_target = labels[..., None] == classes

    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    scale = jnp.square(jnp.asarray(temperature, jnp.float32))
    tckd = scale * forward_kl(
        _target_or_not(student_logits, is_target, temperature),
        _target_or_not(teacher_logits, is_target, temperature),
    )
    nckd = soft_target(
        _without_target(student_logits, is_target),
        _without_target(teacher_logits, is_target),
        temperature=temperature,
    )
    is_class = jnp.any(is_target, axis=-1)
    return jnp.where(is_class, tckd, jnp.nan), jnp.where(is_class, nckd, jnp.nan)


def _target_or_not(
    logits: Float[Array, "*batch classes"],
    is_target: Bool[Array, "*batch classes"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "*batch 2"]:
    """(log p_y, log(1 - p_y)): logits of two classes; the second is a sum, never 1 - p."""
    log_p = log_probabilities(logits, temperature)
    target = jnp.sum(jnp.where(is_target, log_p, 0.0), axis=-1)
    rest = jax.nn.logsumexp(jnp.where(is_target, LOWEST_LOGIT, log_p), axis=-1)
    return jnp.stack([target, rest], axis=-1)


def _without_target(
    logits: Float[Array, "*batch classes"], is_target: Bool[Array, "*batch classes"]
) -> Float[Array, "*batch classes"]:
    return jnp.where(is_target, -jnp.inf, as_float32(logits))


def decoupled_kd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    temperature: float | Float[Array, ""],
    alpha: float | Float[Array, ""] = 1.0,
    beta: float | Float[Array, ""] = 8.0,
) -> Float[Array, "*batch"]:
    """Decoupled knowledge distillation (DKD), per example: alpha TCKD + beta NCKD.

    The parts are those of `decoupled_parts`. In `soft_target` the second has the weight 1 - P_y,
    which is smallest where the teacher is sure; here the weight is the same for every example.

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.
      labels: integer [...] with ids from 0 to classes - 1; any other id gives NaN.
      temperature: positive; a number or a scalar array.
      alpha: weight of the target-class part.
      beta: weight of the non-target-class part.

    Returns:
      float32 [...], from 0; not averaged.

    Raises:
      UsageError: the shapes differ, `labels` are not integers [...], or `temperature` is a number
        and not positive.

    Example:
      >>> student, teacher = jnp.zeros((1, 3)), jnp.array([[3.0, 1.0, 0.0]])
      >>> values = decoupled_kd(student, teacher, jnp.array([0]), temperature=1.0, beta=2.0)
      >>> f"{values[0]:.4f}"
      '0.7789'

    Reference:
      Zhao, Cui, Song, Qiu and Liang 2022, "Decoupled knowledge distillation", section 3, eq. 7;
      alpha = 1, T = 4 and beta = 8, 6 or 2 by network pair for CIFAR-100.
    """
    tckd, nckd = decoupled_parts(student_logits, teacher_logits, labels, temperature=temperature)
    return alpha * tckd + beta * nckd
