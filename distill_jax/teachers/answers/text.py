"""Precomputes a decoder's answers to every token of packed rows, and opens such a store.

    manifest.json                   what the answers were made from, every file's SHA-256, and the
                                    teacher's own figures on the other splits
    ids-00000.npy, ...              [n, T, K]: n rows in the order of the packing

The arrays are those of `sparse.SparseFormat`; `store` writes, verifies and reads the files.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.errors import UsageError
from distill_jax.storage.sharded import Manifest
from distill_jax.teachers.answers import manifest as manifests
from distill_jax.teachers.answers.computing import fetch_while_computing
from distill_jax.teachers.answers.manifest import FORMAT, Arrays
from distill_jax.teachers.answers.sparse import SparseFormat
from distill_jax.teachers.answers.store import (
    ANSWER_PREFIX,
    AnswerFolder,
    AnswerStore,
    Note,
    open_store,
)
from distill_jax.training.logging.progress import Style


@dataclasses.dataclass(frozen=True)
class TextSource:
    """What a store of answers to text is made from.

    Attributes:
      teacher: fingerprint of the teacher.
      parameters: of the teacher, how many.
      quantize: how the teacher's weights are quantized; "" for not.
      compute_dtype: of the teacher's computation.
      rows: R, how many packed training rows there are.
      length: T, tokens of a row.
      rows_fingerprint: of the rows.
      tokenizer: fingerprint of the tokenizer.
      sparse: what is kept of a distribution.
      seed: of the draws.
      temperature: T of the distributions.
      licence: of the teacher, as `provenance.licences` records it; {} for none.
    """

    teacher: str
    parameters: int
    quantize: str
    compute_dtype: str
    rows: int
    length: int
    rows_fingerprint: str
    tokenizer: str
    sparse: SparseFormat
    seed: int
    temperature: float
    licence: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def manifest(self, part_size: int) -> Manifest:
        """The manifest of a store without parts."""
        sparse = self.sparse
        kept = {"ids": sparse.count}
        if sparse.kind == "sampled":
            kept = {"draws": sparse.count, "seed": self.seed}
        return {
            "format": FORMAT,
            "teacher": {
                "fingerprint": self.teacher,
                "parameters": self.parameters,
                **({"licence": dict(self.licence)} if self.licence else {}),
            },
            "data": {
                "name": "text",
                "train": {"examples": self.rows, "fingerprint": self.rows_fingerprint},
                "tokenizer": self.tokenizer,
                "vocabulary": sparse.vocab_size,
            },
            "scheme": {"scheme": sparse.kind, **kept},
            "temperature": self.temperature,
            "dtype": sparse.dtype,
            "quantize": self.quantize,
            "compute_dtype": self.compute_dtype,
            "arrays": {name: [self.length, *shape] for name, (shape, _) in sparse.arrays.items()},
            "items": self.rows,
            "answers_an_item": self.length,
            "answer_bytes": self.rows * self.length * sparse.nbytes,
            "part_size": part_size,
            "software": [],
            "parts": {},
        }


def precompute_text(
    path: str | os.PathLike[str],
    source: TextSource,
    *,
    compute: Callable[[np.ndarray], dict[str, Any]],
    measure: Callable[[], dict[str, Any]],
    batch_size: int,
    part_size: int = 0,
    note: Note = print,
    style: Style = "off",
) -> Manifest:
    """Stores a teacher's answers to all training rows, or resumes an unfinished store.

    Args:
      path: the folder: a new one, or a store of the same answers.
      source: what the answers are made from.
      compute: int32 [B] numbers of rows -> the arrays of `sparse`, [B, T, ...], and "finite",
        bool [B, T].
      measure: the teacher's own figures on the other splits, by their names; called where the store
        has none yet. Each has the "fingerprint" of the split's rows.
      batch_size: B, rows in one call of the teacher.
      part_size: rows a part; 0 for about 64 MiB, or for what an unfinished store has.
      note: called with one line for each part that is written.
      style: how the progress is shown, see `Progress`.

    Returns:
      The manifest.

    Raises:
      UsageError: the folder holds something else, the disk is too small, or logits of the teacher
        are not finite.
    """
    # A part size that is chosen here is of whole batches, so that no row is computed twice.
    folder = AnswerFolder(path, source.manifest(part_size), multiple_of=batch_size)

    def compute_part(first: int, count: int) -> Arrays:
        # Batches begin at multiples of B wherever a part does: equal shapes round equally.
        begin, end = first // batch_size, -(-(first + count) // batch_size)
        numbers = np.arange(begin * batch_size, end * batch_size, dtype=np.int32)
        batches = np.minimum(numbers, source.rows - 1).reshape(-1, batch_size)
        found = []
        for answers in fetch_while_computing(compute(batch) for batch in batches):
            folder.computed(batch_size * source.length)
            found.append(answers)
        part = slice(first - begin * batch_size, first - begin * batch_size + count)
        arrays = {name: np.concatenate([one[name] for one in found])[part] for name in found[0]}
        if not arrays.pop("finite").all():
            raise UsageError("teacher.path: logits of the teacher are not all finite numbers")
        return arrays

    manifest = folder.write(compute_part, unaugmented={}, note=note, style=style, unit="tokens")
    if "figures" not in manifest:
        folder.record("figures", measure())
    return manifest


def describe_text_store(path: str | os.PathLike[str]) -> tuple[SparseFormat, Manifest]:
    """The format of the distributions in a store of text, and its manifest.

    Raises:
      UsageError: there is no store, or one of images.
    """
    manifest = manifests.read_manifest(path)
    if not manifests.is_of_text(manifest):
        raise manifests.refusal(path, "holds answers to images; expected a store of text")
    scheme, vocabulary = manifest["scheme"], manifest["data"]["vocabulary"]
    count = scheme.get("draws") or scheme["ids"]
    return SparseFormat(scheme["scheme"], count, vocabulary, manifest["dtype"]), manifest


def open_text_store(
    path: str | os.PathLike[str],
    *,
    rows: str,
    tokenizer: str,
    vocab_size: int,
    temperature: float,
    teacher: str | None = None,
) -> tuple[SparseFormat, AnswerStore]:
    """Opens a finished store of answers to text for a training.

    Args:
      path: the folder.
      rows: fingerprint of the packed training rows.
      tokenizer: fingerprint of the tokenizer.
      vocab_size: how many ids student and teacher share.
      temperature: T of the training.
      teacher: fingerprint of the teacher; None accepts any.

    Returns:
      The format of the distributions, and the files.

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
    manifests.refuse_other_settings(path, manifest, expected)
    return sparse, open_store(path, manifest)


def gather_answers(store: AnswerStore, names: Sequence[str], rows: np.ndarray) -> Arrays:
    """The stored answers to some rows, by names that begin with ANSWER_PREFIX: [n, T, ...]."""
    return {ANSWER_PREFIX + name: store.take(name, rows) for name in names}
