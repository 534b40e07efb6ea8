"""GGUF, the file format of llama.cpp: its header, checked against the file, and its tensors.

The header is parsed here, because every count, length, offset and size in it has to be compared
with the file before it is believed: a file of a kilobyte may state 2^60 tokens. The package `gguf`
has the sizes of the block types and turns their blocks into numbers. Nothing is executed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import dataclasses
import math
import mmap
import pathlib
import struct
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from distill_jax.errors import UsageError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_MOST_DIMENSIONS = 4
# The types of values, by their codes; 8 is a text and 9 an array.
_NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4"},
    **{7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}
_TEXT, _ARRAY = 8, 9


def library(key: str) -> ModuleType:
    """The package `gguf`.

    Args:
      key: the flag that needs it, which the error names.

    Raises:
      UsageError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UsageError(
            f"{key}: the package gguf is missing; expected it: pip install 'distill_jax[gguf]'"
        ) from None
    return gguf


def is_gguf(path: pathlib.Path) -> bool:
    """Whether a file is one by its name or its first bytes; False where there is none."""
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
      name: such as "blk.0.attn_q.weight".
      type: of its blocks, such as "Q4_0".
      shape: rows first, as in PyTorch; the file has it in the reverse order.
      offset: of its first byte in the file.
      nbytes: its size there.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Damaged(ValueError):
    """What is wrong with a file, without its name."""


