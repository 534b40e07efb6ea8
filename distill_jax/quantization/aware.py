"""Quantization-aware training: a student that computes with the codes that will be written.

    quantizer = Quantizer("int4", {"runs/0/mlp/up/kernel": INT4_G128, ...})
    computed = quantizer(params)             # in every forward pass: decode(encode(kernel))
    codes = quantizer.encode(params)         # what is written, by the same function

The trained parameters stay floats. A step takes the gradient at the quantized values and applies it
to the floats as it is, the straight-through estimator (Bengio et al., 2013, arXiv:1308.3432,
section 3.1; Jacob et al., 2018, arXiv:1712.05877, section 3). The scales follow the largest weight
of their group in every step and get no gradient, as in qwix and in ModelOpt's default; so hardly a
weight lies outside the codes, and the few that a last code clips (with q4_0, on the side opposite
to the largest) get their gradient too. Left out on purpose: learned scales (LSQ) and stochastic
rounding.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from distill_jax.quantization.grids import Grid, decode

#: (codes, scales) of kernels by their flat names.
Encoded = dict[str, tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """The grids of a student's kernels.

    Attributes:
      recipe: the text that chose them.
      grids: by the flat names of the kernels.
      flat: whether a kernel [..., outputs] is quantized as one matrix [-1, outputs], as those of
        image networks; else as a stack of matrices [..., inputs, outputs].
    """

    recipe: str
    grids: Mapping[str, Grid]
    flat: bool = False

    def encode(self, params: Mapping[str, Array]) -> Encoded:
        """Codes and scales of the kernels that are quantized, from all parameters by name."""
        kernels = {name: params[name] for name in self.grids}
        if self.flat:
            kernels = {name: k.reshape(-1, k.shape[-1]) for name, k in kernels.items()}
        return _encode(kernels, tuple(self.grids.items()))

    def __call__(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """All parameters, with the quantized values in place of those that are quantized."""
        encoded = self.encode(params)
        decoded = {
            name: decode(codes, scales, jnp.float32) for name, (codes, scales) in encoded.items()
        }
        return {
            name: decoded[name].reshape(value.shape).astype(value.dtype)
            if name in decoded
            else value
            for name, value in params.items()
        }

    def describe(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """What a manifest records: recipe, grids, how many parameters have how many bits, and the
        bytes of their codes and scales.

        Args:
          shapes: of all the student's parameters, by flat name.
        """
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        quantized = sum(sizes[name] for name in self.grids)
        bits = sum(
            sizes[name] * grid.bits_per_weight(self._inputs(shapes[name]))
            for name, grid in self.grids.items()
        )
        rest = sum(sizes.values()) - quantized
        return {
            "recipe": self.recipe,
            "grids": sorted({grid.name for grid in self.grids.values()}),
            "kernels": len(self.grids),
            "parameters": quantized,
            "parameters_left": rest,
            "bits_per_weight": bits / quantized,
            "bytes": round(bits / 8),
        }

    def _inputs(self, shape: tuple[int, ...]) -> int:
        """The inputs of a kernel's matrix."""
        return math.prod(shape[:-1]) if self.flat else shape[-2]


@functools.partial(jax.jit, static_argnums=1)
def _encode(kernels: dict[str, Array], grids: tuple[tuple[str, Grid], ...]) -> Encoded:
    return {name: grid.encode(kernels[name]) for name, grid in grids}
