"""Writing a decoder as a Hugging Face folder that transformers loads, to the same logits.

Writing is atomic: the files go to a hidden folder beside the target, ".NAME.saving", and are
flushed to disk; then the target, if there is one, is renamed to ".NAME.previous", the new folder to
the target's name, and the old one removed. A process killed on the way leaves a whole folder under
one of these names.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.typing import DTypeLike

from distill_jax.errors import UsageError
from distill_jax.files import flush
from distill_jax.models.functional import split
from distill_jax.models.language import files, names
from distill_jax.models.language.decoder import Decoder
from distill_jax.models.language.families import to_huggingface

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
    extra: Mapping[str, Any] | None = None,
    beside: Mapping[str, bytes] | None = None,
    key: str = "path",
) -> None:
    """Writes config.json and safetensors.

    Args:
      path: the folder; made if need be. It may hold an earlier checkpoint and nothing else.
      model: what to write; its config's `family` says how.
      dtype: of the file; by default that of the parameters.
      shard_bytes: above this much, several files and an index. The host holds one of them.
      extra: more keys for config.json, such as bos_token_id and eos_token_id.
      beside: contents of more files, by names in TOKENIZER.
      key: what an error calls the path.

    Raises:
      UsageError: the folder holds other things, or the family has no such option as the model.
    """
    folder = pathlib.Path(path).resolve()
    found = os.listdir(folder) if folder.is_dir() else [folder.name] if folder.exists() else []
    others = sorted(name for name in found if not _OURS.fullmatch(name))
    if others:
        raise UsageError(
            f"{key}={str(path)!r}: expected a new folder or one with nothing but a checkpoint; "
            f"found {others[0]!r}, which replacing it would delete"
        )
    params = split(model)[1]
    kind = jnp.dtype(dtype or params["embedding"].dtype)
    content = to_huggingface(model.config, dtype=kind.name, extra=extra)
    saving, previous = (folder.with_name(f".{folder.name}.{end}") for end in ("saving", "previous"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    _discard(saving)
    _discard(previous)
    saving.mkdir()
    (saving / files.CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    for name, data in (beside or {}).items():
        (saving / name).write_bytes(data)
    _write(saving, model, params, kind, shard_bytes)
    for file in saving.iterdir():
        flush(file)
    flush(saving)
    if folder.exists():
        folder.rename(previous)
    saving.rename(folder)
    flush(folder.parent)
    _discard(previous)


def _discard(folder: pathlib.Path) -> None:
    """Removes a folder of ours. Only files of ours: anything else in it makes `rmdir` refuse."""
    if folder.is_dir():
        for file in folder.iterdir():
            if _OURS.fullmatch(file.name):
                file.unlink()
        folder.rmdir()


def _write(
    folder: pathlib.Path, model: Decoder, params: Mapping[str, Any], kind: jnp.dtype, limit: int
) -> None:
    layout = names.tensors(model.config, {name: value.shape for name, value in params.items()})
    shards = list(_shards(layout, kind.itemsize, limit))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = files.SINGLE if len(shards) == 1 else several
        arrays = {tensor.name: _array(tensor, params, kind) for tensor in shard}
        # Transformers refuses a file that does not say for which framework its names are.
        safetensors.numpy.save_file(arrays, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        index |= dict.fromkeys(arrays, file)
    if len(shards) > 1:
        total = sum(int(np.prod(tensor.shape)) for tensor in layout) * kind.itemsize
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / files.INDEX).write_text(json.dumps(content, indent=2) + "\n")


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


def _array(tensor: names.Tensor, params: Mapping[str, Any], kind: jnp.dtype) -> np.ndarray:
    """One tensor as the checkpoint has it."""
    parts = [params[name][tensor.place] for name in tensor.parameters]
    whole = np.concatenate([np.asarray(part.astype(kind)) for part in parts], axis=-1)
    return np.ascontiguousarray(whole.T if tensor.transposed else whole)
