"""Feature maps compared by a summary of each: where they attend, which channels go together.

The maps of student and teacher are NHWC, at one layer or at a pair of layers; where their sizes
differ the larger is pooled. Left out on purpose: the choice and the weights of the layers, and the
adapters that some papers put in front. Losses that compare maps value by value have their own file.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.errors import UsageError
from distill_jax.losses.pooling import match_size, pool_to_common
from distill_jax.losses.vectors import (
    check_maps,
    check_same_shape,
    check_variant,
    einsum,
    flat,
    magnitude,
    safe_sqrt,
    unit,
)


def _attention(
    maps: Float[Array, "batch height width channels"],
) -> Float[Array, "batch positions"]:
    """Where a map is active: the mean square over channels as a unit vector [B, H * W]."""
    return unit(flat(jnp.mean(jnp.square(maps), axis=-1)))


def attention_transfer(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch teacher_height teacher_width teacher_channels"],
    *,
    variant: str = "code",
) -> Float[Array, " batch"]:
    """Attention transfer (AT): where in the image the activations are large, per example.

    Q = u / ||u||_2 with u = mean_c f^2, a vector over the H W positions. "code": the mean over
    positions of (Q_s - Q_t)^2, which is what the usual weight of 1000 belongs to. "paper":
    ||Q_s - Q_t||_2, with zero gradient where both agree. A map of zeros attends nowhere: Q = 0.

    Args:
      student: [B, H, W, C].
      teacher: [B, H', W', C'], matched by `match_size`; its gradient is stopped.
      variant: "code" or "paper".

    Returns:
      float32 [B]; from 0 to 2 / (H W) for "code" and to sqrt(2) for "paper"; not averaged.

    Raises:
      UsageError: either has not four axes, B differs, or `variant` is neither of the two.

    Example:
      >>> student = jnp.array([3.0, 4.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> teacher = jnp.array([0.0, 0.0, 1.0, 0.0]).reshape(1, 2, 2, 1)
      >>> print(attention_transfer(student, teacher))
      [0.5]
      >>> print(attention_transfer(student, teacher, variant="paper"))
      [1.4142135]

    Reference:
      Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.1, eq. 2 (p = 2;
      its beta / 2 is a weight).
    """
    check_variant(variant)
    student, teacher = match_size(student, teacher)
    gap = jnp.square(_attention(student) - _attention(teacher))
    return jnp.mean(gap, axis=1) if variant == "code" else safe_sqrt(jnp.sum(gap, axis=1))


def neuron_selectivity(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch teacher_height teacher_width teacher_channels"],
) -> Float[Array, " batch"]:
    """Neuron selectivity transfer (NST): do the channels respond to the same regions?

    The squared maximum mean discrepancy between the channels of both, each channel a unit vector
    over the H W positions, with the polynomial kernel k(x, y) = (x . y)^2 (d = 2, c = 0):
    mean k(t, t) - 2 mean k(s, t) + mean k(s, s), means over pairs of channels of one example.

    The kernels are squares of the Gram products [B, C, C'], so nothing larger is built.

    Args:
      student: [B, H, W, C].
      teacher: [B, H', W', C'], matched by `match_size`; its gradient is stopped.

    Returns:
      float32 [B], from 0 (beyond rounding) to 2; not averaged.

    Raises:
      UsageError: either has not four axes, or B differs.

    Example:
      >>> student = jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1)
      >>> teacher = jnp.array([5.0, 0.0]).reshape(1, 1, 2, 1)
      >>> [f"{value:.4f}" for value in neuron_selectivity(student, teacher)]
      ['1.2800']

    Reference:
      Huang and Wang 2017, "Like what you like: knowledge distill via neuron selectivity transfer",
      section 4 (the polynomial kernel).
    """
    student, teacher = (unit(x, axis=(1, 2)) for x in match_size(student, teacher))

    def kernel(a: Array, b: Array) -> Array:
        return jnp.mean(jnp.square(einsum("bhwi,bhwj->bij", a, b)), axis=(1, 2))

    return kernel(teacher, teacher) - 2.0 * kernel(student, teacher) + kernel(student, student)


def flow_of_solution(
    student_first: Float[Array, "batch h1 w1 first"],
    student_second: Float[Array, "batch h2 w2 second"],
    teacher_first: Float[Array, "batch teacher_h1 teacher_w1 first"],
    teacher_second: Float[Array, "batch teacher_h2 teacher_w2 second"],
) -> Float[Array, " batch"]:
    """Flow of the solution procedure (FSP): how one layer's channels lead to a later layer's.

    G_ij = mean over positions of first_i second_j for each network, the larger map of its two
    pooled to the other's size; then the mean over (i, j) of (G_s - G_t)^2.

    Args:
      student_first: [B, H1, W1, C1].
      student_second: [B, H2, W2, C2].
      teacher_first: [B, H1', W1', C1]; its gradient is stopped.
      teacher_second: [B, H2', W2', C2]; its gradient is stopped.

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: a map has not four axes, B differs, or the channels of student and teacher differ.

    Example:
      >>> ones = jnp.ones((1, 2, 2, 3))
      >>> print(flow_of_solution(ones, 2 * ones, ones, 4 * ones))
      [4.]

    Reference:
      Yim, Joo, Bae and Kim 2017, "A gift from knowledge distillation: fast optimization, network
      minimization and transfer learning", section 3 (there a sum, with layer weights).
    """
    for other in (student_second, teacher_first, teacher_second):
        check_maps(student_first, other)
    grams = []
    for first, second in ((student_first, student_second), (teacher_first, teacher_second)):
        first, second = pool_to_common(first, second)
        positions = first.shape[1] * first.shape[2]
        grams.append(einsum("bhwi,bhwj->bij", first, second) / positions)
    if grams[0].shape != grams[1].shape:
        raise UsageError(
            f"channels {grams[0].shape[1:]} of the student, {grams[1].shape[1:]} of the teacher: "
            "expected the same (first, second) for both; choose layers of equal width"
        )
    gap = grams[0] - jax.lax.stop_gradient(grams[1])
    return jnp.mean(jnp.square(gap), axis=(1, 2))


def factor_transfer(
    student_factor: Float[Array, "batch height width channels"],
    teacher_factor: Float[Array, "batch teacher_height teacher_width teacher_channels"],
    *,
    variant: str = "code",
) -> Float[Array, " batch"]:
    """Factor transfer (FT): the student's factor against the teacher's, both normalised.

    Factors are the maps that the paper's translator (student) and paraphraser (teacher) give.
    "code": the mean over positions of |Q_s - Q_t| with Q = mean_c F^2 as a unit vector over the H W
    positions, as the common benchmarks have it. "paper": ||F_s / ||F_s||_2 - F_t / ||F_t||_2||_1, a
    sum over all H W C values. Where two values agree the subgradient zero is taken; a factor of
    zeros stays zero.

    Args:
      student_factor: [B, H, W, C].
      teacher_factor: [B, H', W', C'], matched by `match_size`; its gradient is stopped. C' may
        differ from C for "code" alone.
      variant: "code" or "paper".

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: either has not four axes, B differs, `variant` is neither of the two, or C differs
        for "paper".

    Example:
      >>> student = jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1)
      >>> teacher = jnp.array([5.0, 0.0]).reshape(1, 1, 2, 1)
      >>> [f"{v:.4f}" for v in factor_transfer(student, teacher)]
      ['0.6907']
      >>> [f"{v:.4f}" for v in factor_transfer(student, teacher, variant="paper")]
      ['1.2000']

    Reference:
      Kim, Park and Kwak 2018, "Paraphrasing complex network: network compression via factor
      transfer", section 3 (p = 1).
    """
    check_variant(variant)
    student, teacher = match_size(student_factor, teacher_factor)
    if variant == "code":
        return jnp.mean(magnitude(_attention(student) - _attention(teacher)), axis=1)
    check_same_shape(student, teacher, "[B, H, W, C]")
    return jnp.sum(magnitude(unit(flat(student)) - unit(flat(teacher))), axis=1)
