"""The manifest of a store: what its answers were made from, and whether its files are intact."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax import data
from distill_jax.errors import UsageError
from distill_jax.teachers.answers.schemes import view_options

FORMAT = 1
MANIFEST = "manifest.json"

Arrays = dict[str, np.ndarray]


def refusal(path: str | os.PathLike, reason: str) -> UsageError:
    """The error of a store that cannot be used."""
    return UsageError(f"teacher.store={str(path)!r}: {reason}")


def rendered(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest's file: the manifest and its own SHA-256."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}, indent=1) + "\n").encode()


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
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
        written = manifest["format"]
        del manifest["sha256"]
        # Byte for byte: so that also a change which means the same to a JSON parser is a change.
        intact = rendered(manifest) == content
    except (ValueError, KeyError, TypeError, RecursionError):
        intact, written = False, FORMAT
    if written != FORMAT:
        raise refusal(path, f"it has format {written!r}; this version reads {FORMAT}")
    if not intact:
        raise refusal(path, f"{MANIFEST} is damaged; delete the folder and store the answers again")
    return manifest


def made_for(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers hold for, and for nothing else, by the name that a message gives it."""
    sets = manifest["data"]
    if "temperature" in manifest:  # of text
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
        **augmentation(manifest["augment"]),
        **{name: value for name, value in manifest["scheme"].items() if name != "probe"},
        **{name: manifest[name] for name in ("dtype", "compute_dtype", "taps")},
    }


def augmentation(options: data.Augment | Mapping[str, Any]) -> dict[str, Any]:
    """What `made_for` says of the views, by the keys of a config."""
    return {f"data.augment.{name}": value for name, value in view_options(options).items()}


def refuse_other(
    path: str | os.PathLike, manifest: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """UsageError when a store was made for anything but what is expected; None expects nothing."""
    stored = made_for(manifest)
    for name, value in expected.items():
        if value is not None and stored.get(name) != value:
            was, now = (
                v[:12] if isinstance(v, str) and len(v) == 64 else v
                for v in (stored.get(name), value)
            )
            raise refusal(path, f"made for {name}={was!r}; this run has {now!r}")


def names_of_parts(manifest: Mapping[str, Any]) -> list[str]:
    """Every part that the finished store has, in the order of writing."""
    plain = [name for name in ("test", "held_out") if manifest["data"].get(name)]
    count = -(-manifest["items"] // manifest["part_size"])
    return [*plain, *(f"{number:05d}" for number in range(count))]


def file_name(part: str, array: str) -> str:
    """The file of one array of a part."""
    return f"{array}-{part}.npy" if part.isdigit() else f"{part}-{array}.npy"


def damage(folder: pathlib.Path, part: Mapping[str, Any], *, hashes: bool) -> str:
    """The first fault of a part's files, in words, or ""; without `hashes` by their sizes alone."""
    for name, entry in part["files"].items():
        try:
            if (folder / name).stat().st_size != entry["bytes"]:
                return f"{name} is damaged: it has not the size that was written"
            if hashes:
                with open(folder / name, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                        return f"{name} is damaged: its SHA-256 is not the one in {MANIFEST}"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def hash_of_ids(ids: np.ndarray) -> str:
    """The SHA-256 of a list of examples, in its order."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4")).hexdigest()
