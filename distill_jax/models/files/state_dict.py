"""State dicts of PyTorch as arrays, from .safetensors, .npz and what `torch.save` writes.

The first bytes of a file decide its kind, so its name can end in anything (.pth, .pt, .th,
.pth.tar, .bin). PyTorch is not needed and nothing in a file is executed, see `torch_pickle`. A
damaged or truncated file, or one that unpacks to far more than its size, is refused in one line.

`torch.save` has two formats: a zip archive (since PyTorch 1.6), and before that a sequence of
pickles (a magic number, the version, the machine, the content, the keys of the storages), followed
by the storages, little-endian. Left out on purpose: the tar files of the first PyTorch versions,
and detecting changed numbers in the older format, which has no checksums.
"""

import functools
import io
import lzma
import math
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from distill_jax.errors import UsageError
from distill_jax.models.files import torch_pickle
from distill_jax.models.files.torch_pickle import Storage, Tensor, shortened

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001

# Keys under which training programs save the state dict, and what wrappers prepend to its names.
NESTS = ("model", "state_dict", "net", "model_state_dict", "student")
PREFIXES = ("module.", "_orig_mod.")

# What reading a damaged file can raise, here and in the libraries used here.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    safetensors.SafetensorError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

_SAFETENSORS = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "C64": np.dtype("<c8"),
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
}


def _limit(data: bytes) -> int:
    """How many bytes a file may unpack to: far more than weights do, far less than a bomb."""
    return 16 * len(data) + 2**26


def _exploding(data: bytes) -> UsageError:
    return UsageError(f"{len(data)} bytes would unpack to over {_limit(data)}; not weights")


def _open_zip(data: bytes) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(io.BytesIO(data))
    if sum(entry.file_size for entry in archive.infolist()) > _limit(data):
        raise _exploding(data)
    return archive


# What a checkpoint holds, and a function that reads the numbers of a storage.
Content = tuple[Any, Callable[[Storage], np.ndarray]]


