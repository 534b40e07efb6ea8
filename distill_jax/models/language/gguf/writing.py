"""A decoder with its tokenizer as a GGUF file, which llama.cpp loads.

Matrices are float32, float16, bfloat16 or rounded to blocks of 32 of a row: Q8_0, with a float16
scale and 8 bits a number, or Q4_0 with 4 bits. Embedding and head of a Q4_0 file are Q8_0: they
decide the logits, and 4 bits cost there most. Norms and biases are always float32, as llama.cpp
expects them. Codes and scales that a quantized decoder has are written as they are.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from distill_jax.errors import UsageError
from distill_jax.models.files import gguf_file
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.gguf import architectures, tensors
from distill_jax.models.language.huggingface import tensor_map
from distill_jax.storage import fsync

#: --type -> (type of the layers' matrices, that of embedding and head, llama.cpp's file type).
TYPES = {
    "f32": ("F32", "F32", 0),
    "f16": ("F16", "F16", 1),
    "bf16": ("BF16", "BF16", 32),
    "q8_0": ("Q8_0", "Q8_0", 7),
    "q4_0": ("Q4_0", "Q8_0", 2),
}
_BLOCK = 32

#: Gives a tensor of the checkpoint, [outputs, inputs] of a matrix: in float32, or codes and scales.
Fetch = Callable[[tensor_map.Tensor], "np.ndarray | Coded"]


@dataclasses.dataclass(frozen=True)
class Coded:
    """A matrix on the grid of a type.

    Attributes:
      type: "Q4_0" or "Q8_0".
      codes: int8 [outputs, inputs].
      scales: float16 [outputs, inputs / 32].
    """

    type: str
    codes: np.ndarray
    scales: np.ndarray

    def blocks(self) -> np.ndarray:
        """As they lie in a file: uint8 [outputs, bytes of a row]."""
        rows, groups = self.scales.shape
        codes = self.codes.reshape(rows, groups, _BLOCK)
        if self.type == "Q4_0":  # the first half of a block in the low bits
            shifted = (codes + np.int8(8)).view(np.uint8)
            codes = shifted[..., : _BLOCK // 2] | (shifted[..., _BLOCK // 2 :] << np.uint8(4))
        scales = np.ascontiguousarray(self.scales, np.float16)[..., None].view(np.uint8)
        return np.concatenate([scales, codes.view(np.uint8)], axis=-1).reshape(rows, -1)


def write(
    path: pathlib.Path,
    config: DecoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    fetch: Fetch,
    *,
    kind: str,
    tokenizer: Mapping[str, Any],
    general: Mapping[str, Any],
    coded: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes a file, whole or not at all.

    Args:
      path: the file, which must not exist.
      config: of the decoder.
      shapes: of its parameters, by their flat names.
      fetch: gives a tensor of the Hugging Face checkpoint; called once for each.
      kind: of `TYPES`.
      tokenizer: metadata of `data.text.gguf_vocabulary.from_huggingface`.
      general: more keys, such as general.name and general.license.
      coded: the type of each tensor that `fetch` gives as `Coded`, by its name in the checkpoint.

    Returns:
      {"architecture", "tensors", "bytes"}.

    Raises:
      UsageError: llama.cpp has no such architecture or would compute another model, blocks do not
        divide the rows, or a number is too large for float16.
    """
    gguf = gguf_file.library("--format=gguf")
    metadata = architectures.metadata_of(config)
    name = metadata["general.architecture"]
    places = tensors.places(config, name, shapes, gguf)
    architectures.check_round_trip(config, metadata, [place.name for place in places])
    coded = coded or {}
    types = {place.name: coded.get(place.tensor.name, _type_of(place, kind)) for place in places}
    for place in places:
        _check_blocks(place, types[place.name], kind)
    entries = {"general.type": "model", **general, **metadata, **tokenizer}
    entries |= {"general.file_type": TYPES[kind][2], "general.quantization_version": 2}
    temporary = path.with_name(f".{path.name}.saving")
    try:
        _write_file(temporary, entries, _Plan(places, types, config, gguf), fetch)
        fsync(temporary)
        os.link(temporary, path)
    except FileExistsError:
        raise UsageError(f"--out={path}: exists; expected a new file") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return {"architecture": name, "tensors": len(places), "bytes": path.stat().st_size}


