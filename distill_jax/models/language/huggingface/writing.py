"""Writing a decoder as a Hugging Face folder that transformers loads, with the same logits.

Writing is atomic, see `storage.replacing_folder`. The devices send one tensor at a time to the
first host, which writes it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from distill_jax import parallel
from distill_jax.models.files import checksums, safetensors_writer
from distill_jax.models.functional import split
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.decoder import Decoder
from distill_jax.models.language.huggingface import tensor_files, tensor_map
from distill_jax.models.language.huggingface.families import to_huggingface
from distill_jax.models.language.lora import MergedParam
from distill_jax.processes import coordination
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
    shard_bytes: int = 5 * 10**9,
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
    shard_bytes: int = 5 * 10**9,
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
      shard_bytes: a larger checkpoint is split into several files with an index.
      extra_config: more keys for config.json, such as bos_token_id and eos_token_id.
      extra_files: contents of more files, by names in TOKENIZER.
      identity: the parameters_sha256 of the run, which the list of sums then has too.
      key: the config key or flag that errors name.

    Raises:
      UsageError: the folder holds other things, or the family cannot express the model.
    """
    file_dtype = jnp.dtype(dtype or params["embedding"].dtype)
    content = to_huggingface(config, dtype=file_dtype.name, extra_config=extra_config)
    written = replacing_folder(path, lambda name: bool(_OURS.fullmatch(name)), "a checkpoint", key)
    with written if coordination.is_first() else contextlib.nullcontext() as saving:
        if saving:
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (saving / tensor_files.CONFIG).write_text(text, encoding="utf-8")
            for name, data in (extra_files or {}).items():
                (saving / name).write_bytes(data)
        sums = _write_tensors(saving, config, params, file_dtype, shard_bytes)
        if saving:
            sums[tensor_files.CONFIG] = hashlib.sha256(text.encode()).hexdigest()
            (saving / checksums.NAME).write_text(checksums.render(sums, identity))


def _write_tensors(
    folder: pathlib.Path | None,
    config: DecoderConfig,
    params: Mapping[str, Array | MergedParam],
    dtype: np.dtype,
    shard_bytes: int,
) -> dict[str, str]:
    """Writes the tensors and, of several files, an index; only the first host has a `folder`.

    Returns:
      The SHA-256 of each file that was written.
    """
    shapes = {name: value.shape for name, value in params.items()}
    tensors = tensor_map.tensors(config, shapes)
    shards = list(_shards(tensors, dtype.itemsize, shard_bytes))
    index: dict[str, str] = {}
    sums: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        numbered = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = tensor_files.SINGLE if len(shards) == 1 else numbered
        by_name = {tensor.name: tensor for tensor in shard}

        def read(
            name: str, by_name: Mapping[str, tensor_map.Tensor] = by_name
        ) -> np.ndarray | None:
            return _fetch_tensor(by_name[name], params, dtype)

        kinds = {
            name: jax.ShapeDtypeStruct(tensor.shape, dtype) for name, tensor in by_name.items()
        }
        # Transformers refuses a file without the framework that its tensors are for.
        digest = hashlib.sha256()
        safetensors_writer.write(
            folder and folder / file, kinds, read, metadata={"format": "pt"}, digest=digest
        )
        sums[file] = digest.hexdigest()
        index |= dict.fromkeys(by_name, file)
    if folder and len(shards) > 1:
        total = sum(int(np.prod(tensor.shape)) for tensor in tensors) * dtype.itemsize
        content = {"metadata": {"total_size": total}, "weight_map": index}
        text = json.dumps(content, indent=2) + "\n"
        (folder / tensor_files.INDEX).write_text(text, encoding="utf-8")
        sums[tensor_files.INDEX] = hashlib.sha256(text.encode()).hexdigest()
    return sums


def _shards(
    tensors: Sequence[tensor_map.Tensor], itemsize: int, limit: int
) -> Iterator[list[tensor_map.Tensor]]:
    """Consecutive tensors of together at most `limit` bytes, or a single larger one."""
    shard: list[tensor_map.Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = int(np.prod(tensor.shape)) * itemsize
        if shard and size + nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += nbytes
    yield shard


def _fetch_tensor(
    tensor: tensor_map.Tensor, params: Mapping[str, Array | MergedParam], dtype: np.dtype
) -> np.ndarray | None:
    """One tensor as it lies in the checkpoint, on the first host; None on every other host."""
    fetched = [parallel.fetch_to_first(params[name], tensor.index) for name in tensor.parameters]
    parts = [part.astype(dtype, copy=False) for part in fetched if part is not None]
    if not parts:
        return None
    whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    return whole.T if tensor.transposed else whole
