"""Pooling: feature maps [B, H, W, C] brought to another height and width by averaging.

Left out on purpose: interpolation, and adapters that learn to change a size.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.errors import UsageError
from distill_jax.losses.vectors import check_maps, einsum, float_pair


def _bins(length: int, size: int) -> Array:
    """[size, length]: row i averages the positions floor(i L / S) up to ceil((i + 1) L / S)."""
    rows = []
    for i in range(size):
        start, stop = i * length // size, -(-(i + 1) * length // size)
        rows.append([(start <= j < stop) / (stop - start) for j in range(length)])
    return jnp.asarray(rows, jnp.float32)


def adaptive_average(
    maps: Float[Array, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch pooled_height pooled_width channels"]:
    """Adaptive average pooling to a given height and width.

    Output i of S averages the inputs floor(i L / S) up to, and without, ceil((i + 1) L / S), on
    either axis. Where S divides L these are equal blocks; where it does not they overlap; where S
    is larger than L inputs repeat.

    Args:
      maps: [B, H, W, C].
      size: (h, w), both at least 1.

    Returns:
      float32 [B, h, w, C].

    Raises:
      UsageError: `maps` has not four axes, or `size` is not two positive integers.

    Example:
      >>> maps = jnp.arange(6.0).reshape(1, 2, 3, 1)
      >>> print(adaptive_average(maps, (1, 2))[0, :, :, 0])
      [[2. 3.]]

    Reference:
      none; the rule is that of the common adaptive average pooling layers.
    """
    if jnp.ndim(maps) != 4:
        raise UsageError(f"maps {jnp.shape(maps)}: expected [B, H, W, C]")
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise UsageError(f"size={size}: expected two positive integers (height, width)")
    maps = jnp.asarray(maps).astype(jnp.float32)
    _, height, width, _ = maps.shape
    if size[0] != height:
        maps = einsum("oh,bhwc->bowc", _bins(height, size[0]), maps)
    if size[1] != width:
        maps = einsum("ow,bhwc->bhoc", _bins(width, size[1]), maps)
    return maps


def pool_to_common(
    first: Float[Array, "batch height width channels"],
    second: Float[Array, "batch other_height other_width other_channels"],
) -> tuple[Float[Array, "batch h w channels"], Float[Array, "batch h w other_channels"]]:
    """Two maps at the smaller height and the smaller width of the two, in float32."""
    a, b = jnp.shape(first), jnp.shape(second)
    size = min(a[1], b[1]), min(a[2], b[2])
    return adaptive_average(first, size), adaptive_average(second, size)


def match_size(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch teacher_height teacher_width teacher_channels"],
) -> tuple[Float[Array, "batch h w channels"], Float[Array, "batch h w teacher_channels"]]:
    """Student and teacher maps at one height and width: the smaller of the two, axis by axis.

    Args:
      student: [B, H, W, C].
      teacher: [B, H', W', C']; its gradient is stopped.

    Returns:
      (student, teacher), float32 [B, h, w, C] and [B, h, w, C'] with h = min(H, H') and
      w = min(W, W'); whichever is larger on an axis is pooled there by `adaptive_average`.

    Raises:
      UsageError: either has not four axes, or B differs.

    Example:
      >>> student, teacher = match_size(jnp.ones((2, 8, 8, 16)), jnp.ones((2, 4, 4, 64)))
      >>> student.shape, teacher.shape
      ((2, 4, 4, 16), (2, 4, 4, 64))

    Reference:
      Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.1, where maps of
      two sizes are compared.
    """
    check_maps(student, teacher)
    return pool_to_common(*float_pair(student, teacher))
