"""Initial values drawn by NumPy: the same bits on every backend, and nothing to compile."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


def initial(distribution: Literal["normal", "uniform"], scale: float) -> nnx.Initializer:
    """An initializer for any Flax layer.

    `jax.random.normal` compiles once per shape, which takes a second each on a small machine, and
    its last bit depends on what it is fused with. NumPy compiles nothing and gives the same bits on
    every backend, inside or outside of `jit`.

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
