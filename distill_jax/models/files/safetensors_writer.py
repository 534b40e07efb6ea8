"""Writing safetensors tensor by tensor, of arrays that no host has to hold.

The format is an 8-byte length, a JSON header with each tensor's dtype, shape and place, and their
bytes. The library's own `save` takes all tensors at once; what is written here are the same bytes.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

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
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}


def write(
    path: pathlib.Path | None,
    kinds: Mapping[str, Any],
    read: Callable[[str], np.ndarray | None],
    *,
    metadata: Mapping[str, str] | None = None,
    digest: Any = None,
) -> None:
    """Writes a file, in the first process alone; all call it together.

    Args:
      path: the file, which is not flushed to the disk; not used in other processes.
      kinds: what has the `shape` and the `dtype` of each tensor, by its name.
      read: gives a tensor by its name, in the first process; asked once for each, in the order of
        the file: the widest dtypes first, then by name.
      metadata: a word or two for readers, in the header.
      digest: of `hashlib`, to which every byte is given too.
    """
    order = sorted(kinds, key=lambda name: (-np.dtype(kinds[name].dtype).itemsize, name))
    if not coordination.is_first():
        for name in order:
            read(name)
        return
    with path.open("wb") as file:

        def put(content: Any) -> None:
            file.write(content)
            if digest is not None:
                digest.update(content)

        put(_header(order, kinds, metadata))
        for name in order:
            value, kind = read(name), kinds[name]
            if value.shape != tuple(kind.shape) or value.dtype != np.dtype(kind.dtype):
                raise ValueError(f"{name}: {value.dtype} {value.shape} in place of {kind}")
            for rows in np.array_split(value, _blocks(value)) if value.ndim else [value]:
                put(bytes_of(rows))
            del value, rows  # before the next one comes


def _blocks(value: np.ndarray) -> int:
    """In how many parts an array is copied that does not lie in the order of C."""
    return 1 if value.flags.c_contiguous else 1 + value.nbytes // _COPIED


def bytes_of(value: np.ndarray) -> np.ndarray:
    """The bytes of an array in the order of C, without copying where they lie so."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _header(
    order: list[str], kinds: Mapping[str, Any], metadata: Mapping[str, str] | None
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
