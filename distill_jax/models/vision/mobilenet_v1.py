"""MobileNet (Howard et al., 2017, table 1) for ImageNet, at full width.

The student of the ResNet-50 teacher in the distillation papers.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.registry import register
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import StagedClassifier

# (channels, stride) of every block.
STAGES = (
    ((64, 1), (128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)


class Block(nnx.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution; the network applies the last ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.depthwise = layers.ConvNorm(
            inputs, inputs, 3, stride=stride, groups=inputs, init="torch", dtype=dtype, rngs=rngs
        )
        self.pointwise = layers.ConvNorm(inputs, outputs, 1, init="torch", dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, train: bool, relu: bool = False) -> Array:
        return self.pointwise(self.depthwise(x, train=train, relu=True), train=train, relu=relu)


class MobileNetV1(StagedClassifier):
    """A 3x3 stem at stride 2, thirteen blocks, a global average; taps of `StagedClassifier`.

    A stage ends where the map is halved next, as in mdistiller (Zhao et al., 2022). "pooled" is
    [B, 1024].

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
        inputs = 32
        stem = layers.ConvNorm(
            input_shape[-1], inputs, 3, stride=2, init="torch", dtype=dtype, rngs=rngs
        )
        stages = []
        for table in STAGES:
            blocks = []
            for outputs, stride in table:
                blocks.append(Block(inputs, outputs, stride=stride, dtype=dtype, rngs=rngs))
                inputs = outputs
            stages.append(blocks)
        super().__init__(
            input_shape,
            dtype,
            stem=stem,
            stages=stages,
            classifier=layers.classifier(inputs, num_classes, rngs=rngs),
        )


register("mobilenet_v1", MobileNetV1)
