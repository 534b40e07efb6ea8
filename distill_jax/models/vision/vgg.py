"""VGG (Simonyan and Zisserman, 2015) for small images, as in RepDistiller (Tian et al., 2020).

With batch normalisation after every convolution and one dense layer in place of three. "vgg8" is
the small one of the distillation papers.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.errors import UsageError
from distill_jax.models.initializers import initial
from distill_jax.models.outputs import Outputs
from distill_jax.models.registry import register
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import ImageClassifier

WIDTHS = {"stem": 64, "stage1": 128, "stage2": 256, "stage3": 512, "stage4": 512}


class VGG(ImageClassifier):
    """Five stages of 3x3 convolutions with bias, a 2x2 max-pool between them, a global average.

    Only images of 64 pixels are pooled a fourth time, after "stage3": at 32 pixels the last two
    stages both see 4x4.

    Taps: "stem" and "stage1" .. "stage4" [B, H, W, C] after the last ReLU and before the pool;
    "stage1_pre" .. before that ReLU; "pooled" [B, 512].

    Args:
      depths: how many convolutions the five stages have.
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.

    Raises:
      UsageError: a side of the image is below 8 pixels, of which pooling would leave nothing.
    """

    batch_norm = True

    def __init__(
        self,
        depths: tuple[int, int, int, int, int],
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if min(input_shape[:2]) < 8:
            raise UsageError(f"input_shape={input_shape!r}: expected sides of 8 or more for vgg")
        super().__init__(input_shape, dtype)
        self.pooled = ("stem", "stage1", "stage2") + ("stage3",) * (input_shape[0] == 64)
        inputs = input_shape[-1]
        for (name, outputs), depth in zip(WIDTHS.items(), depths, strict=True):
            stage = []
            for _ in range(depth):
                stage.append(layers.ConvNorm(inputs, outputs, 3, bias=True, dtype=dtype, rngs=rngs))
                inputs = outputs
            setattr(self, name, nnx.List(stage))
        self.classifier = layers.classifier(
            inputs,
            num_classes,
            kernel_init=initial("normal", 0.01),
            bias_init=nnx.initializers.zeros,
            rngs=rngs,
        )

    def outputs(self, x: Array, *, train: bool, key: Array | None) -> Outputs:
        del key  # Nothing here is random.
        taps = {}
        for name in WIDTHS:
            *first, last = getattr(self, name)
            for layer in first:
                x = layer(x, train=train, relu=True)
            if name == "stem":
                taps[name] = x = last(x, train=train, relu=True)
            else:
                taps[f"{name}_pre"] = last(x, train=train)
                taps[name] = x = nnx.relu(taps[f"{name}_pre"])
            if name in self.pooled:
                x = layers.max_pool(x, 2, stride=2)
        taps["pooled"] = layers.pool(x)
        return Outputs(self.classifier(taps["pooled"]), taps)


register("vgg8", VGG, (1, 1, 1, 1, 1))
register("vgg11", VGG, (1, 1, 2, 2, 2))
register("vgg13", VGG, (2, 2, 2, 2, 2))
register("vgg16", VGG, (2, 2, 3, 3, 3))
register("vgg19", VGG, (2, 2, 4, 4, 4))
