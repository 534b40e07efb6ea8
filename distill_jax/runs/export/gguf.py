"""A decoder with its tokenizer as one GGUF file, for llama.cpp."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax import models
from distill_jax.data.text import gguf_vocabulary
from distill_jax.errors import UsageError, unknown
from distill_jax.models import language
from distill_jax.models.files import gguf_file
from distill_jax.models.language import quantized
from distill_jax.models.language.gguf import architectures, writing
from distill_jax.models.language.huggingface import tensor_map
from distill_jax.models.language.huggingface.reading import grids_of
from distill_jax.models.language.huggingface.writing import fetch_tensor, shapes_of
from distill_jax.quantization.grids import Q4_0, Q8_0, Grid
from distill_jax.runs.export.source import Source
from distill_jax.storage import resolve_path

#: The type that a file has where none is asked for: what llama.cpp's converter writes too.
DEFAULT_TYPE = "f16"
# The grids that a file has, and their types.
_TYPES = {Q4_0.name: "q4_0", Q8_0.name: "q8_0"}


def write(source: Source, folder: pathlib.Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Writes one file into the folder; see `formats.Format`.

    Args:
      source: of a decoder, dense or quantized.
      folder: where the file is written.
      options: "name" of the file, "licence" of the model, and "type", of `writing.TYPES`.

    Returns:
      {"architecture", "tensors", "bytes", "type", "family", "parameters_sha256"}.

    Raises:
      UsageError: no such type, a decoder or a tokenizer that llama.cpp has not, or codes on a grid
        that a file has not.
    """
    gguf_file.library("--format=gguf")
    chosen = grids_of(source.folder, key="--workdir")
    kind = options.get("type") or _type_of(chosen, source)
    if kind not in writing.TYPES:
        raise unknown("--type", kind, writing.TYPES, kind="type of a GGUF file")
    if chosen and kind not in ("f32", _type_of(chosen, source)):
        raise UsageError(
            f"--type={kind}: --workdir={source.root} is quantized already, and would be rounded "
            f"again; expected {_type_of(chosen, source)}, or f32 for its numbers"
        )
    model = language.load(source.folder, key="--workdir")
    config = model.config
    architectures.name_for(config.family)
    tokenizer = source.open_tokenizer()
    file = resolve_path(tokenizer.path, "data.tokenizer")
    metadata = gguf_vocabulary.from_huggingface(file, config.vocab_size, key="--workdir")
    params: Mapping[str, Any] = models.split(model)[1]
    if kind == "f32":
        params, chosen = quantized.decode(params, chosen, np.float32), {}
    shapes = shapes_of(params, chosen)
    named = str(options["licence"])
    licence = {} if named == "unknown" else {"general.license": named}
    coded = {
        tensor.name: _TYPES[chosen[tensor.parameters[0]].name].upper()
        for tensor in tensor_map.tensors(config, shapes)
        if tensor.parameters[0] in chosen
    }
    written = writing.write(
        folder / options["name"],
        config,
        shapes,
        lambda tensor: _fetch(tensor, params, chosen),
        kind=kind,
        tokenizer=metadata,
        general={"general.name": source.root.name, **licence},
        coded=coded,
    )
    identity = source.result.get("parameters_sha256", "")
    return {"type": kind, "family": config.family, "parameters_sha256": identity, **written}


def _type_of(chosen: Mapping[str, Grid], source: Source) -> str:
    """The type of a file with the codes of these grids; the default without any."""
    names = sorted({grid.name for grid in chosen.values()})
    if unwritten := [name for name in names if name not in _TYPES]:
        raise UsageError(
            f"--workdir={source.root}: quantized on the grid {unwritten[0]}, which a GGUF file has "
            f"not; expected {' or '.join(_TYPES)}"
        )
    return _TYPES[names[0]] if names else DEFAULT_TYPE


def _fetch(
    tensor: tensor_map.Tensor, params: Mapping[str, Any], chosen: Mapping[str, Grid]
) -> "np.ndarray | writing.Coded":
    """A tensor of the checkpoint in float32, or its codes and scales."""
    name = tensor.parameters[0]
    if name not in chosen:
        value = fetch_tensor(tensor, params, np.dtype("float32"))
        if value is None:
            raise UsageError("--format=gguf: several processes; expected one")
        return value
    grid = chosen[name]
    held, held_scales = (
        np.asarray(params[each][tensor.index]) for each in (name, quantized.scale_name(name))
    )
    codes, scales = quantized.plain(held, held_scales, grid)
    return writing.Coded(_TYPES[grid.name].upper(), np.asarray(codes).T, np.asarray(scales).T)
