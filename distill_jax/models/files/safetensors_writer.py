"""Writing safetensors tensor by tensor, of arrays that no host has to hold.

The format is an 8-byte length, a JSON header with each tensor's dtype, shape and offsets, and their
bytes. The library's own `save` takes all tensors at once; this writes the same bytes.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from distill_jax.processes import coordination

_COPIED = 2**24  # bytes
_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}


class Kind(Protocol):
    """What is known of a tensor before it is read: arrays and `jax.ShapeDtypeStruct`s have it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> object: ...


def write(
    path: pathlib.Path | None,
    kinds: Mapping[str, Kind],
    read: Callable[[str], np.ndarray | None],
    *,
    metadata: Mapping[str, str] | None = None,
    digest: Digest | None = None,
) -> None:
    """Writes a file, in the first process alone; all call it together.

    Args:
      path: the file, which is not flushed to the disk; the other processes do not use it.
      kinds: anything with the `shape` and `dtype` of each tensor, by its name.
      read: returns the tensor of a name, in the first process. It is called once for each, in the
        order of the file: the widest dtypes first, then by name.
      metadata: short texts for readers, in the header.
      digest: a hash that is updated with every byte written.

    Raises:
      ValueError: a tensor differs in shape or dtype from its kind.
    """
    order = sorted(kinds, key=lambda name: (-np.dtype(kinds[name].dtype).itemsize, name))
    if not coordination.is_first():
        for name in order:
            read(name)
        return
    if path is None:
        raise ValueError("path=None: the first process writes, expected a file")
    with path.open("wb") as file:

        def put(content: bytes | memoryview) -> None:
            file.write(content)
            if digest is not None:
                digest.update(content)

        put(_header(order, kinds, metadata))
        for name in order:
            value, kind = read(name), kinds[name]
            if value is None:
                raise ValueError(f"{name}: nothing in place of {kind}")
            if value.shape != tuple(kind.shape) or value.dtype != np.dtype(kind.dtype):
                raise ValueError(f"{name}: {value.dtype} {value.shape} in place of {kind}")
            for rows in np.array_split(value, _blocks(value)) if value.ndim else [value]:
                put(bytes_of(rows))
            del value, rows  # Frees the memory before the next tensor is read.


def _blocks(value: np.ndarray) -> int:
    """In how many parts an array is copied that is not C-contiguous."""
    return 1 if value.flags.c_contiguous else 1 + value.nbytes // _COPIED


def bytes_of(value: np.ndarray) -> memoryview:
    """The bytes of an array in C order, without a copy where it is C-contiguous."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _header(
    order: list[str], kinds: Mapping[str, Kind], metadata: Mapping[str, str] | None
) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        dtype, shape = np.dtype(kinds[name].dtype), kinds[name].shape
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _CODES[dtype.name],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
