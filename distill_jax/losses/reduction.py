"""Reduction: the one place where per-example values become a scalar.

Left out on purpose: weights per example. A weighted loss multiplies its values first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from distill_jax.errors import UsageError


def mean(
    values: Shaped[Array, "*batch"], where: Bool[Array, "*batch"] | None = None
) -> Float[Array, ""]:
    """Mean over the unmasked values, in float32; 0 where there are none.

    sum_i where_i values_i / max(1, sum_i where_i).  On sharded arrays inside jit this is the mean
    over the global batch, not a mean of means.

    Args:
      values: [...], one per (real or padded) example.
      where: bool, same shape; True counts. None counts every value. A masked value may be NaN.

    Returns:
      float32 scalar.

    Raises:
      UsageError: `where` is not boolean, or its shape is not that of `values`.

    Example:
      >>> print(mean(jnp.array([1.0, 2.0, 9.0]), where=jnp.array([True, True, False])))
      1.5

    Reference:
      none; the rule is that of a weighted mean with weights 0 and 1.
    """
    values = jnp.asarray(values).astype(jnp.float32)
    if where is None:
        where = jnp.ones(values.shape, bool)
    where = jnp.asarray(where)
    if where.dtype != bool or where.shape != values.shape:
        raise UsageError(
            f"where {where.dtype}{list(where.shape)}: expected bool{list(values.shape)}, the shape "
            "of the values; weights are multiplied into the values first"
        )
    count = jnp.sum(where, dtype=jnp.float32)
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(count, 1.0)