def _type_of(place: tensors.Place, kind: str) -> str:
    inner, outer, _ = TYPES[kind]
    if not place.matrix or place.name.startswith("position_embd"):
        return "F32"
    return inner if place.name.startswith("blk.") else outer


def _check_blocks(place: tensors.Place, block_type: str, kind: str) -> None:
    if block_type.startswith("Q") and place.shape[-1] % _BLOCK:
        raise UsageError(
            f"--type={kind}: {place.tensor.name} has rows of {place.shape[-1]}; expected a "
            f"multiple of {_BLOCK}, the numbers of a block"
        )


class _Plan:
    """What a file will hold.

    Args:
      places: of all tensors.
      types: by their names in the file.
      config: of the decoder.
      gguf: the package.
    """

    def __init__(
        self,
        places: Sequence[tensors.Place],
        types: Mapping[str, str],
        config: DecoderConfig,
        gguf: ModuleType,
    ):
        self.places, self.types, self.gguf = places, types, gguf
        scaling = config.rope_scaling
        llama3 = scaling is not None and scaling.kind == "llama3"
        self.factors: np.ndarray | None = None
        if llama3 and scaling is not None:
            self.factors = architectures.rope_factors(config.head_dim, config.rope_theta, scaling)


def _write_file(path: pathlib.Path, entries: Mapping[str, Any], plan: _Plan, fetch: Fetch) -> None:
    gguf = plan.gguf
    writer = gguf.GGUFWriter(path, entries["general.architecture"])
    for key, value in entries.items():
        if key != "general.architecture":  # which the writer has added
            _add(writer, key, value)
    if plan.factors is not None:
        shape = plan.factors.shape
        writer.add_tensor_info(
            architectures.ROPE_FACTORS, shape, np.dtype("float32"), plan.factors.nbytes
        )
    for place in plan.places:
        block_type = gguf.GGMLQuantizationType[plan.types[place.name]]
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[block_type]
        row_bytes = place.shape[-1] // per_block * block_bytes
        shape = (*place.shape[:-1], row_bytes)
        writer.add_tensor_info(
            place.name, shape, np.dtype("uint8"), int(np.prod(shape)), raw_dtype=block_type
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if plan.factors is not None:
            writer.write_tensor_data(plan.factors.astype(np.float32))
        for place in plan.places:
            writer.write_tensor_data(_blocks_of(place, fetch(place.tensor), plan))
    finally:
        writer.close()


def _blocks_of(place: tensors.Place, value: "np.ndarray | Coded", plan: _Plan) -> np.ndarray:
    if isinstance(value, Coded):
        codes, scales = (place.to_file(each) for each in (value.codes, value.scales))
        return dataclasses.replace(value, codes=codes, scales=scales).blocks()
    value = place.to_file(value.astype(np.float32))
    return blocks(value, plan.types[place.name], place.tensor.name, plan.gguf)


def blocks(value: np.ndarray, block_type: str, name: str, gguf: ModuleType) -> np.ndarray:
    """Numbers as the bytes of a type: float32 [..., N] -> uint8 [..., bytes of a row].

    Raises:
      UsageError: a number is not finite, or too large for the type's float16.
    """
    with np.errstate(over="ignore"):
        coded = gguf.quantize(value, gguf.GGMLQuantizationType[block_type])
    if block_type in ("F16", "Q8_0", "Q4_0"):
        largest = {"F16": 65504.0, "Q8_0": 65504.0 * 127, "Q4_0": 65504.0 * 8}[block_type]
        if not np.abs(value).max(initial=0.0) <= largest:
            raise UsageError(f"{name}: holds numbers beyond {largest:g}; expected --type=f32")
    if not np.isfinite(value).all():
        raise UsageError(f"{name}: holds numbers that are not finite; expected a trained model")
    return np.ascontiguousarray(coded).view(np.uint8)


def _add(writer: Any, key: str, value: Any) -> None:
    """Adds a key with the type that llama.cpp expects: 32 bits for numbers but for scores."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
