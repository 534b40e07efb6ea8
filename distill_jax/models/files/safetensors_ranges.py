"""A safetensors file read by ranges: the header, then the needed rows of a tensor.

`File` has the methods of `safetensors.safe_open`, for files in a bucket, and for float8 tensors,
which that cannot give numpy. To read a slice of columns,
it reads whole rows, block by block, and keeps the columns: a request per row would take longer.
"""

import json
import math
import os
import pathlib
from typing import NamedTuple

import ml_dtypes
import numpy as np

from distill_jax.errors import UsageError
from distill_jax.storage import gcs, is_remote

_BLOCK = 2**26  # bytes that are read at a time
_LONGEST = 10**8  # bytes of a header; safetensors has the same limit
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
}


class Entry(NamedTuple):
    """What a header says of a tensor: the dtype's name, the shape, the offset of its first byte."""

    dtype: str
    shape: list[int]
    offset: int


class Slice:
    """A tensor of a file, of which indexing reads only the rows that it needs.

    Args:
      path: the file.
      entry: the tensor.
      start: the position in the file that the entry's offset counts from.
    """

    def __init__(self, path: os.PathLike, entry: Entry, start: int):
        self._path, self._entry, self._start = path, entry, start + entry.offset

    def get_shape(self) -> list[int]:
        """Its shape."""
        return self._entry.shape

    def get_dtype(self) -> str:
        """Its dtype, such as "BF16"."""
        return self._entry.dtype

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        """The part selected by slices without a step, one for each of the first dimensions."""
        index = index if isinstance(index, tuple) else (index,)
        dtype, shape = np.dtype(_DTYPES[self._entry.dtype]), tuple(self._entry.shape)
        if not shape:
            return self._read(0, 1, dtype, ())[0]
        first, rest = index[0] if index else slice(None), index[1:]
        begin, end, _ = first.indices(shape[0])
        inner = shape[1:]
        rows = max(_BLOCK // max(math.prod(inner) * dtype.itemsize, 1), 1)
        blocks = [
            self._read(row, min(row + rows, end), dtype, inner)[(slice(None), *rest)]
            for row in range(begin, end, rows)
        ]
        if len(blocks) == 1:
            return np.ascontiguousarray(blocks[0])
        empty = np.empty((0, *inner), dtype)[(slice(None), *rest)]
        return np.concatenate(blocks or [empty])

    def _read(self, begin: int, end: int, dtype: np.dtype, inner: tuple[int, ...]) -> np.ndarray:
        row = math.prod(inner) * dtype.itemsize
        if not row:
            return np.empty((end - begin, *inner), dtype)
        content = _read(self._path, self._start + begin * row, self._start + end * row)
        return np.frombuffer(content, dtype).reshape(end - begin, *inner)


class File:
    """A safetensors file, of which opening reads the header alone.

    Args:
      path: the file, on a disk or in a bucket.

    Raises:
      UsageError: it is damaged or truncated.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        try:
            self._tensors, self._start = _header(path)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{path.name} is damaged or truncated: {error}") from error

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return sorted(self._tensors)

    def get_slice(self, name: str) -> Slice:
        """A tensor by its name."""
        return Slice(self._path, self._tensors[name], self._start)


def _read(path: os.PathLike, begin: int, end: int) -> bytes:
    """The bytes of a range of a file."""
    if is_remote(path):
        return gcs.read(path, begin, end)
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _header(path: pathlib.Path) -> tuple[dict[str, Entry], int]:
    """The tensors by name, and the position that their offsets count from."""
    total = gcs.size(path) if is_remote(path) else path.stat().st_size
    if total < 8:
        raise ValueError("no header")
    length = int.from_bytes(_read(path, 0, 8), "little")
    if not 2 <= length <= min(_LONGEST, total - 8):
        raise ValueError(f"a header of {length} bytes in a file of {total}")
    header = json.loads(_read(path, 8, 8 + length))
    tensors, ends = {}, [0]
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        begin, end = fields["data_offsets"]
        kind, shape = fields["dtype"], fields["shape"]
        if kind in _DTYPES and end - begin != math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize:
            raise ValueError(f"{name} has {end - begin} bytes, which is not {kind}{shape}")
        tensors[name] = Entry(kind, shape, begin)
        ends.append(end)
    if max(ends) != total - 8 - length:
        raise ValueError(f"tensors of {max(ends)} bytes in a file of {total}")
    return tensors, 8 + length
