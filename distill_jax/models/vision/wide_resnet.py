"""Wide residual networks (Zagoruyko and Komodakis, 2016), as in RepDistiller (Tian et al., 2020).

"wrn_40_2" is 40 layers deep and twice as wide as the ResNets of He et al. (2016). No dropout.
"""

import functools

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.batch_norm import BatchNorm
from distill_jax.models.outputs import Outputs
from distill_jax.models.registry import register
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import ImageClassifier


class Block(nnx.Module):
    """Two 3x3 convolutions, each after batch normalisation and ReLU, and a shortcut.

    Where the width changes, the shortcut is a 1x1 convolution of the activated input, without
    normalisation; else the input itself.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = BatchNorm(inputs, rngs=rngs)
        self.conv1 = layers.convolution(inputs, outputs, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(outputs, rngs=rngs)
        self.conv2 = layers.convolution(outputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.projection = (
            layers.convolution(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)
            if inputs != outputs
            else None
        )

    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Returns the sum, and the normalised input before its ReLU."""
        normalised = self.norm1(x, train=train)
        active = nnx.relu(normalised)
        y = layers.convolve_and_normalize(self.conv1, self.norm2, active, train=train, relu=True)
        y = self.conv2(y)
        shortcut = x if self.projection is None else self.projection(active)
        return y + shortcut, normalised


class WideResNet(ImageClassifier):
    """A 3x3 stem, three stages of (depth - 4) / 6 blocks at strides 1, 2, 2, a global average.

    Taps: "stem", the raw convolution, and "stage1" .. "stage3" [B, H, W, C], the raw sums: the
    network normalises and activates only what it reads next. "stage1_pre" .. is the sum as the next
    batch normalisation returns it, before the ReLU; "pooled" [B, C].

    Args:
      depth: 6n + 4.
      width: k, the factor to the channels 16, 32, 64 of the stages; the stem has 16.
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.
    """

    batch_norm = True

    def __init__(
        self,
        depth: int,
        width: int,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(input_shape, dtype)
        block = functools.partial(Block, dtype=dtype, rngs=rngs)
        blocks = (depth - 4) // 6
        self.stem = layers.convolution(input_shape[-1], 16, 3, dtype=dtype, rngs=rngs)
        self.stage1 = nnx.List(layers.stage(block, 16, 16 * width, blocks, stride=1))
        self.stage2 = nnx.List(layers.stage(block, 16 * width, 32 * width, blocks, stride=2))
        self.stage3 = nnx.List(layers.stage(block, 32 * width, 64 * width, blocks, stride=2))
        self.norm = BatchNorm(64 * width, rngs=rngs)
        self.classifier = layers.classifier(
            64 * width, num_classes, bias_init=nnx.initializers.zeros, rngs=rngs
        )

    def outputs(self, x: Array, *, train: bool, key: Array | None) -> Outputs:
        del key  # Nothing here is random.
        x = self.stem(x)
        taps = {"stem": x}
        for stage in (1, 2, 3):
            for i, block in enumerate(getattr(self, f"stage{stage}")):
                x, normalised = block(x, train=train)
                if stage > 1 and i == 0:
                    taps[f"stage{stage - 1}_pre"] = normalised
            taps[f"stage{stage}"] = x
        taps["stage3_pre"] = self.norm(x, train=train)
        taps["pooled"] = layers.pool(nnx.relu(taps["stage3_pre"]))
        return Outputs(self.classifier(taps["pooled"]), taps)


for _depth in (16, 40):
    for _width in (1, 2):
        register(f"wrn_{_depth}_{_width}", WideResNet, _depth, _width)
