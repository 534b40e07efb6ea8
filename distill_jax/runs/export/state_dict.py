"""An image model as the state dict of PyTorch, with the images that it expects."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import safetensors.numpy

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models.files.pytorch import pytorch_names, to_pytorch
from distill_jax.runs.export.source import Source


def write_safetensors(
    source: Source, folder: pathlib.Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes model.safetensors and model.json; see `formats.Format`."""
    del options
    about, state = _state_of(source, folder)
    safetensors.numpy.save_file(state, folder / "model.safetensors", {"format": "pt"})
    return about


def write_npz(source: Source, folder: pathlib.Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Writes model.npz and model.json; see `formats.Format`."""
    del options
    about, state = _state_of(source, folder)
    np.savez(folder / "model.npz", **cast(dict[str, Any], state))
    return about


def _state_of(source: Source, folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the command prints, and the state dict; writes model.json.

    Raises:
      UsageError: the model is damaged or has no counterpart in PyTorch.
    """
    saved = models.load(source.folder, key="--workdir")
    try:
        state = to_pytorch(saved.params, saved.stats, saved.spec)
    except UsageError as error:
        raise UsageError(f"--workdir={source.folder}: {error}") from error
    about = {
        "spec": saved.spec.to_json(),
        "fingerprint": saved.fingerprint,
        "names": "pytorch",
        "name_map": pytorch_names({**saved.params, **saved.stats}, saved.spec),
    }
    (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n")
    return {
        "model": saved.spec.name,
        "fingerprint": saved.fingerprint,
        "arrays": len(state),
    }, state