class File:
    """An open GGUF file, whose header has been checked.

    Attributes:
      metadata: key -> int, float, bool, str, or a list of one of these.
      tensors: by their names.
    """

    def __init__(self, path: pathlib.Path, *, key: str):
        """Opens a file and reads its header; use it as a context manager.

        Args:
          path: of the file.
          key: what errors name it by, such as "import".

        Raises:
          UsageError: there is no such file, it is no GGUF, or what its header states is not in it.
        """
        self._gguf = library(key)
        self._location = f"{key}={str(path)!r}"
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is empty"
            raise UsageError(f"{self._location}: cannot be read: {reason}") from None
        try:
            self.metadata, self.tensors = _parse(self._data, self._gguf)
        except (Damaged, struct.error) as error:
            self._data.close()
            raise UsageError(
                f"{self._location}: {error}; expected a whole GGUF file of version 2 or 3"
            ) from None

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor, float32; those of quantized blocks are dequantized.

        Raises:
          UsageError: the package does not read its type, or a number is not finite.
        """
        stored = self.tensors[name]
        raw = np.frombuffer(self._data, np.uint8, stored.nbytes, stored.offset).copy()
        kind = self._gguf.GGMLQuantizationType[stored.type]
        rows = raw.reshape(*stored.shape[:-1], -1)
        try:
            value = self._gguf.dequantize(_typed(rows, stored.type), kind)
        except NotImplementedError:
            raise UsageError(
                f"{self._location}: {name} is {stored.type}, which the package gguf does not read"
            ) from None
        value = np.ascontiguousarray(value, np.float32).reshape(stored.shape)
        if not np.isfinite(value).all():
            raise UsageError(
                f"{self._location}: {name} holds numbers that are not finite; expected a whole file"
            )
        return value


def _typed(rows: np.ndarray, kind: str) -> np.ndarray:
    """Bytes as the numbers of a plain type; blocks stay bytes."""
    plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
    return rows.view(plain[kind]) if kind in plain else rows


class _Cursor:
    """Reads values one after another and never past the end.

    Args:
      data: of the whole file.
    """

    def __init__(self, data: mmap.mmap):
        self._data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.position

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise Damaged(f"{what} of {size} bytes ends after the file, which has {self.left} left")
        begin, self.position = self.position, self.position + size
        return self._data[begin : self.position]

    def number(self, kind: str, what: str) -> Any:
        (value,) = np.frombuffer(self.take(np.dtype(kind).itemsize, what), kind)
        return value.item()

    def text(self, what: str) -> str:
        content = self.take(self.number("<u8", what), what)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise Damaged(f"{what} is no UTF-8") from None

    def value(self, what: str) -> Any:
        kind = self.number("<u4", what)
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind], what)
        if kind == _TEXT:
            return self.text(what)
        if kind != _ARRAY:
            raise Damaged(f"{what} has the unknown type {kind}")
        kind, count = self.number("<u4", what), self.number("<u8", what)
        if kind in _NUMBERS:
            content = self.take(count * np.dtype(_NUMBERS[kind]).itemsize, what)
            return np.frombuffer(content, _NUMBERS[kind]).tolist()
        if kind != _TEXT:
            raise Damaged(f"{what} is an array of the unknown type {kind}")
        self.require(count, 8, what)
        return [self.text(what) for _ in range(count)]

    def require(self, count: int, each: int, what: str) -> None:
        """Refuses a count of things that take `each` bytes or more where there are too few."""
        if count * each > self.left:
            raise Damaged(f"{what} has {count} entries, but the file only {self.left} bytes more")


def _parse(data: mmap.mmap, gguf: ModuleType) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    cursor = _Cursor(data)
    if cursor.take(4, "the magic number") != MAGIC:
        raise Damaged("does not begin with GGUF")
    version = cursor.number("<u4", "the version")
    if version not in _VERSIONS:
        raise Damaged(f"version {version}")
    tensor_count = cursor.number("<u8", "the number of tensors")
    key_count = cursor.number("<u8", "the number of keys")
    cursor.require(key_count, 13, "the metadata")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        name = cursor.text("the name of a key")
        if name in metadata:
            raise Damaged(f"{name:.80} is there twice")
        metadata[name] = cursor.value(f"{name:.80}")
    cursor.require(tensor_count, 24, "the list of tensors")
    entries = [_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get(_ALIGNMENT, gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise Damaged(f"{_ALIGNMENT} is {alignment!r:.40}, no power of two")
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise Damaged(f"{name:.80} is there twice")
        if offset % alignment:
            raise Damaged(f"{name:.80} begins at {offset}, no multiple of {alignment}")
        tensors[name] = _located(name, shape, kind, start + offset, gguf)
    _check_places(tensors, len(data))
    return metadata, tensors


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("the name of a tensor")
    dimensions = cursor.number("<u4", name)
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise Damaged(f"{name:.80} has {dimensions} dimensions")
    shape = tuple(cursor.number("<u8", name) for _ in range(dimensions))[::-1]
    return name, shape, cursor.number("<u4", name), cursor.number("<u8", name)


def _located(
    name: str, shape: tuple[int, ...], kind: int, offset: int, gguf: ModuleType
) -> StoredTensor:
    try:
        block_type = gguf.GGMLQuantizationType(kind)
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[block_type]
    except (ValueError, KeyError):
        raise Damaged(f"{name:.80} has the unknown type {kind}") from None
    if min(shape) < 1:
        raise Damaged(f"{name:.80} has the shape {list(shape)}")
    if shape[-1] % per_block:
        raise Damaged(
            f"{name:.80} has rows of {shape[-1]}, no multiple of {per_block}, as {block_type.name} "
            "needs"
        )
    nbytes = math.prod(shape) // per_block * block_bytes
    return StoredTensor(name, block_type.name, shape, offset, nbytes)


def _check_places(tensors: Mapping[str, StoredTensor], size: int) -> None:
    """Refuses tensors that overlap or end after the file."""
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda each: each.offset):
        if tensor.offset + tensor.nbytes > size:
            raise Damaged(
                f"{tensor.name:.80} of {tensor.nbytes} bytes at {tensor.offset} ends after the "
                f"file of {size}"
            )
        if tensor.offset < end:
            raise Damaged(f"{tensor.name:.80} overlaps {before:.80}")
        end, before = tensor.offset + tensor.nbytes, tensor.name
