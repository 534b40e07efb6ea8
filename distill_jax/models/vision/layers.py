"""The layers that networks share, with the conventions of the CIFAR distillation literature.

Padding is PyTorch's (symmetric, also at stride 2, where "SAME" would shift the image by a pixel),
initial values are those of the reference implementations, batch normalisation has epsilon 1e-5 and
keeps 0.9 of its running statistics (PyTorch calls that momentum 0.1). As in Flax, the running
variance is the biased one; PyTorch's is larger by n / (n - 1). These last three are options of
every network with batch normalisation (`models.batch_norm`).
"""

import math
from typing import Literal, Protocol, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.kernels.convolution import Pairs, convolve, convolve_frozen
from distill_jax.models.batch_norm import BatchNorm
from distill_jax.models.initializers import initial


def convolution(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    init: Literal["he", "torch"] = "he",
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution.

    Args:
      inputs: channels in.
      outputs: channels out.
      size: of the kernel, odd; padded by (size - 1) / 2 on every side.
      stride: in both directions.
      groups: of channels, convolved separately; `inputs` of them make it depthwise.
      bias: whether a bias is added; it starts at 0.
      init: of the kernel: "he" is N(0, 2 / (size^2 * outputs)) (He et al., 2015, fan out, which
        PyTorch does not divide by the groups); "torch" is uniform in +-1 / sqrt(fan in), for
        size^2 * inputs / groups the fan in, as torch.nn.Conv2d.
      dtype: in which it computes.
      rngs: of the initial values.
    """
    if init == "he":
        kernel_init = initial("normal", math.sqrt(2 / (size**2 * outputs)))
    else:
        kernel_init = initial("uniform", 1 / math.sqrt(size**2 * inputs // groups))
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=(((size - 1) // 2,) * 2,) * 2,
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def convolve_and_normalize(
    conv: nnx.Conv,
    norm: BatchNorm,
    x: Array,
    *,
    train: bool,
    residual: Array | None = None,
    relu: bool = False,
) -> Array:
    """Convolves and normalises, adds the residual, if any, and applies the ReLU, if `relu`.

    Outside of training the normalisation is a factor and an offset of each channel. They are folded
    into the convolution's kernel and bias: exact up to rounding, and one pass over the map less.

    Args:
      conv: from `convolution`.
      norm: of its result.
      x: [B, H, W, C].
      train: whether the batch's statistics normalise, or the running ones.
      residual: like the result.
      relu: whether a ReLU follows.
    """
    if train:
        return norm(conv(x), train=True, residual=residual, relu=relu)
    factor, offset = norm.frozen()
    bias = offset if conv.bias is None else offset + conv.bias[...] * factor
    return convolve_frozen(
        x.astype(conv.dtype),
        conv.kernel[...] * factor,
        bias,
        stride=cast(int, conv.strides),
        padding=cast(Pairs, conv.padding),
        groups=conv.feature_group_count,
        residual=residual,
        relu=relu,
    )


class ConvNorm(nnx.Module):
    """A square convolution, see `convolution`, then batch normalisation.

    See `convolve_and_normalize`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        init: Literal["he", "torch"] = "he",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv = convolution(
            inputs,
            outputs,
            size,
            stride=stride,
            groups=groups,
            bias=bias,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs, rngs=rngs)

    def __call__(
        self, x: Array, *, train: bool, residual: Array | None = None, relu: bool = False
    ) -> Array:
        """Convolves and normalises, adds the residual, if any, and applies the ReLU, if asked to.

        Args:
          x: [B, H, W, C].
          train: whether the batch's statistics normalise, or the running ones.
          residual: like the result.
          relu: whether a ReLU follows.
        """
        return convolve_and_normalize(
            self.conv, self.norm, x, train=train, residual=residual, relu=relu
        )


class BlockConstructor(Protocol):
    """Makes a block that maps `inputs` channels to `outputs`."""

    def __call__(self, inputs: int, outputs: int, *, stride: int) -> nnx.Module: ...


def stage(
    block: BlockConstructor, inputs: int, outputs: int, depth: int, *, stride: int
) -> list[nnx.Module]:
    """`depth` blocks, of which the first one strides and changes the width.

    Args:
      block: makes a block; all but the first have stride 1.
      inputs: channels of the map before the stage.
      outputs: channels of every block's result.
      depth: number of blocks.
      stride: of the first block.
    """
    return [
        block(outputs if i else inputs, outputs, stride=1 if i else stride) for i in range(depth)
    ]


def hidden(inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer that a ReLU follows: weights N(0, 2 / inputs) (He et al., 2015), biases 0."""
    return nnx.Linear(
        inputs,
        outputs,
        dtype=dtype,
        kernel_init=initial("normal", math.sqrt(2 / inputs)),
        rngs=rngs,
    )


def classifier(
    inputs: int,
    num_classes: int,
    *,
    kernel_init: nnx.Initializer | None = None,
    bias_init: nnx.Initializer | None = None,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """The last layer, in float32 whatever the dtype of the network: losses read its logits.

    Weights and biases are uniform in +-1 / sqrt(inputs), as in torch.nn.Linear, unless an
    initializer is given.
    """
    within = initial("uniform", 1 / math.sqrt(inputs))
    return nnx.Linear(
        inputs,
        num_classes,
        dtype=jnp.float32,
        kernel_init=kernel_init or within,
        bias_init=bias_init or within,
        rngs=rngs,
    )


def pool(x: Array) -> Array:
    """The global average of a map, [B, H, W, C] -> float32 [B, C]."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def max_pool(x: Array, size: int, *, stride: int, margin: int = 0) -> Array:
    """The largest value of every window; the gradient goes to the first of equals, row by row.

    That is PyTorch's rule. The maximum is taken by comparing shifted maps, because the gradient of
    `jax.lax.reduce_window` scatters into the map, which on a GPU differs from run to run or takes a
    slow path.

    Args:
      x: [B, H, W, C].
      size: of the window.
      stride: in both directions.
      margin: pixels of padding on every side; never the largest.

    Returns:
      [B, H', W', C], of sides floor((H + 2 * margin - size) / stride) + 1.
    """
    for axis in (2, 1):  # Along rows first, so that of equals the first in the upper row wins.
        widths = [(margin, margin) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, widths, constant_values=-jnp.inf)
        last = (padded.shape[axis] - size) // stride * stride
        shifted = [jax.lax.slice_in_dim(padded, i, i + last + 1, stride, axis) for i in range(size)]
        x = shifted[0]
        for other in shifted[1:]:
            x = jnp.where((other > x) | jnp.isnan(other), other, x)
    return x


def dropout(x: Array, rate: float, *, train: bool, key: Array | None, layer: int) -> Array:
    """Inverted dropout (Srivastava et al., 2014), a function of its arguments alone.

    Args:
      x: any shape.
      rate: the probability of a zero, in [0, 1).
      train: False returns `x` unchanged.
      key: the random key of this call of the network; may be None unless needed.
      layer: which dropout of the network this is; each draws from its own key.

    Returns:
      x, with entries zeroed at `rate` and the rest divided by 1 - rate.

    Raises:
      ValueError: `train` and `rate` need a key, and there is none.
    """
    if not train or rate == 0.0:
        return x
    if key is None:
        raise ValueError(
            "dropout in training needs a random key; call with key=jax.random.key(...)"
        )
    return nnx.Dropout(rate)(x, deterministic=False, rngs=jax.random.fold_in(key, layer))


def drop_path(x: Array, rate: float, *, train: bool, key: Array | None, layer: int) -> Array:
    """Stochastic depth (Huang et al., 2016): drops the whole branch of some images.

    Args, result and errors are those of `dropout`; x is [B, ...].
    """
    kept = jnp.ones((x.shape[0],) + (1,) * (x.ndim - 1), x.dtype)
    return x * dropout(kept, rate, train=train, key=key, layer=layer)
