"""MobileNet (Howard et al., 2017, table 1) for ImageNet, at full width.

The student of the ResNet-50 teacher in the distillation papers.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.outputs import Outputs, checked_images
from distill_jax.models.registry import register
from distill_jax.models.vision import layers

# (channels, stride) of every block.
STAGES = {
    "stage1": ((64, 1), (128, 2), (128, 1)),
    "stage2": ((256, 2), (256, 1)),
    "stage3": ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    "stage4": ((1024, 2), (1024, 1)),
}


class Block(nnx.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution; the last ReLU is left to the caller."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.depthwise = layers.ConvNorm(
            inputs, inputs, 3, stride=stride, groups=inputs, init="torch", dtype=dtype, rngs=rngs
        )
        self.pointwise = layers.ConvNorm(inputs, outputs, 1, init="torch", dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> Array:
        return self.pointwise(nnx.relu(self.depthwise(x, train=train)), train=train)


class MobileNetV1(nnx.Module):
    """A 3x3 stem at stride 2, thirteen blocks, a global average.

    A stage ends where the map is halved next, as in mdistiller (Zhao et al., 2022). Taps: "stem"
    and "stage1" .. "stage4" [B, H, W, C] after their ReLU; "stage1_pre" .. before it; "pooled"
    [B, 1024].

    Args:
      input_shape: (H, W, C).
      num_classes: K.
      dtype: compute dtype of all layers but the classifier.
      rngs: of the initial values.
    """

    batch_norm = True

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.input_shape = input_shape
        self.dtype = dtype
        inputs = 32
        self.stem = layers.ConvNorm(
            input_shape[-1], inputs, 3, stride=2, init="torch", dtype=dtype, rngs=rngs
        )
        for name, blocks in STAGES.items():
            stage = []
            for outputs, stride in blocks:
                stage.append(Block(inputs, outputs, stride=stride, dtype=dtype, rngs=rngs))
                inputs = outputs
            setattr(self, name, nnx.List(stage))
        self.classifier = layers.classifier(inputs, num_classes, rngs=rngs)

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Outputs:
        """images: float [B, H, W, C], normalised. Returns logits [B, K] and the taps."""
        del key  # Nothing here is random.
        x = checked_images(images, self.input_shape, self.dtype)
        taps = {"stem": nnx.relu(self.stem(x, train=train))}
        x = taps["stem"]
        for name in STAGES:
            for block in getattr(self, name):
                taps[f"{name}_pre"] = block(x, train=train)
                taps[name] = x = nnx.relu(taps[f"{name}_pre"])
        taps["pooled"] = layers.pool(x)
        return Outputs(self.classifier(taps["pooled"]), taps)


register("mobilenet_v1", MobileNetV1)
