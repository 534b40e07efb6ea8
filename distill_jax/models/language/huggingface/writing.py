"""Writing a decoder as a Hugging Face folder that transformers loads, with the same logits.

Writing is atomic, see `storage.replacing_folder`. The devices send one tensor at a time to the
first host, which writes it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from distill_jax import parallel
from distill_jax.models.files import checksums, safetensors_writer
from distill_jax.models.functional import split
from distill_jax.models.language import quantized
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.decoder import Decoder
from distill_jax.models.language.huggingface import compressed, tensor_files, tensor_map
from distill_jax.models.language.huggingface.families import to_huggingface
from distill_jax.models.language.lora import MergedParam
from distill_jax.processes import coordination
from distill_jax.quantization.grids import Grid
from distill_jax.storage import replacing_folder

#: Files of a tokenizer, which a checkpoint's folder may hold too.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
_SHARD_BYTES = 5 * 10**9
# The files of an earlier checkpoint, which may be replaced.
_OURS = re.compile(
    r"config\.json|SHA256SUMS|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|"
    + "|".join(map(re.escape, TOKENIZER))
)


def save(
    path: str | os.PathLike,
    model: Decoder,
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: int = _SHARD_BYTES,
    extra_config: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    identity: str = "",
    key: str = "path",
) -> None:
    """Writes config.json and safetensors of a decoder; see `save_params`."""
    save_params(
        path,
        model.config,
        split(model)[1],
        dtype=dtype,
        shard_bytes=shard_bytes,
        extra_config=extra_config,
        extra_files=extra_files,
        identity=identity,
        key=key,
    )


def save_params(
    path: str | os.PathLike,
    config: DecoderConfig,
    params: Mapping[str, Array | MergedParam],
    *,
    dtype: DTypeLike | None = None,
    chosen: Mapping[str, Grid] | None = None,
    shard_bytes: int = _SHARD_BYTES,
    extra_config: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    identity: str = "",
    key: str = "path",
) -> None:
    """Writes config.json, safetensors and their SHA-256 sums.

    All processes call it together; the first one writes.

    Args:
      path: the folder, created if it is missing. It may hold an earlier checkpoint and nothing
        else.
      config: of the decoder; its `family` chooses the format.
      params: by their flat names; of an adapted decoder from `lora.merge_adapters`.
      dtype: of the file; by default that of the embedding.
      chosen: the grid of each kernel whose codes and scales `params` has (see `quantized`), which
        are written as they are, in the form of compressed-tensors.
      shard_bytes: a larger checkpoint is split into several files with an index.
      extra_config: more keys for config.json, such as bos_token_id and eos_token_id.
      extra_files: contents of more files, by names in TOKENIZER.
      identity: the parameters_sha256 of the run, which the list of sums then has too.
      key: the config key or flag that errors name.

    Raises:
      UsageError: the folder holds other things, or the family cannot express the model.
    """
    file_dtype = jnp.dtype(dtype or params["embedding"].dtype)
    chosen = chosen or {}
    content = to_huggingface(config, dtype=file_dtype.name, extra_config=extra_config)
    entries = _entries(config, params, chosen, file_dtype)
    if chosen:
        tensors = tensor_map.tensors(config, shapes_of(params, chosen))
        content |= compressed.write_config(config, tensors, chosen)
    _save(
        path,
        content,
        entries,
        lambda entry: entry.fetch(params),
        shard_bytes=shard_bytes,
        extra_files=extra_files,
        identity=identity,
        key=key,
    )


def save_tensors(
    path: str | os.PathLike,
    config: DecoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    fetch: Callable[[tensor_map.Tensor], np.ndarray | None],
    *,
    dtype: DTypeLike,
    extra_config: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    key: str = "path",
) -> None:
    """Writes a folder as `save_params`, of tensors that no process has to hold together.

    Args:
      path: as there, like the arguments after `dtype`.
      config: of the decoder.
      shapes: of its parameters, by their flat names.
      fetch: gives a tensor of the checkpoint, in `dtype`; in processes but the first it may be
        None. It is called once for each, in the order of the files.
      dtype: of the files.
    """
    file_dtype = jnp.dtype(dtype)
    content = to_huggingface(config, dtype=file_dtype.name, extra_config=extra_config)
    entries = [
        _Entry(tensor.name, tensor.shape, file_dtype, tensor, None)
        for tensor in tensor_map.tensors(config, shapes)
    ]
    _save(
        path,
        content,
        entries,
        lambda entry: fetch(entry.tensor),
        extra_files=extra_files,
        key=key,
    )


def _save(
    path: str | os.PathLike,
    content: Mapping[str, Any],
    entries: Sequence["_Entry"],
    fetch: Callable[["_Entry"], np.ndarray | None],
    *,
    shard_bytes: int = _SHARD_BYTES,
    extra_files: Mapping[str, bytes] | None = None,
    identity: str = "",
    key: str,
) -> None:
    """Writes config.json with this content, and the entries that `fetch` gives."""
    written = replacing_folder(path, lambda name: bool(_OURS.fullmatch(name)), "a checkpoint", key)
    with written if coordination.is_first() else contextlib.nullcontext() as saving:
        if saving:
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (saving / tensor_files.CONFIG).write_text(text, encoding="utf-8")
            for name, data in (extra_files or {}).items():
                (saving / name).write_bytes(data)
        sums = _write_tensors(saving, entries, fetch, shard_bytes)
        if saving:
            sums[tensor_files.CONFIG] = hashlib.sha256(text.encode()).hexdigest()
            (saving / checksums.NAME).write_text(checksums.render(sums, identity))


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor of the files.

    Attributes:
      name: of it.
      shape: of it.
      dtype: of it.
      tensor: the tensor of a dense checkpoint that it is, or of whose codes it is a part.
      grid: of a quantized one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    tensor: tensor_map.Tensor
    grid: Grid | None

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def fetch(self, params: Mapping[str, Array | MergedParam]) -> np.ndarray | None:
        """Its content on the first host; None on every other host."""
        if self.grid is None:
            return fetch_tensor(self.tensor, params, self.dtype)
        found = []
        for name in self.tensor.parameters:
            codes, scales = (
                parallel.fetch_to_first(params[each], self.tensor.index)
                for each in (name, quantized.scale_name(name))
            )
            if codes is not None and scales is not None:
                found.append((codes, scales))
        if not found:
            return None
        codes, scales = (np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
        return compressed.to_file(self.name, codes, scales, self.grid)


def shapes_of(params: Mapping[str, Any], chosen: Mapping[str, Grid]) -> dict[str, tuple[int, ...]]:
    """The shapes that the parameters have in a dense decoder."""
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    for name, grid in chosen.items():
        del shapes[quantized.scale_name(name)]
        if grid.bits == 4:
            *lead, half, outputs = shapes[name]
            shapes[name] = (*lead, 2 * half, outputs)
    return shapes


def _entries(
    config: DecoderConfig,
    params: Mapping[str, Array | MergedParam],
    chosen: Mapping[str, Grid],
    dtype: np.dtype,
) -> list[_Entry]:
    entries = []
    for tensor in tensor_map.tensors(config, shapes_of(params, chosen)):
        grid = compressed.grid_of(tensor, chosen)
        kinds = {tensor.name: (tensor.shape, dtype)}
        if grid is not None:
            kinds = compressed.files_of(tensor, grid)
        entries += [_Entry(name, *kind, tensor, grid) for name, kind in kinds.items()]
    return entries


def _write_tensors(
    folder: pathlib.Path | None,
    entries: Sequence[_Entry],
    fetch: Callable[[_Entry], np.ndarray | None],
    shard_bytes: int,
) -> dict[str, str]:
    """Writes the tensors and, of several files, an index; only the first host has a `folder`.

    Returns:
      The SHA-256 of each file that was written.
    """
    shards = list(_shards(entries, shard_bytes))
    index: dict[str, str] = {}
    sums: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        numbered = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = tensor_files.SINGLE if len(shards) == 1 else numbered
        by_name = {entry.name: entry for entry in shard}

        def read(name: str, by_name: Mapping[str, _Entry] = by_name) -> np.ndarray | None:
            return fetch(by_name[name])

        # Transformers refuses a file without the framework that its tensors are for.
        digest = hashlib.sha256()
        safetensors_writer.write(
            folder and folder / file, by_name, read, metadata={"format": "pt"}, digest=digest
        )
        sums[file] = digest.hexdigest()
        index |= dict.fromkeys(by_name, file)
    if folder and len(shards) > 1:
        total = sum(entry.nbytes for entry in entries)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        text = json.dumps(content, indent=2) + "\n"
        (folder / tensor_files.INDEX).write_text(text, encoding="utf-8")
        sums[tensor_files.INDEX] = hashlib.sha256(text.encode()).hexdigest()
    return sums


def _shards(entries: Sequence[_Entry], limit: int) -> Iterator[list[_Entry]]:
    """Consecutive tensors of together at most `limit` bytes, or a single larger one."""
    shard: list[_Entry] = []
    size = 0
    for entry in entries:
        if shard and size + entry.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += entry.nbytes
    yield shard


def fetch_tensor(
    tensor: tensor_map.Tensor, params: Mapping[str, Array | MergedParam], dtype: np.dtype
) -> np.ndarray | None:
    """One tensor as it lies in the checkpoint, on the first host; None on every other host."""
    fetched = [parallel.fetch_to_first(params[name], tensor.index) for name in tensor.parameters]
    parts = [part.astype(dtype, copy=False) for part in fetched if part is not None]
    if not parts:
        return None
    whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    return whole.T if tensor.transposed else whole
