"""The manifest of an answer store: what its answers were computed from, and which parts it has."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax import data
from distill_jax.errors import UsageError
from distill_jax.storage.sharded import MANIFEST, Manifest
from distill_jax.teachers.answers.schemes import view_options

FORMAT = 1

Arrays = dict[str, np.ndarray]


def refusal(path: str | os.PathLike[str], reason: str) -> UsageError:
    """The error of a store that cannot be used."""
    return UsageError(f"teacher.store={str(path)!r}: {reason}")


def render(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest's file: the manifest and its own SHA-256."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}, indent=1) + "\n").encode()


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of a store, finished or not.

    Raises:
      UsageError: there is none, or it is damaged or of another format.
    """
    try:
        content = pathlib.Path(path, MANIFEST).read_bytes()
    except OSError as error:
        reason = f"{MANIFEST}: {error.strerror}; expected the folder of a store of answers"
        raise refusal(path, reason) from None
    try:
        manifest = json.loads(content)
        version = manifest["format"]
        del manifest["sha256"]
        # Byte for byte, so that a change that means the same to a JSON parser is also noticed.
        intact = render(manifest) == content
    except (ValueError, KeyError, TypeError, RecursionError):
        intact, version = False, FORMAT
    if version != FORMAT:
        raise refusal(path, f"it has format {version!r}; this version reads {FORMAT}")
    if not intact:
        raise refusal(path, f"{MANIFEST} is damaged; delete the folder and store the answers again")
    return manifest


def is_of_text(manifest: Mapping[str, Any]) -> bool:
    """Whether the answers are to text; otherwise they are to images."""
    return "temperature" in manifest


def settings_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what the answers are, under the names that an error message uses."""
    sets = manifest["data"]
    if is_of_text(manifest):
        return {
            "teacher": manifest["teacher"]["fingerprint"],
            "tokenizer": sets["tokenizer"],
            "vocabulary": sets["vocabulary"],
            "training data": sets["train"]["fingerprint"],
            **manifest["scheme"],
            **{name: manifest[name] for name in ("temperature", "dtype")},
            **{name: manifest[name] for name in ("compute_dtype", "quantize")},
        }
    return {
        "teacher": manifest["teacher"]["fingerprint"],
        "training data": sets["train"]["fingerprint"],
        "test data": sets["test"]["fingerprint"],
        "classes": sets["classes"],
        "teacher.classes": manifest.get("classes", "same"),
        **augment_settings(manifest["augment"]),
        **{name: value for name, value in manifest["scheme"].items() if name != "probe"},
        **{name: manifest[name] for name in ("dtype", "compute_dtype", "taps")},
    }


def augment_settings(options: data.Augment | Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `settings_of` that describe the views, under the keys of a config."""
    return {f"data.augment.{name}": value for name, value in view_options(options).items()}


def refuse_other_settings(
    path: str | os.PathLike[str], manifest: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """UsageError when a store has other settings than expected; None accepts any value."""
    stored = settings_of(manifest)
    for name, value in expected.items():
        if value is not None and stored.get(name) != value:
            before, now = _shortened(stored.get(name)), _shortened(value)
            raise refusal(path, f"made for {name}={before!r}; this run has {now!r}")


def _shortened(value: Any) -> Any:
    is_sha256 = isinstance(value, str) and len(value) == 64
    return value[:12] if is_sha256 else value


def part_names(manifest: Mapping[str, Any]) -> list[str]:
    """The names of all parts of the finished store, in the order of writing."""
    unaugmented = [name for name in ("test", "held_out") if manifest["data"].get(name)]
    count = -(-manifest["items"] // manifest["part_size"])
    return [*unaugmented, *(f"{number:05d}" for number in range(count))]


def file_name(part: str, array: str) -> str:
    """The file of one array of a part."""
    return f"{array}-{part}.npy" if part.isdigit() else f"{part}-{array}.npy"


def hash_of_ids(ids: np.ndarray) -> str:
    """The SHA-256 of a list of examples, in its order."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()
