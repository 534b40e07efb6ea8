"""What image classifiers share: the check of their input, and the walk through stem and stages.

A family subclasses `StagedClassifier` when it is a stem, stages of blocks, a global average and one
dense layer, and `ImageClassifier` otherwise.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.outputs import Outputs, checked_images
from distill_jax.models.vision import layers


class ImageClassifier(nnx.Module):
    """A network from normalised images to logits and taps.

    `registry.create` makes one by Family(*fixed, input_shape, num_classes, dtype=..., rngs=...,
    **options), where every family has:

    Args:
      input_shape: (H, W, C) of one image.
      num_classes: K, the number of logits.
      dtype: in which all layers but the classifier compute.
      rngs: of the initial values.
    """

    def __init__(self, input_shape: tuple[int, int, int], dtype: jnp.dtype):
        self.input_shape = input_shape
        self.dtype = dtype

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Outputs:
        """Computes logits [B, K] and taps.

        Args:
          images: float [B, H, W, C], normalised.
          train: normalise by the batch's statistics and update the running ones, and drop out;
            otherwise neither.
          key: the random key of this call; needed when `train` and the network drops out.

        Raises:
          ValueError: the images are not floats or of another shape, or there is no key.
        """
        x = checked_images(images, self.input_shape, self.dtype)
        return self.outputs(x, train=train, key=key)

    @abc.abstractmethod
    def outputs(self, x: Array, *, train: bool, key: Array | None) -> Outputs:
        """As `__call__`, of images that are checked and in the compute dtype."""


class StagedClassifier(ImageClassifier):
    """A stem, stages of blocks, for some networks a last convolution, an average, a dense layer.

    Called with `relu=False`, a block computes its map up to, but not including, its last ReLU. In
    the last block of a stage the network applies that one, because both the map before it and the
    map after it are taps. A family whose blocks differ overrides `run_block`.

    Taps: "stem" [B, H, W, C] after its ReLU; for each stage n, of its last block, "stage<n>" after
    the ReLU and "stage<n>_pre" before it; "pooled" [B, D], which the classifier reads.

    Args:
      input_shape, dtype: as of `ImageClassifier`.
      stem: the first convolution.
      stages: the blocks of each stage; parameters are named "stage1/0/..." and so on.
      head: a convolution after the last stage, before the average.
      classifier: the dense layer.
    """

    batch_norm = True

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        dtype: jnp.dtype,
        *,
        stem: layers.ConvNorm,
        stages: Sequence[Sequence[nnx.Module]],
        head: layers.ConvNorm | None = None,
        classifier: nnx.Linear,
    ):
        super().__init__(input_shape, dtype)
        self.stem = stem
        self.stages = tuple(f"stage{number}" for number in range(1, len(stages) + 1))
        for name, blocks in zip(self.stages, stages, strict=True):
            setattr(self, name, nnx.List(blocks))
        self.head = head
        self.classifier = classifier

    def outputs(self, x: Array, *, train: bool, key: Array | None) -> Outputs:
        del key  # Nothing here is random.
        taps = {"stem": self.stem(x, train=train, relu=True)}
        x = self.after_stem(taps["stem"])
        for name in self.stages:
            blocks = getattr(self, name)
            for i, block in enumerate(blocks, start=1):
                x, before = self.run_block(block, x, train=train, last=i == len(blocks))
                if before is not None:
                    taps[f"{name}_pre"] = before
            taps[name] = x
        if self.head is not None:
            x = self.head(x, train=train, relu=True)
        taps["pooled"] = layers.pool(x)
        return Outputs(self.classifier(taps["pooled"]), taps)

    def after_stem(self, x: Array) -> Array:
        """What the first stage reads of the stem's map."""
        return x

    def run_block(
        self, block: Callable[..., Any], x: Array, *, train: bool, last: bool
    ) -> tuple[Array, Array | None]:
        """A block's map after its last ReLU, and, of the last of a stage, before it.

        None in its place: the block is not the last one, or no ReLU comes last.
        """
        if not last:
            return block(x, train=train, relu=True), None
        before = block(x, train=train)
        return nnx.relu(before), before
