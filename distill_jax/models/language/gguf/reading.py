"""A GGUF file as a Hugging Face folder: config.json, safetensors and the tokenizer.

Everything that the file states is checked before a tensor is read, and one tensor is held at a
time. Blocks of quantized types are dequantized; their grid is that of the numbers.
"""

import os
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from distill_jax.data.text import gguf_vocabulary
from distill_jax.errors import UsageError
from distill_jax.models.files import gguf_file
from distill_jax.models.language.gguf import architectures, tensors
from distill_jax.models.language.huggingface import reading, tensor_map, writing

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_CARD = ("license", "license.name", "license.link", "name", "organization", "basename")


def to_folder(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    key: str = "import",
) -> dict[str, Any]:
    """Writes the decoder and the tokenizer of a GGUF file as a Hugging Face folder.

    Args:
      path: the file.
      folder: the folder to write, new or empty, on a disk.
      dtype: of the safetensors; float32 holds the numbers of every type but float64 as they are.
      key: what errors name the file by.

    Returns:
      {"architecture", "family", "parameters", "types", "licence", "tokens"}: of llama.cpp and of
      transformers, how many numbers, which block types how many tensors have, and the rest as in
      the file's metadata.

    Raises:
      UsageError: the file is damaged, of an architecture or with a tokenizer that is not
        implemented, or lacks tensors; nothing has been written then.
    """
    location = f"{key}={str(path)!r}"
    with gguf_file.File(pathlib.Path(path), key=key) as file:
        try:
            places, config = _open(file)
            files = gguf_vocabulary.to_huggingface(file.metadata)
            count = len(file.metadata["tokenizer.ggml.tokens"])
            if count != config.vocab_size:
                raise UsageError(
                    f"tokenizer.ggml.tokens: {count} tokens; expected {config.vocab_size}, the "
                    f"rows of {_EMBEDDING}"
                )
        except UsageError as error:
            raise UsageError(f"{location}: {error}") from None
        by_tensor = {place.tensor.name: place for place in places}

        def fetch(tensor: tensor_map.Tensor) -> np.ndarray:
            place = by_tensor[tensor.name]
            return place.from_file(file.read(place.name)).astype(jnp.dtype(dtype))

        ids = {
            f"{role}_token_id": file.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
            for role, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        }
        writing.save_tensors(
            folder,
            config,
            reading.shapes(config),
            fetch,
            dtype=dtype,
            extra_config=ids,
            extra_files=files,
            key="--workdir",
        )
        card = _card(file.metadata, pathlib.Path(path).name)
        (pathlib.Path(folder) / "README.md").write_bytes(card)
        return {
            "architecture": file.metadata["general.architecture"],
            "family": config.family,
            "parameters": sum(int(np.prod(place.shape)) for place in places),
            "types": dict(Counter(file.tensors[place.name].type for place in places)),
            "licence": file.metadata.get("general.license"),
            "tokens": count,
        }


def _open(file: gguf_file.File) -> tuple[list[tensors.Place], Any]:
    """The places of all tensors and the config; UsageError where the file lacks something."""
    name = architectures.name_of(file.metadata)
    stored = file.tensors.get(_EMBEDDING)
    if stored is None or len(stored.shape) != 2:
        raise UsageError(f"{_EMBEDDING}: expected a matrix of this name")
    factors = None
    if architectures.ROPE_FACTORS in file.tensors:
        factors = file.read(architectures.ROPE_FACTORS)
    config = architectures.config_of(file.metadata, file.tensors.keys(), stored.shape[0], factors)
    if config.layers > len(file.tensors):
        raise UsageError(f"{name}.block_count={config.layers}: there are fewer tensors")
    library = gguf_file.library("FILE")
    places = tensors.places(config, name, reading.shapes(config), library)
    wanted = {place.name: place.shape for place in places}
    found = {
        each.name: each.shape
        for each in file.tensors.values()
        if each.name != architectures.ROPE_FACTORS
    }
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"{name:.80} is unexpected" for name in sorted(found.keys() - wanted.keys())]
    faults += [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UsageError(
            f"the tensors are not those of the metadata: {'; '.join(faults[:3])}{more}"
        )
    return places, config


def _card(metadata: Mapping[str, Any], name: str) -> bytes:
    """README.md with the licence and the origin that the file states."""
    general = {key: metadata.get(f"general.{key}") for key in _CARD}
    known = {key: " ".join(str(value).split()) for key, value in general.items() if value}
    header = [f"license: {known['license']}"] if "license" in known else []
    keys = (("license_name", "license.name"), ("license_link", "license.link"))
    header += [f"{ours}: {known[theirs]}" for ours, theirs in keys if theirs in known]
    stated = ", ".join(f"{key}: {known[key]}" for key in _CARD if key in known)
    lines = [
        "---",
        *header,
        "library_name: transformers",
        "---",
        f"# {known.get('name', name)}",
        "",
        f"Imported from the GGUF file `{name}`; its metadata state {stated or 'no licence'}.",
    ]
    return ("\n".join(lines) + "\n").encode()
