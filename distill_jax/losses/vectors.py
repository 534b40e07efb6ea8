"""Vectors: norms, unit vectors and products that stay finite and exact, and the checks of features.

The losses on feature maps and embeddings build on these. One rule holds for all of them: a zero
vector has no direction, so its unit vector is zero and its gradient is zero, never NaN. Left out on
purpose: anything with a teacher, which is a loss and has its own file.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.errors import UsageError

# A vector this short or shorter counts as zero. Its square is still a normal float32.
SHORTEST = 1e-12

# About how many floats `map_rows` allows in one intermediate array: 64 MiB.
CHUNK = 2**24

# Some accelerators round the factors of a float32 product to bfloat16 or TF32 unless told not to.
einsum = functools.partial(jnp.einsum, precision="highest")


def magnitude(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """|x|, with gradient zero at 0, where `jnp.abs` has the gradient one."""
    return jnp.where(x == 0, 0.0, jnp.abs(x))


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """sqrt(x) for x >= 0, with gradient zero instead of infinity at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def unit(x: Float[Array, "*shape"], axis: int | tuple[int, ...] = -1) -> Float[Array, "*shape"]:
    """x divided by its Euclidean norm over `axis`; zero, with zero gradient, where x is zero."""
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    has_length = square > SHORTEST**2
    return jnp.where(has_length, x / jnp.sqrt(jnp.where(has_length, square, 1.0)), 0.0)


def centred(x: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
    """x less its mean over `axis`; exactly zero where x is constant over it.

    The mean of equal numbers can round to another number. Less their maximum first, a constant row
    is zero before its mean is taken; the gradient does not see a common shift.
    """
    x = x - jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    return x - jnp.mean(x, axis=axis, keepdims=True)


def flat(features: Float[Array, " batch *features"]) -> Float[Array, "batch dim"]:
    """Features [B, ...] as float32 [B, D]."""
    features = jnp.asarray(features).astype(jnp.float32)
    return features.reshape(features.shape[0], -1)


def map_rows(function: Callable[[Any], Any], rows: Any, floats: int) -> Any:
    """`function` of every row of `rows`, stacked, with bounded memory.

    All rows at once where their intermediates, `floats` numbers for a row, fit into `CHUNK`;
    otherwise a few rows at a time, recomputed for the gradient instead of kept.

    Args:
      function: row -> array or tree of arrays.
      rows: array or tree of arrays [B, ...].
      floats: numbers in the largest intermediate array of one row.

    Returns:
      What `function` returns, with a leading axis B.
    """
    count, chunk = jax.tree.leaves(rows)[0].shape[0], max(CHUNK // max(floats, 1), 1)
    if chunk >= count:
        return jax.vmap(function)(rows)
    return jax.lax.map(jax.checkpoint(function), rows, batch_size=chunk)


def float_pair(
    student: Float[Array, "*shape"], teacher: Float[Array, "*teacher_shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*teacher_shape"]]:
    """Both in float32, the teacher's a constant."""
    student, teacher = (jnp.asarray(x).astype(jnp.float32) for x in (student, teacher))
    return student, jax.lax.stop_gradient(teacher)


def check_same_shape(student: Array, teacher: Array, form: str) -> None:
    """Raises UsageError unless both have one shape of at least two axes; `form` names it."""
    a, b = jnp.shape(student), jnp.shape(teacher)
    if a != b or len(a) < 2:
        raise UsageError(f"student {a}, teacher {b}: expected one shape {form} for both")


def check_batch(student: Array, teacher: Array) -> None:
    """Raises UsageError unless both are [B, ...] with one B; the rest may differ."""
    a, b = jnp.shape(student), jnp.shape(teacher)
    if len(a) < 2 or len(b) < 2 or a[0] != b[0]:
        raise UsageError(f"student {a}, teacher {b}: expected [B, ...] with the same B for both")


def check_maps(student: Array, teacher: Array) -> None:
    """Raises UsageError unless both are maps [B, H, W, C] with one B; the rest may differ."""
    a, b = jnp.shape(student), jnp.shape(teacher)
    if len(a) != 4 or len(b) != 4 or a[0] != b[0]:
        raise UsageError(f"student {a}, teacher {b}: expected maps [B, H, W, C] with the same B")


def check_variant(variant: str) -> None:
    """Raises UsageError unless `variant` is "code" or "paper"."""
    if variant not in ("code", "paper"):
        raise UsageError(f"variant={variant!r}: expected 'code' or 'paper'")
