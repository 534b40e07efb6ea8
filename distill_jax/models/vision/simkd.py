"""A student with the teacher's classifier behind a projector (Chen et al., 2022, SimKD).

Training fits the projected map to the teacher's last one (`method.name="simkd"`). The student keeps
the projector and the teacher's classifier after training, so both are part of this network.
"""

from typing import Protocol, cast

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models import registry
from distill_jax.models.outputs import Outputs
from distill_jax.models.vision import layers


class _Identity(nnx.Module):
    """Replaces the classifier of the backbone, whose logits are not used."""

    def __call__(self, x: Array) -> Array:
        return x


class _Classifying(Protocol):
    """A network whose attribute `classifier` can be replaced."""

    classifier: nnx.Module


class SimKD(nnx.Module):
    """A backbone, three convolutions from its last map to the teacher's width, a classifier.

    The projector: 1x1 to features / factor, 3x3, 1x1 to features, each with batch normalisation
    and ReLU (section 3.2, "dimension alignment").

    Taps: the backbone's but "pooled"; "projected" [B, H, W, features]; "pooled" [B, features].

    Args:
      backbone: name of the network that is distilled; its taps include stages.
      features: channels of the teacher's last map.
      factor: by how much the projector is narrower.
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.
    """

    batch_norm = True

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        backbone: str = "resnet8x4",
        features: int = 256,
        factor: int = 2,
    ):
        known = backbone in registry.names() and backbone != "simkd"
        registry.require(known, "backbone", backbone, "the name of another model")
        registry.require(features > 0, "features", features, "a number of channels above 0")
        within = 1 <= factor <= features
        registry.require(within, "factor", factor, f"an int from 1 to features={features}")
        self.backbone = registry.build(backbone, input_shape, num_classes, dtype=dtype, rngs=rngs)
        found = isinstance(getattr(self.backbone, "classifier", None), nnx.Linear)
        registry.require(found, "backbone", backbone, "a network with one dense classifier")
        cast(_Classifying, self.backbone).classifier = _Identity()
        self.last, channels = _last_map(backbone, input_shape, num_classes)
        narrow = features // factor
        widths = (channels, narrow, narrow, features)
        self.projector = nnx.List(
            layers.ConvNorm(
                widths[i], widths[i + 1], (1, 3, 1)[i], init="torch", dtype=dtype, rngs=rngs
            )
            for i in range(3)
        )
        self.classifier = layers.classifier(features, num_classes, rngs=rngs)

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Outputs:
        """As `ImageClassifier`; the backbone checks the images."""
        taps = dict(self.backbone(images, train=train, key=key).taps)
        x = taps[self.last]
        for layer in self.projector:
            x = layer(x, train=train, relu=True)
        taps["projected"] = x
        taps["pooled"] = layers.pool(x)
        return Outputs(self.classifier(taps["pooled"]), taps)


def _last_map(name: str, input_shape: tuple[int, int, int], num_classes: int) -> tuple[str, int]:
    """The name of a network's last stage and its channels."""
    module = registry.abstract(name, input_shape=input_shape, num_classes=num_classes)
    images = nnx.eval_shape(lambda: jnp.zeros((1, *input_shape)))
    outputs = nnx.eval_shape(lambda module, x: module(x, train=False), module, images)
    stages = [tap for tap in outputs.taps if tap.removeprefix("stage").isdigit()]
    registry.require(bool(stages), "backbone", name, "a network whose taps include stages")
    last = max(stages, key=lambda tap: int(tap.removeprefix("stage")))
    return last, outputs.taps[last].shape[-1]


registry.register("simkd", SimKD)
