"""ShuffleNet (Zhang et al., 2018) and ShuffleNet V2 (Ma et al., 2018) for CIFAR.

As in RepDistiller (Tian et al., 2020): a 1x1 stem of 24 channels at stride 1 and no pooling after
it, three stages that each halve the map.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.outputs import Outputs, checked_images
from distill_jax.models.registry import register
from distill_jax.models.vision import layers

STAGES = ("stage1", "stage2", "stage3")


def shuffle(x: Array, groups: int) -> Array:
    """Channel c of group g becomes channel c * groups + g; [B, H, W, C] keeps its shape."""
    *rest, channels = x.shape
    return x.reshape(*rest, groups, channels // groups).swapaxes(-1, -2).reshape(x.shape)


class Unit(nnx.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; the last ReLU is left to the caller.

    At stride 2 the averaged input is appended to the channels, else the input is added.

    Args:
      inputs: channels in.
      outputs: channels out, appended ones included.
      first_groups: of the first convolution and of the shuffle.
      stride: 1 or 2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        first_groups: int,
        stride: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        own = outputs - inputs if stride == 2 else outputs
        width = own // 4
        parts = {"init": "torch", "dtype": dtype, "rngs": rngs}
        self.first = layers.ConvNorm(inputs, width, 1, groups=first_groups, **parts)
        self.second = layers.ConvNorm(width, width, 3, stride=stride, groups=width, **parts)
        self.third = layers.ConvNorm(width, own, 1, groups=3, **parts)
        self.groups = first_groups
        self.stride = stride

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = shuffle(nnx.relu(self.first(x, train=train)), self.groups)
        y = nnx.relu(self.second(y, train=train))
        y = self.third(y, train=train)
        if self.stride == 1:
            return y + x
        # Places outside of the map count as zeros, as in torch.nn.AvgPool2d.
        shortcut = nnx.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return jnp.concatenate([y, shortcut], -1)


class ShuffleNetV1(nnx.Module):
    """A 1x1 stem, stages of 4, 8 and 4 units, a global average.

    Three groups everywhere but in the very first unit, whose input has too few channels.

    Taps: "stem" and "stage1" .. "stage3" [B, H, W, C] after their ReLU; "stage1_pre" .. the sums
    before it; "pooled" [B, 960].

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
        inputs = 24
        self.stem = layers.ConvNorm(
            input_shape[-1], inputs, 1, init="torch", dtype=dtype, rngs=rngs
        )
        for name, outputs, depth in zip(STAGES, (240, 480, 960), (4, 8, 4), strict=True):
            units = []
            for i in range(depth):
                groups, stride = 1 if inputs == 24 else 3, 1 if i else 2
                units.append(
                    Unit(
                        inputs, outputs, first_groups=groups, stride=stride, dtype=dtype, rngs=rngs
                    )
                )
                inputs = outputs
            setattr(self, name, nnx.List(units))
        self.classifier = layers.classifier(inputs, num_classes, rngs=rngs)

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Outputs:
        """images: float [B, H, W, C], normalised. Returns logits [B, K] and the taps."""
        del key  # Nothing here is random.
        x = checked_images(images, self.input_shape, self.dtype)
        taps = {"stem": nnx.relu(self.stem(x, train=train))}
        x = taps["stem"]
        for name in STAGES:
            for unit in getattr(self, name):
                taps[f"{name}_pre"] = unit(x, train=train)
                taps[name] = x = nnx.relu(taps[f"{name}_pre"])
        taps["pooled"] = layers.pool(x)
        return Outputs(self.classifier(taps["pooled"]), taps)


class Branch(nnx.Module):
    """1x1, depthwise 3x3, 1x1 convolutions; the last ReLU is left to the caller."""

    def __init__(self, inputs: int, width: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        parts = {"init": "torch", "dtype": dtype, "rngs": rngs}
        self.first = layers.ConvNorm(inputs, width, 1, **parts)
        self.second = layers.ConvNorm(width, width, 3, stride=stride, groups=width, **parts)
        self.third = layers.ConvNorm(width, width, 1, **parts)

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = nnx.relu(self.first(x, train=train))
        return self.third(self.second(y, train=train), train=train)


class DownUnit(nnx.Module):
    """Halves the map: two branches see the whole input, each makes half of the channels."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        parts = {"init": "torch", "dtype": dtype, "rngs": rngs}
        half = outputs // 2
        self.depthwise = layers.ConvNorm(inputs, inputs, 3, stride=2, groups=inputs, **parts)
        self.pointwise = layers.ConvNorm(inputs, half, 1, **parts)
        self.branch = Branch(inputs, half, stride=2, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Returns the shuffled channels, and the same before ReLU and shuffle."""
        left = self.pointwise(self.depthwise(x, train=train), train=train)
        before = jnp.concatenate([left, self.branch(x, train=train)], -1)
        return shuffle(nnx.relu(before), 2), before


class SplitUnit(nnx.Module):
    """Half of the channels go through a branch, the others past it."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.branch = Branch(channels // 2, channels // 2, stride=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Returns the shuffled channels, and the same before ReLU and shuffle."""
        past, through = jnp.split(x, 2, axis=-1)
        through = self.branch(through, train=train)
        both = jnp.concatenate([past, nnx.relu(through)], -1)
        return shuffle(both, 2), jnp.concatenate([past, through], -1)


class ShuffleNetV2(nnx.Module):
    """A 1x1 stem, stages of a `DownUnit` and 3, 7, 3 `SplitUnit`s, a 1x1 convolution, an average.

    Taps: "stem" after its ReLU; "stage1" .. "stage3" [B, H, W, C] after the shuffle; "stage1_pre"
    .. the two halves of the last unit side by side, before the ReLU of the second one and before
    the shuffle: shuffled and activated they are the stage. "pooled" [B, D].

    Args:
      widths: channels of the three stages and of the last convolution.
      input_shape: (H, W, C).
      num_classes: K.
      dtype: compute dtype of all layers but the classifier.
      rngs: of the initial values.
    """

    batch_norm = True

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.input_shape = input_shape
        self.dtype = dtype
        parts = {"dtype": dtype, "rngs": rngs}
        inputs = 24
        self.stem = layers.ConvNorm(input_shape[-1], inputs, 1, init="torch", **parts)
        for name, outputs, depth in zip(STAGES, widths[:3], (3, 7, 3), strict=True):
            down = DownUnit(inputs, outputs, **parts)
            setattr(
                self,
                name,
                nnx.List([down, *(SplitUnit(outputs, **parts) for _ in range(depth))]),
            )
            inputs = outputs
        self.head = layers.ConvNorm(inputs, widths[3], 1, init="torch", **parts)
        self.classifier = layers.classifier(widths[3], num_classes, rngs=rngs)

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Outputs:
        """images: float [B, H, W, C], normalised. Returns logits [B, K] and the taps."""
        del key  # Nothing here is random.
        x = checked_images(images, self.input_shape, self.dtype)
        taps = {"stem": nnx.relu(self.stem(x, train=train))}
        x = taps["stem"]
        for name in STAGES:
            for unit in getattr(self, name):
                x, taps[f"{name}_pre"] = unit(x, train=train)
            taps[name] = x
        taps["pooled"] = layers.pool(nnx.relu(self.head(x, train=train)))
        return Outputs(self.classifier(taps["pooled"]), taps)


register("shufflenet_v1", ShuffleNetV1)
register("shufflenet_v2", ShuffleNetV2, (116, 232, 464, 1024))
register("shufflenet_v2_1.5x", ShuffleNetV2, (176, 352, 704, 1024))
