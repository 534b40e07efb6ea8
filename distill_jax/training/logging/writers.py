"""The record of a run: a JSON-lines log of metrics that survives a kill.

`trackers` show the same numbers in other tools. Left out on purpose: time stamps (two equal runs
write equal bytes; numbers that depend on the clock go to a second log, performance.jsonl).
"""

import hashlib
import json
import math
import operator
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.errors import UsageError
from distill_jax.storage import resolve_path, write_atomically


class MetricsLog:
    """A file of JSON lines, one a call of `write`, that a kill at any moment leaves readable.

    A line reaches the operating system before `write` returns, so a killed process loses nothing
    that it wrote and at most the last line is torn; `sync` makes the file safe from a power cut as
    well. A torn last line is removed when the log is opened again.

    Args:
      path: the file; made, with its folders, when absent.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open()
        content = self.path.read_bytes()
        # Cut off a torn last line, which the next line would otherwise continue.
        os.ftruncate(self._file, content.rfind(b"\n") + 1)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Appends one line {"split": .., "step": .., **values}, its keys sorted.

        Args:
          step: the number of optimizer steps taken so far.
          split: what the values were measured on: "train", "validation" or "test".
          values: numbers, strings, None, arrays and lists or dicts of them. Floats are written with
            the fewest digits that read back exactly. NaN and the infinities, which JSON lacks, are
            written as null.

        Raises:
          ValueError: a value is named "step" or "split".
          OSError: the line could not be written, as on a full disk; the file is then as before.
        """
        line = _line(step, split, values)
        size = os.fstat(self._file).st_size
        try:
            rest = memoryview(line)
            while rest:  # a nearly full disk accepts a part of the line before it fails
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        os.fsync(self._file)

    def truncate(self, step: int) -> int:
        """Drops lines of later steps and unreadable lines; the remaining lines keep their bytes.

        The file is replaced atomically: a kill leaves the old one or the new one.

        Args:
          step: the last step whose lines stay, that of the checkpoint that a run resumes from.

        Returns:
          How many unreadable lines were dropped (0, or 1 for a torn last line, unless the disk
          damaged the file).
        """
        kept, unreadable = self._until(step)
        write_atomically(self.path, kept)
        os.close(self._file)
        self._file = self._open()
        return unreadable

    def digest(self, step: int) -> str:
        """The SHA-256, in hex, of the lines up to a step; "" where there are none."""
        kept, _ = self._until(step)
        return hashlib.sha256(kept).hexdigest() if kept else ""

    def _until(self, step: int) -> tuple[bytes, int]:
        """The readable lines up to a step, and how many lines are not readable."""
        kept, unreadable = [], 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            record = _record(line)
            if record is None:
                unreadable += 1
            elif record["step"] <= step:
                kept.append(line)
        return b"".join(kept), unreadable

    def close(self) -> None:
        """Syncs and closes the file; a second call does nothing."""
        if self._file >= 0:
            self.sync()
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a `MetricsLog`, also while its run is still writing.

    Args:
      path: the file.

    Returns:
      One dict a line, in the order of writing; a torn last line is left out, null reads as None.

    Raises:
      UsageError: the file is missing, or a line before the last is damaged.
    """
    path = resolve_path(path, "metrics")
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise UsageError(f"{path}, line {number}: not a record of metrics; the file is damaged")
    return records


class Silent:
    """Replaces a `MetricsLog` in every process except the first: writes nothing."""

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        pass

    def sync(self) -> None:
        pass

    def truncate(self, step: int) -> int:
        return 0

    def digest(self, step: int) -> str:
        return ""

    def close(self) -> None:
        pass


def _line(step: int, split: str, values: Mapping[str, Any]) -> bytes:
    taken = {"step", "split"} & set(values)
    if taken:
        raise ValueError(f"values named {sorted(taken)}: these names belong to the line itself")
    record = {**_plain(values), "step": operator.index(step), "split": split}
    return json.dumps(record, sort_keys=True, allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    """The value in JSON's own types, arrays as lists, numbers that are not finite as None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bool | int):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuU":
        array = array.astype(np.float64)  # raises for what is no number
    return _plain(array.tolist())


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of one line; None when the line is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and {"step", "split"} <= set(record)
    return record if whole and isinstance(record["step"], int) else None
