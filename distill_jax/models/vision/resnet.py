"""The CIFAR residual networks (He et al., 2016, sec. 4.2) in the form that distillation papers use.

As in RepDistiller (Tian et al., 2020) and its descendants: the shortcut is a 1x1 convolution with
batch normalisation wherever the stride is not 1 or the width changes (option B, where He et al. pad
with zeros; shortcut="pad" is that). "resnet8x4" and "resnet32x4" have four times the width, but
only twice in the stem.
"""

import functools

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.registry import register, require
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import StagedClassifier

SHORTCUTS = ("projection", "pad")


class Block(nnx.Module):
    """Two 3x3 convolutions and a shortcut; the network applies the last ReLU.

    Where the map changes, the shortcut is a projection (option B of He et al., 2016, sec. 3.3), or,
    with "pad", every stride-th pixel with half of the missing channels as zeros on either side
    (option A, without parameters).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        shortcut: str = "projection",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.first = layers.ConvNorm(inputs, outputs, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.second = layers.ConvNorm(outputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.stride = stride
        self.missing = outputs - inputs
        self.projection = (
            layers.ConvNorm(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)
            if shortcut == "projection" and (stride != 1 or inputs != outputs)
            else None
        )

    def __call__(self, x: Array, *, train: bool, relu: bool = False) -> Array:
        if self.projection is not None:
            shortcut = self.projection(x, train=train)
        else:
            before = self.missing // 2
            channels = (before, self.missing - before)
            shortcut = x[:, :: self.stride, :: self.stride]
            shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), channels))
        y = self.first(x, train=train, relu=True)
        return self.second(y, train=train, residual=shortcut, relu=relu)


class ResNet(StagedClassifier):
    """A 3x3 stem, three stages of (depth - 2) / 6 blocks at strides 1, 2, 2, a global average.

    Taps: those of `StagedClassifier`.

    Args:
      depth: 6n + 2, the number of layers with weights, shortcuts not counted.
      widths: channels of the stem and the three stages.
      shortcut: "projection" or "pad", see `Block`.
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int],
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        shortcut: str = "projection",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        require(shortcut in SHORTCUTS, "shortcut", shortcut, " or ".join(map(repr, SHORTCUTS)))
        block = functools.partial(Block, shortcut=shortcut, dtype=dtype, rngs=rngs)
        blocks = (depth - 2) // 6
        super().__init__(
            input_shape,
            dtype,
            stem=layers.ConvNorm(input_shape[-1], widths[0], 3, dtype=dtype, rngs=rngs),
            stages=[
                layers.stage(block, widths[0], widths[1], blocks, stride=1),
                layers.stage(block, widths[1], widths[2], blocks, stride=2),
                layers.stage(block, widths[2], widths[3], blocks, stride=2),
            ],
            classifier=layers.classifier(widths[3], num_classes, rngs=rngs),
        )


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(f"resnet{_depth}", ResNet, _depth, (16, 16, 32, 64))
for _depth in (8, 32):
    register(f"resnet{_depth}x4", ResNet, _depth, (32, 64, 128, 256))
