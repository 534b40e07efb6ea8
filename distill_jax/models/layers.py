"""The layers that networks share, with the conventions of the CIFAR distillation literature.

Padding is PyTorch's (symmetric, also at stride 2, where "SAME" would shift the image by a pixel),
initial values are those of the reference implementations, batch normalisation has epsilon 1e-5 and
keeps 0.9 of its running statistics (PyTorch calls that momentum 0.1). As in Flax, the running
variance is the biased one; PyTorch's is larger by n / (n - 1).
"""

import math
from typing import Literal

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


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation (Ioffe and Szegedy, 2015), in float32 whatever dtype goes through.

    `nnx.BatchNorm` at dtype bfloat16 would round the running statistics to 8 bits on every use.
    Here only the result is rounded, and XLA fuses the two conversions into the arithmetic.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        super().__init__(features, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> Array:
        return super().__call__(x, use_running_average=not train).astype(x.dtype)


class ConvNorm(nnx.Module):
    """A square convolution without bias, then batch normalisation.

    Kernels start as N(0, 2 / (size^2 * outputs)): He et al. (2015), fan out.

    Args:
      inputs: channels in.
      outputs: channels out.
      size: of the kernel, odd; padded by (size - 1) / 2 on every side.
      stride: in both directions.
      dtype: in which the convolution computes.
      rngs: of the initial values.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=(((size - 1) // 2,) * 2,) * 2,
            use_bias=False,
            dtype=dtype,
            kernel_init=initial("normal", math.sqrt(2 / (size**2 * outputs))),
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


def classifier(inputs: int, num_classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """The last layer: weights and biases uniform in +-1 / sqrt(inputs), as torch.nn.Linear.

    It computes in float32 whatever the dtype of the network: losses read its logits.
    """

    within = initial("uniform", 1 / math.sqrt(inputs))
    return nnx.Linear(
        inputs, num_classes, dtype=jnp.float32, kernel_init=within, bias_init=within, rngs=rngs
    )


def pool(x: Array) -> Array:
    """The global average of a map, [B, H, W, C] -> float32 [B, C]."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


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
