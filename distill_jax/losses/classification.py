"""Classification: the loss against labels, hard or soft.

Left out on purpose: class weights, focal terms and anything with a teacher; a teacher's
probabilities belong to a divergence, which is zero when the student has learned them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill_jax.errors import UsageError
from distill_jax.losses.logits import check_fraction, log_probabilities


def cross_entropy(
    logits: Float[Array, "*batch classes"],
    targets: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    *,
    label_smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, "*batch"]:
    """Cross-entropy of a softmax against class ids or class probabilities, per example, in nats.

    -sum_c y_c log softmax(logits)_c,  y = (1 - s) target + s / C  with label smoothing s.

    Args:
      logits: [..., classes], unnormalised.
      targets: integer [...] with ids from 0 to classes - 1 (any other id gives NaN, so that it is
        either masked or noticed), or floating [..., classes] with probabilities, used as they are.
        Its gradient is stopped.
      label_smoothing: from 0 to 1; a number or a scalar array.

    Returns:
      float32 [...], not averaged.

    Raises:
      UsageError: the shape of `targets` fits neither form, or `label_smoothing` is outside 0..1.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0]])
      >>> [f"{value:.4f}" for value in cross_entropy(logits, jnp.array([0, 1]))]
      ['0.1269', '2.1269']
      >>> [f"{value:.4f}" for value in cross_entropy(logits, jnp.array([[0.5, 0.5], [0.0, 1.0]]))]
      ['1.1269', '2.1269']

    Reference:
      Label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna 2016, "Rethinking the Inception
      architecture for computer vision", section 7.
    """
    check_fraction("label_smoothing", label_smoothing)
    targets = jax.lax.stop_gradient(jnp.asarray(targets))
    by_id = jnp.issubdtype(targets.dtype, jnp.integer)
    shape = jnp.shape(logits)
    if targets.shape != (shape[:-1] if by_id else shape):
        raise UsageError(
            f"targets {targets.dtype}{list(targets.shape)}: expected integers{list(shape[:-1])} or "
            f"probabilities{list(shape)} for logits{list(shape)}"
        )
    log_p = log_probabilities(logits)
    if by_id:
        # A negative index would count from the last class; sent past the end instead, it is filled
        # with NaN like every other id that is not a class.
        ids = jnp.where(targets < 0, shape[-1], targets)[..., None]
        hard = -jnp.take_along_axis(log_p, ids, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
    else:
        hard = -jnp.sum(targets.astype(jnp.float32) * log_p, axis=-1)
    smoothing = jnp.asarray(label_smoothing, jnp.float32)
    return (1.0 - smoothing) * hard - smoothing * jnp.mean(log_p, axis=-1)
