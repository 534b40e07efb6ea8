"""Logits: their checks, their log-probabilities, and the measures taken on them directly.

The other files of this package build on `as_float32`, `log_probabilities`, `check_pair` and
`check_fraction`. Left out on purpose: standardised logits and relations between logits, which have
a file of their own (`relational_logits`).
"""

import numbers

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.errors import UsageError

# Stands for -inf. Finite, so that 0 * log 0 is 0 and not NaN, in the value and in every gradient;
# far enough from the float32 limit (3.4e38) that a temperature down to 1e-7 does not overflow it.
LOWEST_LOGIT = -1e30


def as_float32(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Logits in float32, with -inf (a class that does not exist) replaced by `LOWEST_LOGIT`."""
    return jnp.maximum(jnp.asarray(logits).astype(jnp.float32), LOWEST_LOGIT)


def log_probabilities(
    logits: Float[Array, "*batch classes"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "*batch classes"]:
    """log softmax(logits / temperature) over the last axis, in float32 and never -inf.

    Args:
      logits: any real dtype, [..., classes], unnormalised.
      temperature: positive; a number or a scalar array, which may be traced.

    Returns:
      float32 [..., classes].

    Raises:
      UsageError: `temperature` is a number and not positive.
    """
    if isinstance(temperature, numbers.Real) and not temperature > 0:
        raise UsageError(f"temperature={temperature}: expected a positive number")
    temperature = jnp.asarray(temperature, jnp.float32)
    return jax.nn.log_softmax(as_float32(logits) / temperature, axis=-1)


def check_pair(student_logits: Array, teacher_logits: Array) -> None:
    """Raises UsageError unless both have one shape: broadcasting would hide a wrong head."""
    student, teacher = jnp.shape(student_logits), jnp.shape(teacher_logits)
    if student != teacher or not student:
        raise UsageError(
            f"student_logits {student}, teacher_logits {teacher}: expected one shape "
            "[..., classes] for both; check the teacher's number of classes"
        )


def check_fraction(key: str, value: float | Float[Array, ""] | None) -> None:
    """Raises UsageError for a number outside 0..1; an array may be traced and is not checked."""
    if isinstance(value, numbers.Real) and not 0 <= value <= 1:
        raise UsageError(f"{key}={value}: expected a number from 0 to 1")


def entropy(
    logits: Float[Array, "*batch classes"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "*batch"]:
    """Shannon entropy of the tempered softmax, per example, in nats.

    H(p) = -sum_c p_c log p_c,  p = softmax(logits / T).  The gradient flows into `logits`.

    Args:
      logits: [..., classes], unnormalised.
      temperature: positive; a number or a scalar array.

    Returns:
      float32 [...], from 0 to log(classes); not averaged.

    Raises:
      UsageError: `temperature` is a number and not positive.

    Example:
      >>> [f"{value:.4f}" for value in entropy(jnp.array([[0.0, 0.0], [2.0, 0.0]]))]
      ['0.6931', '0.3653']

    Reference:
      Shannon 1948, "A mathematical theory of communication", section 6.
    """
    log_p = log_probabilities(logits, temperature)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def logit_mse(
    student_logits: Float[Array, "*batch classes"], teacher_logits: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """Squared difference of the logits, averaged over classes, per example.

    (1 / C) sum_c (student_c - teacher_c)^2.  Unlike a divergence it is not blind to a constant that
    is added to all logits.

    Args:
      student_logits: [..., classes], unnormalised.
      teacher_logits: same shape; its gradient is stopped.

    Returns:
      float32 [...], not averaged over examples.

    Raises:
      UsageError: the shapes differ.

    Example:
      >>> print(logit_mse(jnp.array([[1.0, 3.0], [0.0, 0.0]]), jnp.array([[1.0, 1.0], [2.0, 4.0]])))
      [ 2. 10.]

    Reference:
      Ba and Caruana 2014, "Do deep nets really need to be deep?", eq. 1 (there with a factor 1/2
      and a sum over classes).
    """
    check_pair(student_logits, teacher_logits)
    teacher = jax.lax.stop_gradient(as_float32(teacher_logits))
    return jnp.mean(jnp.square(as_float32(student_logits) - teacher), axis=-1)
