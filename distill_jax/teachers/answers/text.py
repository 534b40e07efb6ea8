"""Stores what a decoder says of each token of packed rows, and opens such a store for a training.

    manifest.json                   what the answers were made from, and every file's SHA-256
    ids-00000.npy, ...              [n, T, K]: n rows in the order of the packing

The arrays are those of `sparse.Sparse`. How parts are written, hashed and continued is the matter
of store.py; as there, one writer a folder, of one process, and any number of readers.
"""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from distill_jax.errors import UsageError
from distill_jax.teachers.answers import manifest as manifests
from distill_jax.teachers.answers import writing
from distill_jax.teachers.answers.manifest import FORMAT, Arrays, read_manifest, refuse_other
from distill_jax.teachers.answers.reading import ANSWER_PREFIX, AnswerStore, open_store
from distill_jax.teachers.answers.sparse import SparseFormat


def precompute_text(
    path: str | os.PathLike,
    *,
    sparse: SparseFormat,
    seed: int,
    temperature: float,
    teacher: dict[str, Any],
    data: dict[str, Any],
    rows: int,
    length: int,
    batch_size: int,
    answer: Callable[[np.ndarray], dict[str, Any]],
    part_size: int = 0,
    note: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Stores a teacher's answers to all training rows, or goes on where it stopped.

    Args:
      path: the folder: a new one, or a store of the very same answers.
      sparse: what is kept of an answer.
      seed: of draws.
      temperature: T of the distributions.
      teacher: "fingerprint", "parameters", "quantize" and "compute_dtype".
      data: "fingerprint" of the rows, and "tokenizer", its fingerprint.
      rows: R, how many there are.
      length: T, tokens of a row.
      batch_size: B, rows in one call of the teacher.
      answer: int32 [B] numbers of rows -> the arrays of `sparse`, [B, T, ...], and "finite",
        bool [B, T].
      part_size: rows a part; 0 for about 64 MiB, or for what an unfinished store has.
      note: called with one line for each part that is written.

    Returns:
      The manifest.

    Raises:
      UsageError: the folder holds something else, the disk is too small, or the teacher says what
        is no number.
    """
    drawn = {"draws": sparse.count, "seed": seed}
    manifest = {
        "format": FORMAT,
        "teacher": {name: teacher[name] for name in ("fingerprint", "parameters")},
        "data": {
            "name": "text",
            "train": {"examples": rows, "fingerprint": data["fingerprint"]},
            "tokenizer": data["tokenizer"],
            "vocabulary": sparse.vocab_size,
        },
        "scheme": {
            "scheme": sparse.kind,
            **(drawn if sparse.kind == "sampled" else {"ids": sparse.count}),
        },
        "temperature": temperature,
        "dtype": sparse.dtype,
        "quantize": teacher["quantize"],
        "compute_dtype": teacher["compute_dtype"],
        "arrays": {name: [length, *shape] for name, (shape, _) in sparse.arrays.items()},
        "items": rows,
        "answers_an_item": length,
        "answer_bytes": rows * length * sparse.nbytes,
        "part_size": part_size,
        "software": [],
        "parts": {},
    }
    if not part_size and not pathlib.Path(path, manifests.MANIFEST).exists():
        # Whole batches, so that no row is computed twice.
        manifest["part_size"] = -(-writing.default_part_size(manifest) // batch_size) * batch_size

    def part(first: int, count: int, size: int) -> Arrays:
        del size
        # Batches begin at multiples of B wherever a part does: equal shapes round equally.
        begin, end = first // batch_size, -(-(first + count) // batch_size)
        numbers = np.arange(begin * batch_size, end * batch_size, dtype=np.int32)
        batches = np.minimum(numbers, rows - 1).reshape(-1, batch_size)
        found = list(_fetched(answer(batch) for batch in batches))
        joined = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        here = slice(first - begin * batch_size, first - begin * batch_size + count)
        joined = {name: array[here] for name, array in joined.items()}
        if not joined.pop("finite").all():
            raise UsageError("teacher.path: logits of the teacher are not all finite numbers")
        return joined

    return writing.write_parts(pathlib.Path(path), manifest, part, {}, note)


def _fetched(calls: Iterator[dict[str, Any]]) -> Iterator[Arrays]:
    """What calls return, each fetched from the devices while the next one computes."""
    ahead = None
    for call in calls:
        if ahead is not None:
            yield jax.device_get(ahead)
        ahead = call
    yield jax.device_get(ahead)


def describe_text_store(path: str | os.PathLike) -> tuple[SparseFormat, dict[str, Any]]:
    """What is kept in a store of text, and its manifest.

    Raises:
      UsageError: there is no store, or one of images.
    """
    manifest = read_manifest(path)
    if "temperature" not in manifest:
        raise manifests.refusal(path, "holds answers to images; expected a store of text")
    scheme, vocabulary = manifest["scheme"], manifest["data"]["vocabulary"]
    count = scheme.get("draws") or scheme["ids"]
    return SparseFormat(scheme["scheme"], count, vocabulary, manifest["dtype"]), manifest


def open_text_store(
    path: str | os.PathLike,
    *,
    rows: str,
    tokenizer: str,
    vocab_size: int,
    temperature: float,
    teacher: str | None = None,
) -> tuple[SparseFormat, AnswerStore]:
    """Opens a finished store for a training.

    Args:
      path: the folder.
      rows: fingerprint of the packed training rows.
      tokenizer: fingerprint of the tokenizer.
      vocab_size: how many ids student and teacher share.
      temperature: T of the training.
      teacher: fingerprint of the one that is expected; None takes that of the store.

    Returns:
      What is kept of an answer, and the files.

    Raises:
      UsageError: the store was made for something else, is not finished, or is damaged.
    """
    sparse, manifest = describe_text_store(path)
    expected = {
        "teacher": teacher,
        "tokenizer": tokenizer,
        "vocabulary": vocab_size,
        "training data": rows,
        "temperature": temperature,
    }
    refuse_other(path, manifest, expected)
    return sparse, open_store(path, manifest)


def gather_answers(files: AnswerStore, names: Sequence[str], rows: np.ndarray) -> Arrays:
    """The stored answers to some rows, by names that begin with ANSWER_PREFIX: [n, T, ...]."""
    return {ANSWER_PREFIX + name: files.take(name, rows) for name in names}
