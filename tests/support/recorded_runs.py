"""Workdirs of finished runs with a record of their predictions, made without training."""

import io
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from distill_jax.evaluation.records import ImageRecord
from distill_jax.storage import sealed


def image_record(
    names: list[str], *, count: int = 60, teacher: bool = True, seed: int = 0
) -> dict[str, np.ndarray]:
    """The record of `count` random examples of these classes."""
    rng = np.random.default_rng(seed)
    classes = len(names)
    labels = rng.integers(0, classes, count)
    truth = 3.0 * np.eye(classes)[labels]
    logits = [np.float32(truth + rng.normal(size=(count, classes)) * s) for s in (2.0, 1.2)]
    record = ImageRecord(classes)
    for part in np.array_split(np.arange(count), 3):
        record.add(labels[part], logits[0][part], logits[1][part] if teacher else None)
    found = record.arrays()
    files = []
    for _ in found["ids"]:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(buffer, "WEBP", lossless=True)
        files.append(buffer.getvalue())
    found["names"] = np.array(names)
    found["thumbnails"] = np.frombuffer(b"".join(files), np.uint8)
    found["thumbnail_ends"] = np.cumsum([len(file) for file in files])
    if teacher:
        found |= {"taps": np.array(["stem", "pooled"]), "cka": np.array([0.75, 0.5])}
    return found


def text_record(pieces: list[str], *, teacher: bool = True) -> dict[str, np.ndarray]:
    """The record of two rows of these tokens."""
    top = [[piece, 0.5 / (i + 1)] for i, piece in enumerate(pieces[:5])]
    row = [{"text": pieces[0], "begin": True}]
    for i, piece in enumerate(pieces):
        token: dict[str, Any] = {"text": piece, "nll": 0.5 + i, "top": top}
        if teacher:
            token |= {"kl": 0.1 * i, "teacher_nll": 0.25 * i, "teacher_top": top[::-1]}
        row.append(token)
    sums = np.zeros((24, 3))
    sums[:4] = [40, 80, 60]
    if not teacher:
        sums[:, 2] = np.nan
    rows = np.frombuffer(json.dumps([row, row[:3]]).encode(), np.uint8)
    return {"rows": rows, "by_position": sums, "by_length": sums}


def write(
    folder: pathlib.Path,
    config: dict[str, Any],
    manifest: dict[str, Any],
    result: dict[str, Any],
    record: dict[str, np.ndarray] | None,
) -> None:
    """Writes config.json, manifest.json, evaluation/test.npz, and result.json with its seal."""
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").write_text(json.dumps({"run": "a" * 32, **manifest}))
    files = {}
    if record is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **record)
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "test.npz").write_bytes(buffer.getvalue())
        files["evaluation/test.npz"] = buffer.getvalue()
    values = sealed.seal(result, run="a" * 32, files=files)
    (folder / "result.json").write_text(json.dumps(values))
