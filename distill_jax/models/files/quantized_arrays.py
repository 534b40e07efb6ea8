"""Kernels of image networks as codes and scales, as a model folder holds them.

A kernel [height, width, inputs, outputs] is quantized as the matrix [height * width * inputs,
outputs]: "kernel" has its codes in the shape of the kernel (of 4 bits as bytes, see
`quantization.packing`, [rows / 2, outputs]), and "kernel_scale" its scales [groups, outputs].
Reading decodes them to float32, so that a network is smaller on disk, not in memory.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from distill_jax.errors import UsageError
from distill_jax.quantization import grids, packing
from distill_jax.quantization.grids import GRIDS, Grid

_SCALE = "_scale"
_FIRST_OR_LAST = re.compile(r"(stem|stages/0)/.*|(.*_)?classifier/kernel")


def kernels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """The shape, as a matrix, of every kernel that can be quantized, by its flat name."""
    return {
        name: (math.prod(shape[:-1]), shape[-1])
        for name, shape in shapes.items()
        if name.endswith("kernel") and len(shape) >= 2
    }


def by_default(names: Mapping[str, Any]) -> list[str]:
    """The kernels that a recipe's name means: all but the first convolution's and classifiers'."""
    return [name for name in names if not _FIRST_OR_LAST.fullmatch(name)]


def encode(params: Mapping[str, Any], chosen: Mapping[str, Grid]) -> dict[str, np.ndarray]:
    """The arrays of a folder, of float parameters by their flat names.

    Raises:
      UsageError: a kernel has NaN, or a value beyond the scales of its grid.
    """
    found: dict[str, np.ndarray] = {}
    for name, value in params.items():
        array = np.asarray(value)
        if name not in chosen:
            found[name] = array
            continue
        grid = chosen[name]
        check_finite(name, array, grid)
        codes, scales = grid.encode(array.reshape(-1, array.shape[-1]))
        check_finite(name, scales, grid)
        packed = packing.pack_nibbles(codes) if grid.bits == 4 else codes.reshape(array.shape)
        found |= {name: packed, name + _SCALE: scales}
    return dict(sorted(found.items()))


def check_finite(name: str, values: Any, grid: Grid) -> None:
    """UsageError where a kernel, or its scales, have values that its grid cannot hold."""
    if not jnp.isfinite(values).all():
        raise UsageError(
            f"{name}: has NaN, an infinity or a value too large for {grid.name}; expected finite "
            "weights"
        )


def decode(
    arrays: Mapping[str, np.ndarray],
    named: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """The inverse of `encode`, in float32.

    Args:
      arrays: of the folder.
      named: the name of the grid of each quantized kernel.
      shapes: of the float parameters.

    Raises:
      UsageError: arrays that no such grid gives.
    """
    found = {
        name: value for name, value in arrays.items() if name.removesuffix(_SCALE) not in named
    }
    for name, grid_name in named.items():
        grid, shape = GRIDS.get(grid_name), shapes.get(name, ())
        codes, scales = arrays.get(name), arrays.get(name + _SCALE)
        if grid is None or codes is None or scales is None or len(shape) < 2:
            raise UsageError(f"{name} is no kernel on the grid {grid_name!r:.40}")
        matrix = (math.prod(shape[:-1]), shape[-1])
        if grid.bits == 4 and codes.shape == packing.packed_shape(matrix):
            codes = packing.unpack_nibbles(codes)
        fits = codes.size == math.prod(shape) and codes.dtype == grid.code_dtype
        if not fits or not grid.divides(matrix[0]) or scales.shape != grid.scale_shape(matrix):
            raise UsageError(f"{name} has not the codes and scales of {grid_name}")
        found[name] = grids.decode(codes.reshape(matrix), scales, np.float32).reshape(shape)
    return dict(sorted(found.items()))
