"""ShuffleNet (Zhang et al., 2018) and ShuffleNet V2 (Ma et al., 2018) for CIFAR.

As in RepDistiller (Tian et al., 2020): a 1x1 stem of 24 channels at stride 1 and no pooling after
it, three stages that each halve the map.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.registry import register
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import StagedClassifier

STEM = 24  # channels


def shuffle(x: Array, groups: int) -> Array:
    """Channel c of group g becomes channel c * groups + g; [B, H, W, C] keeps its shape."""
    *rest, channels = x.shape
    return x.reshape(*rest, groups, channels // groups).swapaxes(-1, -2).reshape(x.shape)


class Unit(nnx.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; the network applies the last ReLU.

    At stride 2 the averaged input is appended to the channels, else the input is added.

    Args:
      inputs: channels in.
      outputs: channels out, appended ones included.
      first_groups: of the first convolution and of the shuffle.
      stride: 1 or 2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        first_groups: int,
        stride: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        own = outputs - inputs if stride == 2 else outputs
        width = own // 4
        conv_norm = functools.partial(layers.ConvNorm, init="torch", dtype=dtype, rngs=rngs)
        self.first = conv_norm(inputs, width, 1, groups=first_groups)
        self.second = conv_norm(width, width, 3, stride=stride, groups=width)
        self.third = conv_norm(width, own, 1, groups=3)
        self.groups = first_groups
        self.stride = stride

    def __call__(self, x: Array, *, train: bool, relu: bool = False) -> Array:
        y = shuffle(self.first(x, train=train, relu=True), self.groups)
        y = self.second(y, train=train, relu=True)
        if self.stride == 1:
            return self.third(y, train=train, residual=x, relu=relu)
        y = self.third(y, train=train)
        # Padding counts as zeros in the average, as in torch.nn.AvgPool2d.
        with jax.numpy_dtype_promotion("standard"):  # flax divides by an integer
            shortcut = nnx.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        y = jnp.concatenate([y, shortcut], -1)
        return nnx.relu(y) if relu else y


class ShuffleNetV1(StagedClassifier):
    """A 1x1 stem, stages of 4, 8 and 4 units, a global average; taps of `StagedClassifier`.

    Three groups everywhere but in the very first unit, whose input has too few channels. "pooled"
    is [B, 960].

    Args:
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def unit(inputs: int, outputs: int, *, stride: int) -> Unit:
            groups = 1 if inputs == STEM else 3
            return Unit(inputs, outputs, first_groups=groups, stride=stride, dtype=dtype, rngs=rngs)

        super().__init__(
            input_shape,
            dtype,
            stem=layers.ConvNorm(input_shape[-1], STEM, 1, init="torch", dtype=dtype, rngs=rngs),
            stages=[
                layers.stage(unit, STEM, 240, 4, stride=2),
                layers.stage(unit, 240, 480, 8, stride=2),
                layers.stage(unit, 480, 960, 4, stride=2),
            ],
            classifier=layers.classifier(960, num_classes, rngs=rngs),
        )


class Branch(nnx.Module):
    """1x1, depthwise 3x3, 1x1 convolutions; the unit applies the last ReLU."""

    def __init__(self, inputs: int, width: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        conv_norm = functools.partial(layers.ConvNorm, init="torch", dtype=dtype, rngs=rngs)
        self.first = conv_norm(inputs, width, 1)
        self.second = conv_norm(width, width, 3, stride=stride, groups=width)
        self.third = conv_norm(width, width, 1)

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = self.first(x, train=train, relu=True)
        return self.third(self.second(y, train=train), train=train)


class DownUnit(nnx.Module):
    """Halves the map: two branches see the whole input, each makes half of the channels."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        conv_norm = functools.partial(layers.ConvNorm, init="torch", dtype=dtype, rngs=rngs)
        half = outputs // 2
        self.depthwise = conv_norm(inputs, inputs, 3, stride=2, groups=inputs)
        self.pointwise = conv_norm(inputs, half, 1)
        self.branch = Branch(inputs, half, stride=2, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Returns the shuffled channels, and the same before ReLU and shuffle."""
        left = self.pointwise(self.depthwise(x, train=train), train=train)
        before = jnp.concatenate([left, self.branch(x, train=train)], -1)
        return shuffle(nnx.relu(before), 2), before


class SplitUnit(nnx.Module):
    """Half of the channels go through a branch, the other half bypasses it."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.branch = Branch(channels // 2, channels // 2, stride=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Returns the shuffled channels, and the same before ReLU and shuffle."""
        past, through = jnp.split(x, 2, axis=-1)
        through = self.branch(through, train=train)
        both = jnp.concatenate([past, nnx.relu(through)], -1)
        return shuffle(both, 2), jnp.concatenate([past, through], -1)


class ShuffleNetV2(StagedClassifier):
    """A 1x1 stem, stages of a `DownUnit` and 3, 7, 3 `SplitUnit`s, a 1x1 convolution, an average.

    Taps: those of `StagedClassifier`, but a stage is the map after the shuffle, and its "_pre" twin
    the concatenated halves of the last unit, before the ReLU of the second one and before the
    shuffle: shuffled and activated they are the stage.

    Args:
      widths: channels of the three stages and of the last convolution.
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def stage(inputs: int, outputs: int, depth: int) -> list[nnx.Module]:
            down = DownUnit(inputs, outputs, dtype=dtype, rngs=rngs)
            return [down, *(SplitUnit(outputs, dtype=dtype, rngs=rngs) for _ in range(depth))]

        conv_norm = functools.partial(layers.ConvNorm, init="torch", dtype=dtype, rngs=rngs)
        super().__init__(
            input_shape,
            dtype,
            stem=conv_norm(input_shape[-1], STEM, 1),
            stages=[
                stage(STEM, widths[0], 3),
                stage(widths[0], widths[1], 7),
                stage(widths[1], widths[2], 3),
            ],
            head=conv_norm(widths[2], widths[3], 1),
            classifier=layers.classifier(widths[3], num_classes, rngs=rngs),
        )

    def run_block(
        self, block: Callable[..., Any], x: Array, *, train: bool, last: bool
    ) -> tuple[Array, Array]:
        del last  # Both maps come out of every unit.
        return block(x, train=train)


register("shufflenet_v1", ShuffleNetV1)
register("shufflenet_v2", ShuffleNetV2, (116, 232, 464, 1024))
register("shufflenet_v2_1.5x", ShuffleNetV2, (176, 352, 704, 1024))