def _read_archive(data: bytes) -> Content:
    """The zip format: NAME/data.pkl, NAME/data/KEY and, since PyTorch 2.1, NAME/byteorder."""
    archive = _open_zip(data)
    names = archive.namelist()
    roots = [name.split("/")[0] for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise UsageError("a zip archive, but neither of torch.save nor of numpy.savez")
    order = f"{roots[0]}/byteorder"
    big = order in names and archive.read(order) == b"big"

    def numbers_of(storage: Storage) -> np.ndarray:
        numbers = np.frombuffer(archive.read(f"{roots[0]}/data/{storage.key}"), storage.dtype)
        if numbers.size != storage.total:
            raise ValueError(f"a storage has {numbers.size} numbers, not {storage.total}")
        return numbers.byteswap() if big else numbers

    return torch_pickle.run(io.BytesIO(archive.read(f"{roots[0]}/data.pkl")), {}), numbers_of


def _read_sequence(data: bytes) -> Content:
    """The format before PyTorch 1.6; a storage is its length as an int64, then its numbers."""
    file = io.BytesIO(data)
    storages: dict[str, Storage] = {}
    starts: dict[str, int] = {}
    if torch_pickle.run(file, {}) != _MAGIC or torch_pickle.run(file, {}) != _VERSION:
        raise UsageError("a pickle, but not one of torch.save")
    torch_pickle.run(file, {})
    tree, keys = torch_pickle.run(file, storages), torch_pickle.run(file, {})
    position = file.tell()
    for key in keys:
        storage = storages[key]
        if struct.unpack_from("<q", data, position)[0] != storage.total:
            raise ValueError("a storage has another length than its tensors")
        starts[key] = position + 8
        position += 8 + storage.total * storage.dtype.itemsize
    if position > len(data):
        raise EOFError(f"{len(data)} bytes of {position}")

    def numbers_of(storage: Storage) -> np.ndarray:
        return np.frombuffer(data, storage.dtype, storage.total, starts[storage.key])

    return tree, numbers_of


def _state_dict(tree: Any, depth: int = 3) -> dict[str, Any]:
    """The dictionary that holds tensors: under one of `NESTS`, else the tree; {} if there is none.

    `NESTS` come first, because a checkpoint may also hold its accuracy as a tensor at the top.
    """
    if not isinstance(tree, dict) or not depth:
        return {}
    for nest in NESTS:
        if found := _state_dict(tree.get(nest), depth - 1):
            return found
    return tree if any(isinstance(value, Tensor) for value in tree.values()) else {}


def _read_torch(data: bytes, content: Content) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint's state dict, from what `_read_archive` or its twin gave."""
    tree, numbers_of = content
    cached_numbers_of = functools.cache(numbers_of)
    left = _limit(data)

    def array(tensor: Tensor) -> np.ndarray:
        nonlocal left
        storage, shape = tensor.storage, tensor.shape
        size = storage.dtype.itemsize
        left -= math.prod(shape) * size
        if left < 0:  # A stride of 0 repeats a number without end.
            raise _exploding(data)
        if not math.prod(shape):
            return np.empty(shape, storage.dtype)
        numbers = cached_numbers_of(storage)[storage.start : storage.start + storage.size][
            tensor.offset :
        ]
        steps = [step * size if n > 1 else 0 for n, step in zip(shape, tensor.strides, strict=True)]
        view = np.lib.stride_tricks.as_strided(numbers, shape, steps, writeable=False)
        return np.require(view, requirements=("C", "A"))

    state = _state_dict(tree)
    if not state:
        held = f"; it holds {shortened(list(tree))}" if isinstance(tree, dict) else ""
        raise UsageError(f"no tensors by name, neither at the top nor under {NESTS}{held}")
    return {name: array(value) for name, value in state.items() if isinstance(value, Tensor)}


def _read_npz(data: bytes) -> dict[str, np.ndarray]:
    archive = _open_zip(data)
    arrays = {}
    for name in archive.namelist():
        content = archive.read(name)
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise UsageError(f"{shortened(name)} has version {version} of the .npy format")
        header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, columns_first, dtype = header(file)
        if dtype.hasobject:
            raise UsageError(f"{shortened(name)} holds Python objects; expected numbers")
        if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
            raise ValueError(f"{shortened(name)} has another size than its shape")
        numbers = np.frombuffer(content, dtype, math.prod(shape), file.tell())
        array = numbers.reshape(shape, order="F" if columns_first else "C")
        arrays[name.removesuffix(".npy")] = np.require(array, requirements=("C", "A"))
    return arrays


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in safetensors.deserialize(data):
        if tensor["dtype"] not in _SAFETENSORS:
            raise UsageError(f"{shortened(name)} is {tensor['dtype']}, which has no NumPy type")
        numbers = np.frombuffer(tensor["data"], _SAFETENSORS[tensor["dtype"]])
        arrays[name] = numbers.reshape(tensor["shape"])
    return dict(sorted(arrays.items()))  # The library's order differs from call to call.


def _parse(data: bytes) -> dict[str, np.ndarray]:
    # A safetensors file starts with the length of its header, any eight bytes: so it comes first.
    if data[8:9] == b"{":
        return _read_safetensors(data)
    if data[:4] == b"PK\3\4":
        npz = all(name.endswith(".npy") for name in _open_zip(data).namelist())
        return _read_npz(data) if npz else _read_torch(data, _read_archive(data))
    if data[:1] == b"\x80":
        return _read_torch(data, _read_sequence(data))
    raise UsageError("expected a .safetensors, .npz or torch.save file; this is none, or damaged")


def read_state_dict(path: str | os.PathLike, *, key: str = "path") -> dict[str, np.ndarray]:
    """The arrays of a state dict by their names in PyTorch.

    A checkpoint that holds more is searched: the state dict may be under one of `NESTS`, which may
    be nested. A prefix of `PREFIXES` that all names share is removed: `DataParallel` and
    `torch.compile` add them.

    Args:
      path: a file of any name.
      key: what an error calls the path.

    Returns:
      The arrays in the order (of safetensors by name), the shapes and the dtypes of the file
      (bfloat16 is that of ml_dtypes); some are read-only. Values other than tensors are left out.

    Raises:
      UsageError: the file is missing, of another kind, damaged or truncated, would unpack to far
        more than its size, or is a pickle that names what a state dict does not need.
    """
    location = f"{key}={str(path)!r}"
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{location}: cannot be read: {error.strerror}") from error
    try:
        state = _parse(data)
    except UsageError as error:
        raise UsageError(f"{location}: {error}") from error
    except _DAMAGE as error:
        fault = shortened(str(error) or type(error).__name__)
        raise UsageError(
            f"{location}: damaged or truncated, or of another kind: {fault}"
        ) from error
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
