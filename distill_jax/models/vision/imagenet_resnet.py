"""The residual networks of He et al. (2016, table 1), for ImageNet and with a stem for CIFAR.

"imagenet_resnet18" .. "imagenet_resnet152" are torchvision's: of the three convolutions in a
bottleneck the 3x3 one strides (its "v1.5"), where He et al. let the first 1x1 do so. "resnet50" is
the one of the CIFAR papers (Tian et al., 2020): a 3x3 stem at stride 1 and no pooling after it.
"""

import functools

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.registry import register
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import StagedClassifier
from distill_jax.models.vision.resnet import Block


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the network applies the last ReLU.

    The inner width is a quarter of `outputs`.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = outputs // 4
        self.first = layers.ConvNorm(inputs, width, 1, dtype=dtype, rngs=rngs)
        self.second = layers.ConvNorm(width, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.third = layers.ConvNorm(width, outputs, 1, dtype=dtype, rngs=rngs)
        self.projection = (
            layers.ConvNorm(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)
            if stride != 1 or inputs != outputs
            else None
        )

    def __call__(self, x: Array, *, train: bool, relu: bool = False) -> Array:
        shortcut = x if self.projection is None else self.projection(x, train=train)
        x = self.first(x, train=train, relu=True)
        x = self.second(x, train=train, relu=True)
        return self.third(x, train=train, residual=shortcut, relu=relu)


class ImageNetResNet(StagedClassifier):
    """A stem, four stages at strides 1, 2, 2, 2, a global average; taps of `StagedClassifier`.

    The tap "stem" is the map before the pooling.

    Args:
      block: `Block` or `Bottleneck`.
      depths: how many of them each stage has.
      large: whether the stem is 7x7 at stride 2 with a 3x3 max-pool at stride 2 after it; else 3x3
        at stride 1 and no pool.
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.
    """

    def __init__(
        self,
        block: type[Block] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        large: bool,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        size, stride = (7, 2) if large else (3, 1)
        stem = layers.ConvNorm(input_shape[-1], 64, size, stride=stride, dtype=dtype, rngs=rngs)
        make = functools.partial(block, dtype=dtype, rngs=rngs)
        inputs, outputs = 64, 256 if block is Bottleneck else 64
        stages = []
        for i, depth in enumerate(depths):
            stages.append(layers.stage(make, inputs, outputs, depth, stride=2 if i else 1))
            inputs, outputs = outputs, 2 * outputs
        super().__init__(
            input_shape,
            dtype,
            stem=stem,
            stages=stages,
            classifier=layers.classifier(inputs, num_classes, rngs=rngs),
        )
        self.large = large

    def after_stem(self, x: Array) -> Array:
        return layers.max_pool(x, 3, stride=2, margin=1) if self.large else x


register("imagenet_resnet18", ImageNetResNet, Block, (2, 2, 2, 2), True)
register("imagenet_resnet34", ImageNetResNet, Block, (3, 4, 6, 3), True)
register("imagenet_resnet50", ImageNetResNet, Bottleneck, (3, 4, 6, 3), True)
register("imagenet_resnet152", ImageNetResNet, Bottleneck, (3, 8, 36, 3), True)
register("resnet50", ImageNetResNet, Bottleneck, (3, 4, 6, 3), False)
