"""Frozen decoders with quantized matrices: codes of few bits, and scales.

    chosen = recipe.choose(kernels(shapes), kernels(shapes), "--recipe")  # flat name -> Grid
    model = from_params(config, encode(params, chosen), activations=activations(chosen))

The matrices of the layers (`decoder.PROJECTIONS`) can be quantized, those of each expert
separately: embedding, head, routers, norms and biases keep the dtype in which they are loaded. In
place of "kernel" [..., inputs, outputs] a model has

- "kernel": the codes, int8 or float8_e4m3fn, or of 4 bits uint8 [..., inputs / 2, outputs], see
  `quantization.packing`;
- "kernel_scale": float32 [..., outputs], or [..., groups, outputs].

A kernel is decoded inside the scan over the layers, one layer at a time, so that a device holds the
codes and one dense layer. With one scale for an output channel the scale multiplies the sums
instead, y = (x @ q) * scale, which is rounded once. A grid with activations quantizes x too; the
products of codes are computed in the compute dtype, which holds them exactly, and summed in
float32. Left out on purpose: training (see `quantization.grids` for what is fake-quantized).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.models.language.decoder import PROJECTIONS, Decoder, projections
from distill_jax.quantization import grids, packing
from distill_jax.quantization.grids import Grid

#: The values of `teacher.quantize`.
CHOICES = ("none", "int8")

#: `teacher.quantize="int8"`: a dense teacher that is rounded as it is read.
WHILE_READING = dataclasses.replace(
    grids.INT8, name="while-reading", bound=127.0, lowest=-127, highest=127
)


def is_kernel(name: str) -> bool:
    """Whether a flat name is that of a matrix that can be quantized."""
    parts = name.split("/")
    return (
        len(parts) == 5
        and parts[0] == "runs"
        and parts[3] in PROJECTIONS.get(parts[2], ())
        and parts[4] == "kernel"
    )


def kernels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the matrices that can be quantized, of those of all parameters."""
    return {name: shape for name, shape in shapes.items() if is_kernel(name)}


def scale_name(name: str) -> str:
    """The flat name of the scales of a kernel."""
    return f"{name}_scale"


def stored(name: str, shape: tuple[int, ...], grid: Grid) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of the codes and the scales of a kernel, by flat name."""
    scales = grid.scale_shape(shape)
    if grid.group is None:
        scales = (*scales[:-2], scales[-1])
    if grid.bits == 4:
        codes: tuple[tuple[int, ...], Any] = (packing.packed_shape(shape), np.uint8)
    else:
        codes = (shape, grid.code_dtype)
    return {name: codes, scale_name(name): (scales, np.float32)}


def encode_kernel(kernel: Any, grid: Grid) -> tuple[Any, Any]:
    """Codes and scales of a kernel [..., inputs, outputs] as a model holds them."""
    codes, scales = grid.encode(kernel)
    return held(codes, scales, grid)


def held(codes: Any, scales: Any, grid: Grid) -> tuple[Any, Any]:
    """What `Grid.encode` gives, as a model holds it."""
    codes = packing.pack_nibbles(codes) if grid.bits == 4 else codes
    scales = scales[..., 0, :] if grid.group is None else scales
    return codes, scales.astype(np.float32)


def plain(codes: Any, scales: Any, grid: Grid) -> tuple[Any, Any]:
    """The inverse of `held`: as `Grid.decode` takes them, the scales in the grid's dtype."""
    codes = packing.unpack_nibbles(codes) if grid.bits == 4 else codes
    scales = scales[..., None, :] if grid.group is None else scales
    return codes, scales.astype(grid.scale_dtype)


def encode(params: Mapping[str, Any], chosen: Mapping[str, Grid]) -> dict[str, Any]:
    """The parameters of a dense decoder with some kernels quantized.

    Args:
      params: flat dictionary, as from `models.split`.
      chosen: the grid of each kernel that is quantized, by its flat name.
    """
    return with_codes(
        params, {name: grid.encode(params[name]) for name, grid in chosen.items()}, chosen
    )


def with_codes(
    params: Mapping[str, Any],
    encoded: Mapping[str, tuple[Any, Any]],
    chosen: Mapping[str, Grid],
) -> dict[str, Any]:
    """As `encode`, of (codes, scales) that `Grid.encode`, a training or a calibration found."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        if name in chosen:
            codes, scales = encoded[name]
            found[name], found[scale_name(name)] = held(codes, scales, chosen[name])
        else:
            found[name] = value
    return found


def decode(params: Mapping[str, Any], chosen: Mapping[str, Grid], dtype: Any) -> dict[str, Any]:
    """The parameters of the dense decoder that quantized ones stand for; others stay."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        if name in chosen:
            codes, scales = plain(value, params[scale_name(name)], chosen[name])
            found[name] = grids.decode(codes, scales, dtype)
        elif name.removesuffix("_scale") not in chosen:
            found[name] = value
    return found


def activations(chosen: Mapping[str, Grid]) -> dict[str, str]:
    """How the inputs of quantized layers are quantized, by the flat name of the layer's kernel."""
    return {name: grid.activations for name, grid in chosen.items() if grid.activations}


def is_quantized(model: Decoder) -> bool:
    """Whether a decoder has quantized kernels."""
    return any(linear.kernel_scale is not None for _, linear in projections(model))
