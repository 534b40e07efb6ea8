"""The CIFAR residual networks (He et al., 2016, sec. 4.2) in the form that distillation papers use.

As in RepDistiller (Tian et al., 2020) and its descendants: the shortcut is a 1x1 convolution with
batch normalisation wherever the stride is not 1 or the width changes (option B, where He et al. pad
with zeros; shortcut="pad" is that). "resnet8x4" and "resnet32x4" have four times the width, but
only twice in the stem.
"""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.outputs import Outputs, checked_images
from distill_jax.models.registry import register, require
from distill_jax.models.vision import layers


class Block(nnx.Module):
    """Two 3x3 convolutions and a shortcut; the last ReLU is left to the caller.

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
        shortcut: Literal["projection", "pad"] = "projection",
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

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = self.second(nnx.relu(self.first(x, train=train)), train=train)
        if self.projection is not None:
            return y + self.projection(x, train=train)
        before = self.missing // 2
        channels = (before, self.missing - before)
        x = x[:, :: self.stride, :: self.stride]
        return y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), channels))


class ResNet(nnx.Module):
    """A 3x3 stem, three stages of (depth - 2) / 6 blocks at strides 1, 2, 2, a global average.

    Taps: "stem" and "stage1" .. "stage3" [B, H, W, C] after their ReLU; "stage1_pre" .. the sums
    before it; "pooled" [B, C].

    Args:
      depth: 6n + 2, the number of layers with weights, shortcuts not counted.
      widths: channels of the stem and the three stages.
      input_shape: (H, W, C).
      num_classes: K.
      shortcut: "projection" or "pad", see `Block`.
      dtype: compute dtype of all layers but the classifier.
      rngs: of the initial values.
    """

    batch_norm = True

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
        kinds = ("projection", "pad")
        require(shortcut in kinds, "shortcut", shortcut, " or ".join(map(repr, kinds)))

        def stage(inputs: int, outputs: int, stride: int) -> nnx.List:
            return nnx.List(
                Block(
                    outputs if i else inputs,
                    outputs,
                    stride=1 if i else stride,
                    shortcut=shortcut,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range((depth - 2) // 6)
            )

        self.input_shape = input_shape
        self.dtype = dtype
        self.stem = layers.ConvNorm(input_shape[-1], widths[0], 3, dtype=dtype, rngs=rngs)
        self.stage1 = stage(widths[0], widths[1], 1)
        self.stage2 = stage(widths[1], widths[2], 2)
        self.stage3 = stage(widths[2], widths[3], 2)
        self.classifier = layers.classifier(widths[3], num_classes, rngs=rngs)

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Outputs:
        """images: float [B, H, W, C], normalised. Returns logits [B, K] and the taps."""
        del key  # Nothing here is random.
        x = checked_images(images, self.input_shape, self.dtype)
        taps = {"stem": nnx.relu(self.stem(x, train=train))}
        x = taps["stem"]
        for name in ("stage1", "stage2", "stage3"):
            for block in getattr(self, name):
                taps[f"{name}_pre"] = block(x, train=train)
                taps[name] = x = nnx.relu(taps[f"{name}_pre"])
        taps["pooled"] = layers.pool(x)
        return Outputs(self.classifier(taps["pooled"]), taps)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(f"resnet{_depth}", ResNet, _depth, (16, 16, 32, 64))
for _depth in (8, 32):
    register(f"resnet{_depth}x4", ResNet, _depth, (32, 64, 128, 256))
