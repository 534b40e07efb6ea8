"""An image model for other libraries: the state dict of PyTorch, and the images it expects."""

import json
import os
import pathlib
from typing import Any, cast

import numpy as np
import safetensors.numpy

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models.files.pytorch import to_pytorch
from distill_jax.storage import gcs, is_remote, replacing_folder, resolve_path, staging_folder

FORMATS = ("safetensors", "npz")
_ABOUT = "model.json"


def write(folder: pathlib.Path, out: str | os.PathLike, form: str) -> dict[str, Any]:
    """Writes model.safetensors or model.npz, and model.json with the network and its pixels.

    Args:
      folder: of the saved model.
      out: the folder to write; a new one, or one that an export has written.
      form: of `FORMATS`.

    Returns:
      {"path", "model", "fingerprint", "arrays"}: the folder, the network, the SHA-256 of the model
      that was written, and how many arrays the file has.

    Raises:
      UsageError: the model is damaged or has no counterpart in PyTorch, or the folder holds
        something else.
    """
    target = resolve_path(out, "--out")
    if is_remote(target) and gcs.list_names(target):
        raise UsageError(
            f"--out={target}: there are objects under this name; expected a new folder"
        )
    saved = models.load(folder, key="--workdir")
    state = to_pytorch(saved.params, saved.stats, saved.spec)
    about = {"spec": saved.spec.to_json(), "fingerprint": saved.fingerprint, "names": "pytorch"}
    known = (_ABOUT, *(f"model.{each}" for each in FORMATS))
    with (
        staging_folder(target, _ABOUT) as staging,
        replacing_folder(staging, known.__contains__, "an export", "--out") as new,
    ):
        if form == "npz":
            np.savez(new / "model.npz", **cast(dict[str, Any], state))
        else:
            safetensors.numpy.save_file(state, new / "model.safetensors", {"format": "pt"})
        (new / _ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    return {
        "path": str(target),
        "model": saved.spec.name,
        "fingerprint": saved.fingerprint,
        "arrays": len(state),
    }
