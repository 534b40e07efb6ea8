"""MobileNetV2 (Sandler et al., 2018) at half width for CIFAR, as in RepDistiller.

"MobileNetV2" in the tables of the CIFAR distillation papers (Tian et al., 2020) is this network:
every width halved but that of the last convolution, ReLU where Sandler et al. have ReLU6, a stem at
stride 2 even for 32 pixels, and an expansion in the first block too, at factor 1.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.outputs import Outputs, checked_images
from distill_jax.models.registry import register
from distill_jax.models.vision import layers

# (expansion, channels, blocks, stride of the first), the rows of table 2 at half width. A stage
# here ends where the distillation papers read a map.
STAGES = {
    "stage1": ((1, 8, 1, 1), (6, 12, 2, 1)),
    "stage2": ((6, 16, 3, 2),),
    "stage3": ((6, 32, 4, 2), (6, 48, 3, 1)),
    "stage4": ((6, 80, 3, 2), (6, 160, 1, 1)),
}


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
        y = nnx.relu(self.first(x, train=train))
        y = nnx.relu(self.second(y, train=train))
        y = self.third(y, train=train)
        return x + y if self.residual else y


class MobileNetV2(nnx.Module):
    """A 3x3 stem at stride 2, seventeen blocks, a 1x1 convolution, a global average.

    Taps: "stem" [B, H, W, C] after its ReLU; "stage1" .. "stage4", the sums of their last blocks,
    which no ReLU follows, so that there are no "_pre" twins; "pooled" [B, 1280].

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
        inputs = 16
        self.stem = layers.ConvNorm(input_shape[-1], inputs, 3, stride=2, dtype=dtype, rngs=rngs)
        for name, rows in STAGES.items():
            stage = []
            for expansion, outputs, blocks, first in rows:
                for i in range(blocks):
                    stride = 1 if i else first
                    stage.append(
                        Block(
                            inputs,
                            outputs,
                            expansion=expansion,
                            stride=stride,
                            dtype=dtype,
                            rngs=rngs,
                        )
                    )
                    inputs = outputs
            setattr(self, name, nnx.List(stage))
        self.head = layers.ConvNorm(inputs, 1280, 1, dtype=dtype, rngs=rngs)
        self.classifier = layers.classifier(
            1280,
            num_classes,
            kernel_init=layers.initial("normal", 0.01),
            bias_init=nnx.initializers.zeros,
            rngs=rngs,
        )

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Outputs:
        """images: float [B, H, W, C], normalised. Returns logits [B, K] and the taps."""
        del key  # Nothing here is random.
        x = checked_images(images, self.input_shape, self.dtype)
        taps = {"stem": nnx.relu(self.stem(x, train=train))}
        x = taps["stem"]
        for name in STAGES:
            for block in getattr(self, name):
                x = block(x, train=train)
            taps[name] = x
        taps["pooled"] = layers.pool(nnx.relu(self.head(x, train=train)))
        return Outputs(self.classifier(taps["pooled"]), taps)


register("mobilenet_v2", MobileNetV2)
