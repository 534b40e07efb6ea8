"""Multilayer perceptron on flattened pixels, as on MNIST in Hinton et al. (2015, sec. 3)."""

import math

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.outputs import Outputs
from distill_jax.models.registry import register, require
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import ImageClassifier


class MLP(ImageClassifier):
    """Dense layers with ReLU, and dropout after each.

    Taps: "hidden1" .. [B, width] after the ReLU and before dropout; "hidden1_pre" .. before the
    ReLU; "pooled", the last one after its ReLU.

    Args:
      widths: of the hidden layers.
      dropout: rate after every hidden layer, in [0, 1).
      input_dropout: rate on the pixels, in [0, 1).
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        widths: tuple[int, ...] = (800, 800),
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        positive = len(widths) > 0 and all(width > 0 for width in widths)
        require(positive, "widths", widths, "one or more positive ints")
        require(0 <= dropout < 1, "dropout", dropout, "a rate in [0, 1)")
        require(0 <= input_dropout < 1, "input_dropout", input_dropout, "a rate in [0, 1)")
        super().__init__(input_shape, dtype)
        self.dropout = dropout
        self.input_dropout = input_dropout
        sizes = (math.prod(input_shape), *widths)
        self.hidden = nnx.List(
            layers.hidden(inputs, outputs, dtype=dtype, rngs=rngs)
            for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.classifier = layers.classifier(sizes[-1], num_classes, rngs=rngs)

    def outputs(self, x: Array, *, train: bool, key: Array | None) -> Outputs:
        x = x.reshape(x.shape[0], -1)
        x = layers.dropout(x, self.input_dropout, train=train, key=key, layer=0)
        taps = {}
        for i, layer in enumerate(self.hidden, start=1):
            taps[f"hidden{i}_pre"] = layer(x)
            taps[f"hidden{i}"] = taps["pooled"] = nnx.relu(taps[f"hidden{i}_pre"])
            x = layers.dropout(taps["pooled"], self.dropout, train=train, key=key, layer=i)
        return Outputs(self.classifier(x), taps)


register("mlp", MLP)
