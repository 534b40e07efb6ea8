"""The small networks that a method trains with the student: convolutions, embeddings, connectors.

Pure functions of flat dictionaries: `conv_arrays` makes the arrays under a name, `conv` applies
them. Batch normalisation uses the statistics of the batch, without running averages: an adapter
exists only in training. They compute in float32 whatever the dtype of the networks.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.methods.taps import Feature
from distill_jax.models.initializers import initial

Arrays = dict[str, jax.Array]


def conv_arrays(
    name: str,
    key: jax.Array,
    size: int,
    inputs: int,
    outputs: int,
    *,
    bias: bool = True,
    norm: bool = False,
    init: str = "uniform",
) -> Arrays:
    """Arrays of a square convolution, or of a dense layer, and of a batch normalisation after it.

    Args:
      name: prefix of their names.
      key: of the initial values.
      size: of the kernel; 0 for a dense layer [inputs, outputs].
      inputs: channels in.
      outputs: channels out.
      bias: whether the convolution has a bias.
      norm: whether batch normalisation follows.
      init: "uniform", in +-1/sqrt(fan in), PyTorch's default; "fan_out", N(0, 2 / (size^2
        outputs)); "kaiming_uniform", in +-sqrt(3 / fan in).
    """
    area = max(size * size, 1)
    kernel_key, bias_key = jax.random.split(key)
    fan_in = inputs * area
    if init == "fan_out":
        draw = initial("normal", math.sqrt(2 / (area * outputs)))
    else:
        draw = initial("uniform", math.sqrt((3 if init == "kaiming_uniform" else 1) / fan_in))
    shape = (size, size, inputs, outputs) if size else (inputs, outputs)
    arrays = {f"{name}/kernel": draw(kernel_key, shape)}
    if bias:
        arrays[f"{name}/bias"] = initial("uniform", 1 / math.sqrt(fan_in))(bias_key, (outputs,))
    if norm:
        arrays[f"{name}/norm_scale"] = jnp.ones((outputs,), jnp.float32)
        arrays[f"{name}/norm_bias"] = jnp.zeros((outputs,), jnp.float32)
    return arrays


def conv(
    arrays: Mapping[str, jax.Array],
    name: str,
    x: Float[Array, "batch *positions inputs"],
    *,
    stride: int = 1,
    padding: int | None = None,
    upsample: int = 1,
) -> Float[Array, "batch *new_positions outputs"]:
    """Applies a layer that `conv_arrays` made.

    Args:
      arrays: the dictionary with the layer's arrays.
      name: prefix of their names.
      x: [B, H, W, C], or [B, C] for a dense layer.
      stride: of the convolution.
      padding: on each side; None for (size - 1) // 2.
      upsample: 2 for the transposed convolution that doubles the size (kernel 4).

    Returns:
      float32 [B, H', W', outputs], or [B, outputs].
    """
    kernel = arrays[f"{name}/kernel"]
    x = x.astype(jnp.float32)
    if kernel.ndim == 2:
        y = x @ kernel
    else:
        size = kernel.shape[0]
        if upsample > 1:
            padding = size - 1 - (size - upsample) // 2
        elif padding is None:
            padding = (size - 1) // 2
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((padding, padding),) * 2,
            lhs_dilation=(upsample, upsample),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    by_channel = {
        part: jnp.expand_dims(arrays[f"{name}/{part}"], range(y.ndim - 1))
        for part in ("bias", "norm_scale", "norm_bias")
        if f"{name}/{part}" in arrays
    }
    if "bias" in by_channel:
        y = y + by_channel["bias"]
    if "norm_scale" in by_channel:
        y = batch_norm(y) * by_channel["norm_scale"] + by_channel["norm_bias"]
    return y


def batch_norm(x: Float[Array, "*positions channels"]) -> Float[Array, "*positions channels"]:
    """(x - mean) / sqrt(variance + 1e-5), over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + 1e-5)


def resize_nearest(
    x: Float[Array, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch new_height new_width channels"]:
    """A map at another height and width: output i is input floor(i * old / new)."""
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        if old != new:
            x = jnp.take(x, jnp.arange(new) * old // new, axis=axis)
    return x


def regressor_arrays(
    name: str, key: jax.Array, student: Feature, teacher: Feature, *, norm: bool = False
) -> Arrays:
    """Arrays of the regression from a student's feature to the shape of a teacher's.

    As in RepDistiller (Tian et al. 2020): 3x3 at stride 2 if the student's map is twice as large, a
    transposed 4x4 if it is half as large, a valid convolution of the difference in size if it is
    larger otherwise. If it is smaller otherwise, as in SimKD (Chen et al. 2022), a 3x3, and the
    teacher's map is pooled.
    """
    channels = student.shape[-1], teacher.shape[-1]
    if student.ndim == 2:
        return conv_arrays(name, key, 0, *channels, norm=norm)
    ours, theirs = student.shape[1], teacher.shape[1]
    if ours == 2 * theirs:
        size = 3
    elif 2 * ours == theirs:
        size = 4
    else:
        size = 1 + ours - theirs if ours >= theirs else 3
    return conv_arrays(name, key, size, *channels, norm=norm)


def regress(
    arrays: Mapping[str, jax.Array],
    name: str,
    source: Float[Array, "batch *positions channels"],
    target: Float[Array, "batch *target_positions target_channels"],
) -> Float[Array, "batch *new_positions target_channels"]:
    """Applies a regression; the result is as large as the target, or as the source if smaller."""
    if source.ndim == 2:
        return conv(arrays, name, source)
    ours, theirs = source.shape[1], target.shape[1]
    if ours == 2 * theirs:
        return conv(arrays, name, source, stride=2)
    if 2 * ours == theirs:
        return conv(arrays, name, source, upsample=2)
    return conv(arrays, name, source, padding=0 if ours >= theirs else 1)
