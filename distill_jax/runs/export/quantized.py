"""Quantized models: decoders as folders of compressed-tensors, image networks as model folders.

A model that is not quantized yet is rounded to the nearest codes of a recipe; codes and scales of
one that is are copied as they are.
"""

import functools
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from distill_jax import models
from distill_jax.config.schema import TEXT
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.files import quantized_arrays
from distill_jax.models.language import calibration as gptq_of_decoders
from distill_jax.models.language import quantized
from distill_jax.models.language.huggingface import reading
from distill_jax.models.language.huggingface.writing import TOKENIZER
from distill_jax.quantization import gptq, recipes
from distill_jax.quantization.grids import Grid
from distill_jax.runs import calibration
from distill_jax.runs.export.huggingface import read_tokenizer_files
from distill_jax.runs.export.source import Source
from distill_jax.storage import resolve_path

_DTYPES = ("float32", "bfloat16", "float16")
_TOKEN_IDS = tuple(f"{role}_token_id" for role in ("bos", "eos", "pad"))


def form_of(source: Source) -> str:
    """The format that quantized models of this kind have, a name of `formats.FORMATS`."""
    return "compressed-tensors" if source.kind == TEXT else "quantized"


def write_text(source: Source, folder: pathlib.Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a decoder; see `formats.Format`.

    Args:
      source: the model.
      folder: a new one.
      options: "recipe", which a model needs that is not quantized yet; and with it "calibration",
        a file of text for GPTQ, and "calibration_rows", see `runs.calibration`.

    Returns:
      {"family", "grids", "bits_per_weight", "quantized", "bytes", "parameters_sha256",
      "tokenizer"}: the family, the names of the grids, bits of a quantized weight with its part of
      a scale, how many matrices are quantized, bytes of the tensors' files, the hash of the
      parameters, and the tokenizer's files.

    Raises:
      UsageError: the recipe does not fit, or the model is quantized already.
    """
    recipe: str = options.get("recipe") or ""
    chosen = reading.grids_of(source.folder, key="--workdir")
    _check_recipe(recipe, source, {grid.name for grid in chosen.values()})
    model = language.load(source.folder, key="--workdir")
    params: dict[str, Any] = models.split(model)[1]
    record: dict[str, Any] = {}
    if not chosen:
        kernels = quantized.kernels({name: value.shape for name, value in params.items()})
        chosen = recipes.parse(recipe, "--recipe").choose(kernels, kernels, "--recipe")
        if options.get("calibration"):
            params, record = _encode_calibrated(source, model, chosen, options)
        else:
            params = _encode(params, chosen, f"--workdir={source.folder}")
    identity = models.fingerprint_of(model.config.definition(), params)
    extra_config, files = _companions(source)
    language.save_params(
        folder,
        model.config,
        params,
        dtype=_file_dtype(source.folder),
        chosen=chosen,
        extra_config=extra_config | ({"_calibration": record} if record else {}),
        extra_files=files,
        identity=identity,
        key="--out",
    )
    shapes = language.shapes(model.config)
    return {
        "family": model.config.family,
        **_described(chosen, {name: shapes[name] for name in chosen}),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "parameters_sha256": identity,
        "tokenizer": sorted(files),
        **({"calibration": record} if record else {}),
    }


def write_images(
    source: Source, folder: pathlib.Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes an image network; see `write_text`.

    Returns:
      {"model", "grids", "bits_per_weight", "quantized", "bytes", "fingerprint"}.
    """
    recipe: str = options.get("recipe") or ""
    saved = models.load(source.folder, key="--workdir")
    _check_recipe(recipe, source, set(saved.quantized.values()), copies=False)
    shapes = {name: tuple(value.shape) for name, value in saved.params.items()}
    kernels = quantized_arrays.kernels(shapes)
    chosen = recipes.parse(recipe, "--recipe").choose(
        kernels, quantized_arrays.by_default(kernels), "--recipe"
    )
    if acting := sorted({grid.name for grid in chosen.values() if grid.activations}):
        raise UsageError(
            f"--recipe={recipe}: {acting[0]} rounds activations, which image networks here do not; "
            "expected int8, fp8-weight-only, or int4 where its groups divide"
        )
    try:
        fingerprint = models.save(
            folder,
            saved.spec,
            saved.params,
            saved.stats,
            trained_on=saved.trained_on,
            grids=chosen,
        )
    except UsageError as error:
        raise UsageError(f"--workdir={source.folder}: {error}") from error
    return {
        "model": saved.spec.name,
        **_described(chosen, {name: kernels[name] for name in chosen}),
        "bytes": (folder / "weights.safetensors").stat().st_size,
        "fingerprint": fingerprint,
    }


def _check_recipe(recipe: str, source: Source, held: set[str], copies: bool = True) -> None:
    """UsageError where a recipe is missing, or given for codes that are there already."""
    if held and (recipe or not copies):
        flag = f"--recipe={recipe}" if recipe else f"--workdir={source.folder}"
        raise UsageError(
            f"{flag}: --workdir={source.folder} is quantized already ({', '.join(sorted(held))}), "
            "and codes are never rounded again; expected the model that it was made from"
        )
    if not held and not recipe:
        raise UsageError(
            "--recipe: missing, and the model is not quantized yet; expected one of "
            + ", ".join(recipes.RECIPES)
        )


def _encode(
    params: Mapping[str, jax.Array], chosen: Mapping[str, Grid], given: str
) -> dict[str, Any]:
    """The parameters with codes and scales in place of the chosen kernels, one at a time."""
    encoded = {}
    for name, grid in chosen.items():
        encoded[name] = jax.tree.map(np.asarray, _encode_one(params[name], grid))
        try:
            for values in (params[name], encoded[name][1]):
                quantized_arrays.check_finite(name, values, grid)
        except UsageError as error:
            raise UsageError(f"{given}: {error}") from error
    return quantized.with_codes(params, encoded, chosen)


def _encode_calibrated(
    source: Source, model: language.Decoder, chosen: Mapping[str, Grid], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters with codes by GPTQ, and what config.json records of the calibration."""
    rows = options.get("calibration_rows")
    positions = model.config.max_positions if model.config.positions == "learned" else None
    text = calibration.read(
        options["calibration"],
        source.open_tokenizer(),
        rows=calibration.ROWS if rows is None else rows,
        length=min(calibration.LENGTH, positions or calibration.LENGTH),
        vocab_size=model.config.vocab_size,
    )

    def note(line: str) -> None:
        print(f"--calibration: {line}", file=sys.stderr, flush=True)

    encoded = gptq_of_decoders.encode(model, text.batches, chosen, note=note)
    params = models.split(model)[1]
    try:
        for name, (_, scales) in encoded.items():
            quantized_arrays.check_finite(name, scales, chosen[name])
    except UsageError as error:
        raise UsageError(f"--workdir: {error}") from error
    record = {"method": "gptq", "damping": gptq.DAMPING, **text.description}
    return quantized.with_codes(params, encoded, chosen), record


@functools.partial(jax.jit, static_argnums=1)
def _encode_one(kernel: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
    return grid.encode(kernel)


def _described(chosen: Mapping[str, Grid], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    weights = sum(math.prod(shape) for shape in shapes.values())
    bits = sum(
        math.prod(shape) * chosen[name].bits_per_weight(shape[-2]) for name, shape in shapes.items()
    )
    return {
        "grids": sorted({grid.name for grid in chosen.values()}),
        "bits_per_weight": round(bits / weights, 4),
        "quantized": len(chosen),
    }


def _companions(source: Source) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Ids of special tokens for config.json, and the files of the tokenizer, as they came."""
    if source.manifest:
        tokenizer = source.open_tokenizer()
        ids = {f"{role}_token_id": getattr(tokenizer, role) for role in ("bos", "eos", "pad")}
        return ids, read_tokenizer_files(resolve_path(tokenizer.path, "data.tokenizer"))
    stated = _config_of(source.folder)
    files = (source.folder / name for name in TOKENIZER)
    return (
        {key: stated[key] for key in _TOKEN_IDS if key in stated},
        {file.name: file.read_bytes() for file in files if file.is_file()},
    )


def _config_of(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_bytes())


def _file_dtype(folder: pathlib.Path) -> str:
    """The dtype that the folder states for its parameters, for those that are not quantized."""
    stated = _config_of(folder)
    found = str(stated.get("dtype", stated.get("torch_dtype", "float32"))).removeprefix("torch.")
    return found if found in _DTYPES else "float32"
