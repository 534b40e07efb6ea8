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
from distill_jax.models.language.gguf import architectures, writing
from distill_jax.models.language.huggingface.writing import fetch_tensor
from distill_jax.runs.export.source import Source
from distill_jax.storage import resolve_path

#: The type that a file has where none is asked for: what llama.cpp's converter writes too.
DEFAULT_TYPE = "f16"


def write(source: Source, folder: pathlib.Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Writes one file into the folder; see `formats.Format`.

    Args:
      source: of a decoder.
      folder: where the file is written.
      options: "name" of the file, and "type", of `writing.TYPES`.

    Returns:
      {"architecture", "tensors", "bytes", "type", "family", "parameters_sha256"}.
    """
    gguf_file.library("--format=gguf")
    kind = options.get("type") or DEFAULT_TYPE
    if kind not in writing.TYPES:
        raise unknown("--type", kind, writing.TYPES, kind="type of a GGUF file")
    model = language.load(source.folder, key="--workdir")
    config = model.config
    architectures.name_for(config.family)
    tokenizer = source.open_tokenizer()
    file = resolve_path(tokenizer.path, "data.tokenizer")
    metadata = gguf_vocabulary.from_huggingface(file, config.vocab_size, key="--workdir")
    params = models.split(model)[1]

    def fetch(tensor: Any) -> np.ndarray:
        value = fetch_tensor(tensor, params, np.dtype("float32"))
        if value is None:
            raise UsageError("--format=gguf: expected one process")
        return value

    written = writing.write(
        folder / options["name"],
        config,
        {name: value.shape for name, value in params.items()},
        fetch,
        kind=kind,
        tokenizer=metadata,
        general={"general.name": source.root.name},
    )
    identity = source.result.get("parameters_sha256", "")
    return {"type": kind, "family": config.family, "parameters_sha256": identity, **written}
