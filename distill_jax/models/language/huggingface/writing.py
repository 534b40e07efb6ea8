"""Writing a decoder as a Hugging Face folder that transformers loads, to the same logits.

Writing is atomic, see `storage.replacing_folder`. A tensor at a time comes from the devices to the
first host, which writes it.
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from distill_jax import parallel
from distill_jax.models.files import safetensors_writer
from distill_jax.models.functional import split
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.decoder import Decoder
from distill_jax.models.language.huggingface import names, tensor_files
from distill_jax.models.language.huggingface.families import to_huggingface
from distill_jax.processes import coordination
from distill_jax.storage import replacing_folder

#: Files of a tokenizer, which may lie beside a checkpoint.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
_OURS = re.compile(
    r"config\.json|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|"
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
        key=key,
    )


def save_params(
    path: str | os.PathLike,
    config: DecoderConfig,
    params: Mapping[str, Any],
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: int = 5 * 10**9,
    extra_config: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    key: str = "path",
) -> None:
    """Writes config.json and safetensors.

    All processes call it together; the first one writes.

    Args:
      path: the folder; made if need be. It may hold an earlier checkpoint and nothing else.
      config: of the decoder; its `family` says how.
      params: by their flat names, as `parallel.fetch_to_first` takes them.
      dtype: of the file; by default that of the parameters.
      shard_bytes: above this much, several files and an index.
      extra_config: more keys for config.json, such as bos_token_id and eos_token_id.
      extra_files: contents of more files, by names in TOKENIZER.
      key: what an error calls the path.

    Raises:
      UsageError: the folder holds other things, or the family has no such option as the model.
    """
    kind = jnp.dtype(dtype or params["embedding"].dtype)
    content = to_huggingface(config, dtype=kind.name, extra_config=extra_config)
    written = replacing_folder(path, lambda name: bool(_OURS.fullmatch(name)), "a checkpoint", key)
    with written if coordination.is_first() else contextlib.nullcontext() as saving:
        if saving:
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (saving / tensor_files.CONFIG).write_text(text)
            for name, data in (extra_files or {}).items():
                (saving / name).write_bytes(data)
        _write(saving, config, params, kind, shard_bytes)


def _write(
    folder: pathlib.Path | None,
    config: DecoderConfig,
    params: Mapping[str, Any],
    kind: jnp.dtype,
    limit: int,
) -> None:
    layout = names.tensors(config, {name: value.shape for name, value in params.items()})
    shards = list(_shards(layout, kind.itemsize, limit))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        name = tensor_files.SINGLE if len(shards) == 1 else several
        held = {tensor.name: tensor for tensor in shard}

        def read(name: str, held: Mapping[str, names.Tensor] = held) -> np.ndarray | None:
            return _array(held[name], params, kind)

        kinds = {name: jax.ShapeDtypeStruct(tensor.shape, kind) for name, tensor in held.items()}
        # Transformers refuses a file that does not say for which framework its names are.
        safetensors_writer.write(folder and folder / name, kinds, read, metadata={"format": "pt"})
        index |= dict.fromkeys(held, name)
    if folder and len(shards) > 1:
        total = sum(int(np.prod(tensor.shape)) for tensor in layout) * kind.itemsize
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / tensor_files.INDEX).write_text(json.dumps(content, indent=2) + "\n")


def _shards(layout: list[names.Tensor], itemsize: int, limit: int) -> Iterator[list[names.Tensor]]:
    shard, size = [], 0
    for tensor in layout:
        own = int(np.prod(tensor.shape)) * itemsize
        if shard and size + own > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += own
    yield shard


def _array(tensor: names.Tensor, params: Mapping[str, Any], kind: jnp.dtype) -> np.ndarray | None:
    """One tensor as the checkpoint has it, in the first process."""
    parts = [parallel.fetch_to_first(params[name], tensor.place) for name in tensor.parameters]
    if not coordination.is_first():
        return None
    parts = [part.astype(kind, copy=False) for part in parts]
    whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    return whole.T if tensor.transposed else whole
