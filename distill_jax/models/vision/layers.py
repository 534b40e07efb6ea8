"""The layers that networks share, with the conventions of the CIFAR distillation literature.

Padding is PyTorch's (symmetric, also at stride 2, where "SAME" would shift the image by a pixel),
initial values are those of the reference implementations, batch normalisation has epsilon 1e-5 and
keeps 0.9 of its running statistics (PyTorch calls that momentum 0.1). As in Flax, the running
variance is the biased one; PyTorch's is larger by n / (n - 1). These three are options of every
network with batch normalisation (`BATCH_NORM`).
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


def initial(distribution: Literal["normal", "uniform"], scale: float) -> nnx.Initializer:
    """Initial values drawn by NumPy, as an initialiser for any Flax layer.

    `jax.random.normal` is compiled once a shape, which costs a second each on a small machine, and
    its last bit depends on what it is fused with. NumPy needs no compiling, and gives the same bits
    on every backend, in or out of `jit`.

    Args:
      distribution: "normal", N(0, scale^2), or "uniform", in +-scale.
      scale: the standard deviation or the bound.

    Returns:
      (key, shape, dtype) -> Array [shape], a function of the key.
    """

    def initialise(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        def draw(words: Array) -> np.ndarray:
            seed = np.random.SeedSequence([int(word) for word in np.asarray(words)])
            generator = np.random.Generator(np.random.Philox(seed))
            if distribution == "normal":
                values = generator.standard_normal(shape, np.float32)
            else:
                values = 2 * generator.random(shape, np.float32) - 1
            return (values * np.float32(scale)).astype(dtype)

        words = jax.random.key_data(key)
        if isinstance(words, jax.core.Tracer):
            return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, dtype), words)
        return jnp.asarray(draw(words))

    return initialise


#: Options of every network with batch normalisation, and their defaults; see `set_batch_norm`.
BATCH_NORM = {"bn_momentum": 0.9, "bn_epsilon": 1e-5, "bn_unbiased": False}


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation (Ioffe and Szegedy, 2015), in float32 whatever dtype goes through.

    `nnx.BatchNorm` at dtype bfloat16 would round the running statistics to 8 bits on every use.
    Here only the result is rounded, and XLA fuses the two conversions into the arithmetic.

    Attributes:
      unbiased: whether the running variance is that of a sample, n / (n - 1) times the one that
        normalises the batch, for n values a channel in the global batch. PyTorch's is.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        super().__init__(features, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)
        self.unbiased = False

    def __call__(self, x: Array, *, train: bool) -> Array:
        values = x.size // self.num_features
        if not (train and self.unbiased and values > 1):
            return super().__call__(x, use_running_average=not train).astype(x.dtype)
        # old * kept + new * (1 - kept) is computed in there; only the new part is to be larger.
        larger = values / (values - 1)
        self.var[...] = self.var[...] / larger
        y = super().__call__(x, use_running_average=False)
        self.var[...] = self.var[...] * larger
        return y.astype(x.dtype)


def set_batch_norm(
    module: nnx.Module, *, bn_momentum: float, bn_epsilon: float, bn_unbiased: bool
) -> None:
    """Sets the conventions of every `BatchNorm` in a network, which become part of its graph.

    Args:
      module: the network, changed in place.
      bn_momentum: the part of the running statistics that a step keeps, in [0, 1]. PyTorch calls
        1 - that momentum.
      bn_epsilon: added to the variance, positive.
      bn_unbiased: see `BatchNorm`.
    """
    for _, part in nnx.iter_modules(module):
        if isinstance(part, BatchNorm):
            part.momentum = bn_momentum
            part.epsilon = bn_epsilon
            part.unbiased = bn_unbiased


_PARTS = 4  # of a batch, whose kernel gradients a CPU takes at once


def convolve(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated`, with a faster gradient for the kernel on a CPU.

    There XLA takes that gradient on one core, whatever there are: a convolution whose window is the
    whole map. Those of the quarters of a batch are independent, and run side by side. Every fourth
    image makes a quarter, so that each device of a mesh keeps its own. Other platforms, other
    dtypes, grouped and 1x1 convolutions get what JAX makes of it.

    Args and result are those of `jax.lax.conv_general_dilated`, for x [B, H, W, C].
    """
    plain = functools.partial(jax.lax.conv_general_dilated, **options)
    grouped = options.get("feature_group_count", 1) > 1
    if grouped or kernel.shape[0] == 1 or x.shape[0] % _PARTS or x.dtype != jnp.float32:
        return plain(x, kernel, *args)

    def whole(x: Array, kernel: Array, g: Array) -> Array:
        return jax.vjp(lambda kernel: plain(x, kernel, *args), kernel)[1](g)[0]

    def by_parts(x: Array, kernel: Array, g: Array) -> Array:
        x, g = (a.reshape(-1, _PARTS, *a.shape[1:]) for a in (x, g))
        return sum(whole(x[:, i], kernel, g[:, i]) for i in range(_PARTS))

    def backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
        x, kernel = saved
        to_x = jax.vjp(lambda x: plain(x, kernel, *args), x)[1](g)[0]
        to_kernel = jax.lax.platform_dependent(x, kernel, g, cpu=by_parts, default=whole)
        return to_x, to_kernel

    convolved = jax.custom_vjp(lambda x, kernel: plain(x, kernel, *args))
    convolved.defvjp(lambda x, kernel: (plain(x, kernel, *args), (x, kernel)), backward)
    return convolved(x, kernel)


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
      groups: of channels that see each other alone; `inputs` of them make it depthwise.
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


class ConvNorm(nnx.Module):
    """A square convolution, see `convolution`, then batch normalisation."""

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

    def __call__(self, x: Array, *, train: bool) -> Array:
        return self.norm(self.conv(x), train=train)


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

    Weights and biases are uniform in +-1 / sqrt(inputs), as torch.nn.Linear, or as the given.
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
    """The largest value of every window, row by row the first one where several are, as PyTorch.

    Made of comparisons of shifted maps: the gradient of `jax.lax.reduce_window` scatters into the
    map, which on a GPU is not the same from run to run or takes a slow path.

    Args:
      x: [B, H, W, C].
      size: of the window.
      stride: in both directions.
      margin: places on every side that hold no value.

    Returns:
      [B, H', W', C], of sides floor((H + 2 * margin - size) / stride) + 1.
    """
    for axis in (2, 1):  # Within a row first: of equals the first row wins, as row by row.
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
      train: without it, `x` comes back as it is.
      key: the random key of this call of the network.
      layer: which dropout of the network this is; each draws from its own key.

    Returns:
      x, with entries zeroed at `rate` and the rest divided by 1 - rate.

    Raises:
      ValueError: a key is needed and there is none.
    """
    if not train or rate == 0.0:
        return x
    if key is None:
        raise ValueError(
            "dropout in training needs a random key; call with key=jax.random.key(...)"
        )
    return nnx.Dropout(rate)(x, deterministic=False, rngs=jax.random.fold_in(key, layer))


def drop_path(x: Array, rate: float, *, train: bool, key: Array | None, layer: int) -> Array:
    """Stochastic depth (Huang et al., 2016): the branch of some images is dropped whole.

    Args, result and errors are those of `dropout`; x is [B, ...].
    """
    kept = jnp.ones((x.shape[0],) + (1,) * (x.ndim - 1), x.dtype)
    return x * dropout(kept, rate, train=train, key=key, layer=layer)
