"""MobileNetV2 (Sandler et al., 2018) at half width for CIFAR, as in RepDistiller.

"MobileNetV2" in the tables of the CIFAR distillation papers (Tian et al., 2020) is this network:
every width halved but that of the last convolution, ReLU where Sandler et al. have ReLU6, a stem at
stride 2 even for 32 pixels, and an expansion in the first block too, at factor 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.initializers import initial
from distill_jax.models.registry import register
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import StagedClassifier

# (expansion, channels, blocks, stride of the first), the rows of table 2 at half width. A stage
# here ends where the distillation papers read a map.
STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


class Block(nnx.Module):
    """The inverted residual: 1x1 up, depthwise 3x3, 1x1 down with no ReLU after it.

    The input is added where the shape allows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        expansion: int,
        stride: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width = expansion * inputs
        self.first = layers.ConvNorm(inputs, width, 1, dtype=dtype, rngs=rngs)
        self.second = layers.ConvNorm(
            width, width, 3, stride=stride, groups=width, dtype=dtype, rngs=rngs
        )
        self.third = layers.ConvNorm(width, outputs, 1, dtype=dtype, rngs=rngs)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = self.first(x, train=train, relu=True)
        y = self.second(y, train=train, relu=True)
        return self.third(y, train=train, residual=x if self.residual else None)


class MobileNetV2(StagedClassifier):
    """A 3x3 stem at stride 2, seventeen blocks, a 1x1 convolution, a global average.

    Taps: those of `StagedClassifier` without the "_pre" twins, because no ReLU follows the sum of a
    block. "pooled" is [B, 1280].

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
        inputs = 16
        stem = layers.ConvNorm(input_shape[-1], inputs, 3, stride=2, dtype=dtype, rngs=rngs)
        stages = []
        for rows in STAGES:
            blocks: list[nnx.Module] = []
            for expansion, outputs, depth, stride in rows:
                make = functools.partial(Block, expansion=expansion, dtype=dtype, rngs=rngs)
                blocks += layers.stage(make, inputs, outputs, depth, stride=stride)
                inputs = outputs
            stages.append(blocks)
        super().__init__(
            input_shape,
            dtype,
            stem=stem,
            stages=stages,
            head=layers.ConvNorm(inputs, 1280, 1, dtype=dtype, rngs=rngs),
            classifier=layers.classifier(
                1280,
                num_classes,
                kernel_init=initial("normal", 0.01),
                bias_init=nnx.initializers.zeros,
                rngs=rngs,
            ),
        )

    def run_block(
        self, block: Callable[..., Any], x: Array, *, train: bool, last: bool
    ) -> tuple[Array, None]:
        del last
        return block(x, train=train), None


register("mobilenet_v2", MobileNetV2)
