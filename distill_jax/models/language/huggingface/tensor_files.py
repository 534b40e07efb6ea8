"""The safetensors of a checkpoint folder: which file holds which tensor, and reading one at a time.

Left out on purpose: pickles (.bin, .pt), because reading one can run code.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self, cast

import numpy as np
import safetensors

from distill_jax.errors import UsageError
from distill_jax.models.files import safetensors_ranges
from distill_jax.storage import is_remote

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_FLOATS = ("F64", "F32", "F16", "BF16")
_CODES = ("I8", "I32", "I64", "F8_E4M3")  # of quantized matrices, and what describes them
_ROWS = 4096  # of two matrices, which `equal` compares at a time


class TensorSlice(Protocol):
    """A tensor in an open file; indexing reads the selected part."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray: ...


class TensorFile(Protocol):
    """An open file of safetensors, local (`safetensors.safe_open`) or in a bucket."""

    def keys(self) -> Iterable[str]: ...

    def get_slice(self, name: str) -> TensorSlice: ...


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UsageError: the file is missing or unreadable, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} is damaged or truncated, or no JSON") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path.name} holds no JSON object")
    return content


def locate(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file of every tensor in a folder, by the tensor's name; only headers are read.

    Raises:
      UsageError: there are no safetensors, a file is missing or truncated, or the index names a
        file outside the folder or differs from what the files hold.
    """
    if (folder / SINGLE).exists():  # an index beside it is a leftover: transformers reads the file
        return dict.fromkeys(_names(folder / SINGLE), folder / SINGLE)
    if (folder / INDEX).exists():
        return _from_index(folder)
    present = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in present if name.endswith(_PICKLES)]
    if pickles:
        raise UsageError(
            f"{pickles[0]} is a pickle, which is never read; expected {SINGLE} or {INDEX}"
        )
    raise UsageError(f"no {SINGLE} and no {INDEX}; expected one of them")


def names_of(folder: pathlib.Path, files: Mapping[str, pathlib.Path]) -> set[str]:
    """The names of all files that a model with tensors in these files is read from."""
    used = {path.name for path in files.values()}
    index = {INDEX} if SINGLE not in used and (folder / INDEX).exists() else set()
    return {CONFIG, *used, *index}


def _from_index(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UsageError(f"{INDEX} has no weight_map; expected tensor names and their files")
    for name, file in listed.items():
        plain = isinstance(file, str) and pathlib.PurePath(file).name == file and "\\" not in file
        if not plain or not file.endswith(".safetensors"):
            raise UsageError(
                f"{INDEX}: {name} is in {file!r}; expected the bare name of a .safetensors file "
                "in the same folder"
            )
    found: dict[str, pathlib.Path] = {}
    for file in sorted(set(listed.values())):
        found |= dict.fromkeys(_names(folder / file), folder / file)
    wrong = sorted(n for n in listed.keys() | found.keys() if not _agrees(n, listed, found))
    if wrong:
        held = found[wrong[0]].name if wrong[0] in found else "no file"
        raise UsageError(
            f"{INDEX}: {wrong[0]} is in {held}, not {listed.get(wrong[0], 'listed')}; "
            "expected an index of what the files hold"
        )
    return found


def _agrees(name: str, listed: Mapping[str, str], found: Mapping[str, pathlib.Path]) -> bool:
    return name in found and found[name].name == listed.get(name)


def _names(path: pathlib.Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


def _opened(path: pathlib.Path) -> AbstractContextManager[TensorFile]:
    if not path.exists():
        raise UsageError(f"{path.name} is missing; expected it in the folder")
    if is_remote(path):
        return safetensors_ranges.File(path)
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path.name} is damaged or truncated: {error}") from error
    return cast(AbstractContextManager[TensorFile], file)  # whose stub lacks keys()


def shapes(files: Mapping[str, pathlib.Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor; only headers are read."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            own = [name for name, of_tensor in files.items() if of_tensor == path]
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in own}
    return found


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in an open file, or a range of its rows or columns; indexing reads what it selects.

    Attributes:
      shape: of the tensor or range.
      file: the slice that safetensors gives of the whole tensor.
      axis: along which the range is cut out.
      start: where the range begins along that axis.
    """

    shape: tuple[int, ...]
    file: TensorSlice
    axis: int = 0
    start: int = 0

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads the part that slices without a step select, one for each dimension."""
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        offsets = [self.start if axis == self.axis else 0 for axis in range(len(bounds))]
        return self.file[
            tuple(slice(a + by, b + by) for (a, b), by in zip(bounds, offsets, strict=True))
        ]

    def split(self, indices: Sequence[int], axis: int) -> list[Self]:
        """As `np.split` of an array, without reading."""
        ends = (*indices, self.shape[axis])
        return [
            dataclasses.replace(
                self,
                shape=(*self.shape[:axis], end - start, *self.shape[axis + 1 :]),
                axis=axis,
                start=start,
            )
            for start, end in zip((0, *indices), ends, strict=True)
        ]


def stream(files: Mapping[str, pathlib.Path]) -> Iterator[tuple[str, Stored]]:
    """Every tensor with its name, one at a time; the caller reads it before it takes the next.

    Raises:
      UsageError: a dtype that neither parameters nor codes have.
    """
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            for name in sorted(name for name, of_tensor in files.items() if of_tensor == path):
                yield name, _stored(file.get_slice(name), name, path)


def _stored(found: TensorSlice, name: str, path: pathlib.Path) -> Stored:
    kind = found.get_dtype()
    if kind not in (*_FLOATS, *_CODES):
        raise UsageError(f"{path.name}: {name} is {kind}; expected F32, F16 or BF16")
    if kind == "F8_E4M3":  # which safetensors does not give numpy
        found = safetensors_ranges.File(path).get_slice(name)
    return Stored(tuple(found.get_shape()), found)


def check_floats(value: Stored, name: str) -> None:
    """UsageError where a tensor that config.json does not call quantized has another dtype."""
    kind = value.file.get_dtype()
    if kind not in _FLOATS:
        raise UsageError(
            f"{name} is {kind}; expected F32, F16 or BF16, or a quantization_config of "
            "compressed-tensors in config.json"
        )


def equal(files: Mapping[str, pathlib.Path], first: str, second: str) -> bool:
    """Whether two matrices have the same shape and values; read one block of rows at a time."""
    with _opened(files[first]) as one, _opened(files[second]) as other:
        a, b = one.get_slice(first), other.get_slice(second)
        if a.get_shape() != b.get_shape() or a.get_dtype() != b.get_dtype():
            return False
        rows = a.get_shape()[0]
        return all(
            np.array_equal(a[i : min(i + _ROWS, rows)], b[i : min(i + _ROWS, rows)])
            for i in range(0, rows, _ROWS)
        )
