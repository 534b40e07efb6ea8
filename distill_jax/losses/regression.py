"""Features regressed value by value: the student's map against the teacher's of the same shape.

Left out on purpose: what brings the student's map to that shape (a connector, a regressor, a
fusion), which is a method's adapter and comes before; layer weights, which come after; and the
constants that the authors' code multiplies with, which each docstring names.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.errors import UsageError
from distill_jax.losses.pooling import adaptive_average
from distill_jax.losses.vectors import check_maps, check_same_shape, flat, float_pair

# Below this probability of a negative value a margin is -3 deviations, as in the authors' code.
RARELY_NEGATIVE = 1e-3
# Added to a variance that is learned.
VARIANCE_EPSILON = 1e-5


def feature_mse(
    student: Float[Array, " batch *features"], teacher: Float[Array, " batch *features"]
) -> Float[Array, " batch"]:
    """Squared difference of features, averaged over all their values, per example.

    Args:
      student: [B, ...], after its regressor.
      teacher: same shape; its gradient is stopped.

    Returns:
      float32 [B], from 0; not averaged over examples.

    Raises:
      UsageError: the shapes differ, or there is no axis after B.

    Example:
      >>> print(feature_mse(jnp.zeros((2, 1, 1, 2)), jnp.arange(4.0).reshape(2, 1, 1, 2)))
      [0.5 6.5]

    Reference:
      Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta and Bengio 2015, "FitNets: hints for thin deep
      nets", section 2.2, eq. 3 (there a sum with the factor 1/2).
    """
    check_same_shape(student, teacher, "[B, ...]")
    student, teacher = float_pair(student, teacher)
    return jnp.mean(jnp.square(flat(student - teacher)), axis=1)


def activation_boundary(
    student_pre: Float[Array, "batch height width channels"],
    teacher_pre: Float[Array, "batch height width channels"],
    *,
    margin: float = 1.0,
) -> Float[Array, " batch"]:
    """Activation boundary transfer (AB): which units are on, by a hinge with a margin.

    Sum over H W C of (s + m)^2 where t <= 0 and s > -m, and of (s - m)^2 where t > 0 and s <= m:
    the sign of the teacher's pre-activation is learned, not its size.

    No factor is applied. The common benchmark code multiplies with 3 / 1000 and a layer weight
    2^(i - L + 1).

    Args:
      student_pre: [B, H, W, C], before the activation, after its connector.
      teacher_pre: same shape, before the activation; its gradient is stopped.
      margin: positive; how far from 0 a unit is safe.

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: the shapes differ or have not four axes, or `margin` is not positive.

    Example:
      >>> student = jnp.array([0.5, 0.5, 2.0, -2.0]).reshape(1, 2, 2, 1)
      >>> teacher = jnp.array([3.0, -3.0, 3.0, -3.0]).reshape(1, 2, 2, 1)
      >>> print(activation_boundary(student, teacher))
      [2.5]

    Reference:
      Heo, Lee, Yun and Choi 2019, "Knowledge transfer via distillation of activation boundaries
      formed by hidden neurons", section 3 (the alternative loss).
    """
    if not margin > 0:
        raise UsageError(f"margin={margin}: expected a positive number")
    check_maps(student_pre, teacher_pre)
    check_same_shape(student_pre, teacher_pre, "[B, H, W, C]")
    student, teacher = float_pair(student_pre, teacher_pre)
    hinge = jax.nn.relu(margin + jnp.where(teacher > 0, -student, student))
    return jnp.sum(jnp.square(hinge), axis=(1, 2, 3))


def overhaul_margin(
    bias: Float[Array, " channels"], scale: Float[Array, " channels"]
) -> Float[Array, " channels"]:
    """The margin of `overhaul` for each channel: the mean of the values that are negative.

    E[x | x < 0] for x ~ N(bias, scale^2), which is what a batch-norm layer gives with these
    parameters: bias - |scale| phi(r) / Phi(r) with r = -bias / |scale|, phi and Phi the standard
    normal density and distribution. Where P(x < 0) is 0.001 or less it is -3 |scale| instead, and
    where the scale is 0 the constant itself, or 0 if that is positive.

    Args:
      bias: [C], the bias of the teacher's batch-norm layer before the activation.
      scale: [C], its scale; the sign does not matter.

    Returns:
      float32 [C], never positive; a constant: its gradient is stopped.

    Raises:
      UsageError: the two are not of one shape [C].

    Example:
      >>> [f"{m:.4f}" for m in overhaul_margin(jnp.array([0.0, 4.0]), jnp.array([1.0, 1.0]))]
      ['-0.7979', '-3.0000']

    Reference:
      Heo, Kim, Yun, Park, Kwak and Choi 2019, "A comprehensive overhaul of feature distillation",
      section 3 (margin ReLU).
    """
    if jnp.shape(bias) != jnp.shape(scale) or jnp.ndim(bias) != 1:
        raise UsageError(
            f"bias {jnp.shape(bias)}, scale {jnp.shape(scale)}: expected one shape [C] for both"
        )
    bias, scale = (jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (bias, scale))
    scale = jnp.abs(scale)
    varies = scale > 0
    ratio = -bias / jnp.where(varies, scale, 1.0)
    negative = jax.scipy.special.ndtr(ratio)
    density = jnp.exp(-0.5 * jnp.square(ratio)) / math.sqrt(2.0 * math.pi)
    often = negative > RARELY_NEGATIVE
    mean = bias - scale * density / jnp.where(often, negative, 1.0)
    return jnp.where(varies, jnp.where(often, mean, -3.0 * scale), jnp.minimum(bias, 0.0))


def overhaul(
    student_pre: Float[Array, "batch height width channels"],
    teacher_pre: Float[Array, "batch height width channels"],
    margin: Float[Array, " channels"],
) -> Float[Array, " batch"]:
    """Overhaul of feature distillation (OFD): the partial squared distance, per example.

    Sum over H W C of (s - t')^2 where s > t' or t' > 0, with t' = max(t, margin_c). A student below
    a target that is not positive is left alone: the activation gives zero either way.

    No factor is applied. The authors' code multiplies with 1 / 1000 for CIFAR and a layer weight
    2^(-(L - i - 1)).

    Args:
      student_pre: [B, H, W, C], before the activation, after its connector.
      teacher_pre: same shape, before the activation; its gradient is stopped.
      margin: [C], not positive, such as `overhaul_margin` gives; a constant.

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: the maps differ in shape or have not four axes, or `margin` is not [C].

    Example:
      >>> student = jnp.array([3.0, 1.0, -1.0, -9.0]).reshape(1, 2, 2, 1)
      >>> teacher = jnp.array([1.0, -5.0, -5.0, -5.0]).reshape(1, 2, 2, 1)
      >>> print(overhaul(student, teacher, jnp.array([-2.0])))
      [14.]

    Reference:
      Heo, Kim, Yun, Park, Kwak and Choi 2019, "A comprehensive overhaul of feature distillation",
      section 3 (partial L2 distance).
    """
    check_maps(student_pre, teacher_pre)
    check_same_shape(student_pre, teacher_pre, "[B, H, W, C]")
    channels = jnp.shape(student_pre)[-1:]
    if jnp.shape(margin) != channels:
        raise UsageError(f"margin {jnp.shape(margin)}: expected {channels}, one for each channel")
    student, teacher = float_pair(student_pre, teacher_pre)
    margin = jax.lax.stop_gradient(jnp.asarray(margin, jnp.float32))[None, None, None]
    target = jnp.maximum(teacher, margin)
    counts = (student > target) | (target > 0)
    return jnp.sum(jnp.where(counts, jnp.square(student - target), 0.0), axis=(1, 2, 3))


def hierarchical_context(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels"],
) -> Float[Array, " batch"]:
    """Hierarchical context loss (HCL) of ReviewKD: squared differences at several resolutions.

    The mean squared difference of the maps with weight 1, and of the maps pooled to 4, 2 and 1
    positions a side with weights 1/2, 1/4 and 1/8, divided by the sum of the weights used. Sizes
    that are not smaller than the map are skipped, and do not halve the next weight.

    Args:
      student: [B, H, W, C], after its fusion.
      teacher: same shape; its gradient is stopped.

    Returns:
      float32 [B], from 0, for one level; a method adds its levels up; not averaged.

    Raises:
      UsageError: the shapes differ or have not four axes.

    Example:
      >>> student, teacher = jnp.zeros((1, 2, 2, 1)), jnp.arange(4.0).reshape(1, 2, 2, 1)
      >>> print(hierarchical_context(student, teacher))
      [3.0833333]

    Reference:
      Chen, Liu, Zhao and Jia 2021, "Distilling knowledge via knowledge review", section 3 (HCL);
      the weights are those of the authors' code.
    """
    check_maps(student, teacher)
    check_same_shape(student, teacher, "[B, H, W, C]")
    student, teacher = float_pair(student, teacher)
    # Pooling is linear: the difference of the pooled maps is the pooled difference.
    gap = student - teacher
    value, weight, total = jnp.mean(jnp.square(flat(gap)), axis=1), 1.0, 1.0
    for size in (4, 2, 1):
        if size < min(gap.shape[1:3]):
            weight /= 2.0
            total += weight
            pooled = flat(adaptive_average(gap, (size, size)))
            value += weight * jnp.mean(jnp.square(pooled), axis=1)
    return value / total


def variational_information(
    mean: Float[Array, "batch *positions channels"],
    target: Float[Array, "batch *positions channels"],
    raw_scale: Float[Array, " channels"],
) -> Float[Array, " batch"]:
    """Variational information distillation (VID): minus a Gaussian log-likelihood, per example.

    (1 / 2) mean[(mean - target)^2 / v + log v] over all values, with a variance for each channel,
    v = softplus(raw_scale) + 1e-5. The constant log(2 pi) / 2 is left out, so it can be negative.

    Args:
      mean: [B, ..., C], the student's prediction of the teacher's features.
      target: same shape, the teacher's features; its gradient is stopped.
      raw_scale: [C], any real numbers; trained with the student.

    Returns:
      float32 [B]; not averaged.

    Raises:
      UsageError: `mean` and `target` differ in shape or have only one axis, or `raw_scale` is not
        [C].

    Example:
      >>> print(variational_information(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.full(2, 0.5413)))
      [0.5]

    Reference:
      Ahn, Hu, Damianou, Lawrence and Dai 2019, "Variational information distillation for knowledge
      transfer", section 3.
    """
    check_same_shape(mean, target, "[B, ..., C]")
    channels = jnp.shape(mean)[-1:]
    if jnp.shape(raw_scale) != channels:
        raise UsageError(
            f"raw_scale {jnp.shape(raw_scale)}: expected {channels}, one for each channel"
        )
    mean, target = float_pair(mean, target)
    variance = jax.nn.softplus(jnp.asarray(raw_scale, jnp.float32)) + VARIANCE_EPSILON
    variance = jnp.expand_dims(variance, range(mean.ndim - 1))
    return 0.5 * jnp.mean(flat(jnp.square(mean - target) / variance + jnp.log(variance)), axis=1)
