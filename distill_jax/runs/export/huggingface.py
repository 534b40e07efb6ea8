"""A decoder as a Hugging Face folder with its tokenizer, which transformers loads."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from distill_jax import models
from distill_jax.models import language
from distill_jax.models.language import quantized
from distill_jax.models.language.huggingface import reading
from distill_jax.models.language.huggingface.writing import TOKENIZER
from distill_jax.runs.export.source import Source
from distill_jax.storage import resolve_path


def write(source: Source, folder: pathlib.Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Writes config.json, safetensors and the tokenizer; see `formats.Format`.

    The matrices of a quantized model are decoded: a folder for programs that read no codes.

    Returns:
      {"family", "parameters_sha256", "tokenizer"}: the decoder's family, the hash in the result,
      and the tokenizer's files.
    """
    del options
    model = language.load(source.folder, key="--workdir")
    if chosen := reading.grids_of(source.folder, key="--workdir"):
        decoded = quantized.decode(models.split(model)[1], chosen, jnp.float32)
        model = language.from_params(model.config, decoded)
    tokenizer = source.open_tokenizer()
    tokenizer_files = read_tokenizer_files(resolve_path(tokenizer.path, "data.tokenizer"))
    identity = source.result.get("parameters_sha256", "")
    language.save(
        folder,
        model,
        extra_config={
            f"{role}_token_id": getattr(tokenizer, role) for role in ("bos", "eos", "pad")
        },
        extra_files=tokenizer_files,
        identity=identity,
        key="--out",
    )
    return {
        "family": model.config.family,
        "parameters_sha256": identity,
        "tokenizer": sorted(tokenizer_files),
    }


def read_tokenizer_files(file: pathlib.Path) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer; {} for one of another format.

    Args:
      file: tokenizer.json or tokenizer.model, beside which the other files lie.
    """
    if file.name not in TOKENIZER:
        return {}
    files = (file.parent / name for name in TOKENIZER)
    return {path.name: path.read_bytes() for path in files if path.is_file()}
