"""The residual networks of He et al. (2016, table 1), for ImageNet and with a stem for CIFAR.

"imagenet_resnet18" .. "imagenet_resnet152" are torchvision's: of the three convolutions in a
bottleneck the 3x3 one strides (its "v1.5"), where He et al. let the first 1x1 do so. "resnet50" is
the one of the CIFAR papers (Tian et al., 2020): a 3x3 stem at stride 1 and no pooling after it.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.outputs import Outputs, checked_images
from distill_jax.models.registry import register
from distill_jax.models.vision import layers
from distill_jax.models.vision.resnet import Block


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the last ReLU is left to the caller.

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

    def __call__(self, x: Array, *, train: bool) -> Array:
        shortcut = x if self.projection is None else self.projection(x, train=train)
        x = nnx.relu(self.first(x, train=train))
        x = nnx.relu(self.second(x, train=train))
        return self.third(x, train=train) + shortcut


class ImageNetResNet(nnx.Module):
    """A stem, four stages at strides 1, 2, 2, 2, a global average.

    Taps: "stem" [B, H, W, C] after its ReLU and before the pooling; "stage1" .. "stage4" after
    their ReLU; "stage1_pre" .. the sums before it; "pooled" [B, C].

    Args:
      block: `Block` or `Bottleneck`.
      depths: how many of them each stage has.
      large: whether the stem is 7x7 at stride 2 with a 3x3 max-pool at stride 2 after it; else 3x3
        at stride 1 and no pool.
      input_shape: (H, W, C).
      num_classes: K.
      dtype: compute dtype of all layers but the classifier.
      rngs: of the initial values.
    """

    batch_norm = True

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
        self.input_shape = input_shape
        self.dtype = dtype
        self.large = large
        size, stride = (7, 2) if large else (3, 1)
        self.stem = layers.ConvNorm(
            input_shape[-1], 64, size, stride=stride, dtype=dtype, rngs=rngs
        )
        inputs = 64
        for stage, depth in enumerate(depths, start=1):
            outputs = 64 * 2 ** (stage - 1) * (4 if block is Bottleneck else 1)
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(block(inputs, outputs, stride=stride, dtype=dtype, rngs=rngs))
                inputs = outputs
            setattr(self, f"stage{stage}", nnx.List(blocks))
        self.classifier = layers.classifier(inputs, num_classes, rngs=rngs)

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Outputs:
        """images: float [B, H, W, C], normalised. Returns logits [B, K] and the taps."""
        del key  # Nothing here is random.
        x = checked_images(images, self.input_shape, self.dtype)
        taps = {"stem": nnx.relu(self.stem(x, train=train))}
        x = layers.max_pool(taps["stem"], 3, stride=2, margin=1) if self.large else taps["stem"]
        for name in ("stage1", "stage2", "stage3", "stage4"):
            for block in getattr(self, name):
                taps[f"{name}_pre"] = block(x, train=train)
                taps[name] = x = nnx.relu(taps[f"{name}_pre"])
        taps["pooled"] = layers.pool(x)
        return Outputs(self.classifier(taps["pooled"]), taps)


register("imagenet_resnet18", ImageNetResNet, Block, (2, 2, 2, 2), True)
register("imagenet_resnet34", ImageNetResNet, Block, (3, 4, 6, 3), True)
register("imagenet_resnet50", ImageNetResNet, Bottleneck, (3, 4, 6, 3), True)
register("imagenet_resnet152", ImageNetResNet, Bottleneck, (3, 8, 36, 3), True)
register("resnet50", ImageNetResNet, Bottleneck, (3, 4, 6, 3), False)
