"""A small convolutional network for small images (8x8 to 32x32), quick enough for a CPU."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.outputs import Outputs
from distill_jax.models.registry import register, require
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import ImageClassifier


class CNN(ImageClassifier):
    """Stages of one 3x3 convolution with batch normalisation and ReLU, then one dense layer.

    A stage halves the map while its sides are 4 or more, by the stride of its convolution: that
    costs a quarter of a convolution and a pool.

    The map is flattened, not averaged: at this size, the position of a stroke tells digits apart.

    Taps: "stage1" .. [B, H, W, C] after the ReLU; "stage1_pre" .. before it; "pooled" [B, dense],
    the dense layer after its ReLU and before dropout.

    Args:
      channels: of the stages.
      dense: width of the dense layer.
      dropout: rate before and after the dense layer, in [0, 1).
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.
    """

    batch_norm = True

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: tuple[int, ...] = (32, 64),
        dense: int = 128,
        dropout: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        positive = len(channels) > 0 and all(width > 0 for width in channels)
        require(positive, "channels", channels, "one or more positive ints")
        require(dense > 0, "dense", dense, "a positive int")
        require(0 <= dropout < 1, "dropout", dropout, "a rate in [0, 1)")
        super().__init__(input_shape, dtype)
        self.dropout = dropout
        height, width, inputs = input_shape
        stages = []
        for outputs in channels:
            stride = 2 if min(height, width) >= 4 else 1
            stages.append(
                layers.ConvNorm(inputs, outputs, 3, stride=stride, dtype=dtype, rngs=rngs)
            )
            height, width, inputs = -(-height // stride), -(-width // stride), outputs
        self.stages = nnx.List(stages)
        self.dense = layers.hidden(height * width * inputs, dense, dtype=dtype, rngs=rngs)
        self.classifier = layers.classifier(dense, num_classes, rngs=rngs)

    def outputs(self, x: Array, *, train: bool, key: Array | None) -> Outputs:
        taps = {}
        for i, stage in enumerate(self.stages, start=1):
            taps[f"stage{i}_pre"] = stage(x, train=train)
            taps[f"stage{i}"] = x = nnx.relu(taps[f"stage{i}_pre"])
        x = layers.dropout(x.reshape(x.shape[0], -1), self.dropout, train=train, key=key, layer=0)
        taps["pooled"] = nnx.relu(self.dense(x))
        x = layers.dropout(taps["pooled"], self.dropout, train=train, key=key, layer=1)
        return Outputs(self.classifier(x), taps)


register("cnn", CNN)
