"""Codes of a decoder's matrices by GPTQ, one layer after the other, from calibration text.

The moments of a layer come from its inputs as the layers before it, already quantized, give them
(Frantar et al., 2023, section 3.4). The codes of a layer's matrices are then found together.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from distill_jax.models.language.config import layer_locations
from distill_jax.models.language.decoder import Decoder
from distill_jax.models.language.layerwise import Layers, Stream
from distill_jax.quantization import gptq
from distill_jax.quantization.aware import Encoded
from distill_jax.quantization.grids import Grid


def encode(
    decoder: Decoder,
    batches: Iterable[Mapping[str, np.ndarray]],
    grids: Mapping[str, Grid],
    *,
    damping: float = gptq.DAMPING,
    note: Callable[[str], None] = lambda line: None,
) -> Encoded:
    """Codes and scales of a decoder's matrices that keep its outputs on some text.

    Args:
      decoder: with float kernels, on one device.
      batches: "tokens", "positions" and "segments" of the calibration text, int32 [B, T] each.
      grids: of the matrices that are quantized, by flat names.
      damping: see `gptq.inverse_factor`.
      note: called with a line for each layer.

    Returns:
      As `Quantizer.encode`: stacked over the layers of a run, as the kernels are.
    """
    layers = Layers(decoder)
    names = ("tokens", "positions", "segments")
    streams = [layers.begin(*(jnp.asarray(batch[name]) for name in names)) for batch in batches]
    rows: dict[str, list[tuple[Array, Array]]] = {name: [] for name in grids}
    for layer, (run, _) in enumerate(layer_locations(decoder.config)):
        params = layers.params(layer)
        chosen = {name: f"runs/{run}/{name}" for name in params if f"runs/{run}/{name}" in grids}
        moments = _sum_moments(layers, layer, params, streams, chosen)
        for name, flat in chosen.items():
            grid = grids[flat]
            codes, scales = _encode_kernel(params[name], moments.pop(name), grid, damping)
            rows[flat].append((codes, scales))
            params[name] = grid.decode(codes, scales, params[name].dtype)
        streams = [layers.after(layer, params, stream) for stream in streams]
        note(f"layer {layer + 1} of {len(layers)}: {len(chosen)} matrices")
    stacked = {flat: zip(*found, strict=True) for flat, found in rows.items()}
    return {flat: (jnp.stack(next(both)), jnp.stack(next(both))) for flat, both in stacked.items()}


def _sum_moments(
    layers: Layers,
    layer: int,
    params: Mapping[str, Array],
    streams: Iterable[Stream],
    wanted: Iterable[str],
) -> dict[str, np.ndarray]:
    """The second moments of the wanted matrices over all streams, in float64 on the host."""
    total: dict[str, np.ndarray] = {}
    for stream in streams:
        found = layers.moments(layer, params, stream)
        for name in wanted:
            total[name] = total.get(name, 0) + np.asarray(found[name], np.float64)
    return total


def _encode_kernel(
    kernel: Array, moment: np.ndarray, grid: Grid, damping: float
) -> tuple[Array, Array]:
    """Codes and scales of one matrix, or of those of all experts of a layer."""
    if kernel.ndim == 2:
        return gptq.quantize(kernel, jnp.asarray(gptq.inverse_factor(moment, damping)), grid)
    each = [_encode_kernel(*both, grid, damping) for both in zip(kernel, moment, strict=True)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *each)
