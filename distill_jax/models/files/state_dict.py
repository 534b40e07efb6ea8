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
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import ml_dtypes
import numpy as np
import safetensors

from distill_jax.errors import UsageError
from distill_jax.models.files import torch_pickle
from distill_jax.models.files.torch_pickle import Storage, Tensor, shortened

Result = TypeVar("Result")

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


_LEAVES = (Tensor, np.ndarray)

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

    tree = torch_pickle.run(io.BytesIO(archive.read(f"{roots[0]}/data.pkl")), {})
    return tree, numbers_of


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
    return tree if any(isinstance(value, _LEAVES) for value in tree.values()) else {}


def _decoder(
    data: bytes, numbers_of: Callable[[Storage], np.ndarray]
) -> Callable[[Tensor | np.ndarray], np.ndarray]:
    """A function that gives the array of a tensor of a checkpoint."""
    cached_numbers_of = functools.cache(numbers_of)
    left = _limit(data)

    def array(tensor: Tensor | np.ndarray) -> np.ndarray:
        nonlocal left
        if isinstance(tensor, np.ndarray):
            return tensor
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

    return array


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


# What a file holds, and a function that gives the array of a tensor in it.
Parsed = tuple[Any, Callable[[Tensor | np.ndarray], np.ndarray]]


def _parse(data: bytes) -> Parsed:
    # A safetensors file starts with the length of its header, any eight bytes: so it comes first.
    if data[8:9] == b"{":
        return _read_safetensors(data), lambda array: array
    if data[:4] == b"PK\3\4":
        if all(name.endswith(".npy") for name in _open_zip(data).namelist()):
            return _read_npz(data), lambda array: array
        tree, numbers_of = _read_archive(data)
    elif data[:1] == b"\x80":
        tree, numbers_of = _read_sequence(data)
    else:
        raise UsageError(
            "expected a .safetensors, .npz or torch.save file; this is none, or damaged"
        )
    return tree, _decoder(data, numbers_of)


def _refuse_without_tensors(tree: Any) -> NoReturn:
    """Says what a file without tensors by name holds; of a pickled object, its class."""
    if stranger := torch_pickle.stranger(tree):
        raise torch_pickle.refusal(stranger)
    held = f"; it holds {shortened(list(tree))}" if isinstance(tree, dict) else ""
    raise UsageError(f"no tensors by name, neither at the top nor under {NESTS}{held}")


def _parsing(path: str | os.PathLike, key: str, use: Callable[[Parsed], Result]) -> Result:
    """`use` of what a file holds; every fault of the file becomes one line with its path."""
    location = f"{key}={str(path)!r}"
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{location}: cannot be read: {error.strerror}") from error
    try:
        return use(_parse(data))
    except UsageError as error:
        raise UsageError(f"{location}: {error}") from error
    except _DAMAGE as error:
        fault = shortened(str(error) or type(error).__name__)
        raise UsageError(
            f"{location}: damaged or truncated, or of another kind: {fault}"
        ) from error


def _flat(tree: Any, prefix: str = "", depth: int = 6) -> dict[str, Tensor | np.ndarray]:
    """Every tensor of nested dictionaries, by the keys on the way to it, joined by dots."""
    if isinstance(tree, _LEAVES):
        return {prefix[:-1]: tree} if prefix else {}
    if not isinstance(tree, dict) or not depth:
        return {}
    found: dict[str, Tensor | np.ndarray] = {}
    for name, value in tree.items():
        for own, leaf in _flat(value, f"{prefix}{name}.", depth - 1).items():
            found.setdefault(own, leaf)
    return found


#: (shapes by full name, a function that reads one) -> the full name of each array that is wanted.
ChooseFn = Callable[[Mapping[str, tuple[int, ...]], Callable[[str], np.ndarray]], Mapping[str, str]]


def read_chosen(
    path: str | os.PathLike, choose: ChooseFn, *, key: str = "path"
) -> dict[str, np.ndarray]:
    """The arrays that `choose` wants of a file, wherever in it they lie.

    Args:
      path: a file of any name.
      choose: gets the shape of every tensor by its full name: the keys of the dictionaries around
        it and its own name, joined by dots ("state_dict.model.conv1.weight"). It returns which of
        them are wanted, by the names under which the result has them.
      key: what an error calls the path.

    Raises:
      UsageError: as `read_state_dict`, or from `choose`.
    """

    def use(parsed: Parsed) -> dict[str, np.ndarray]:
        tree, array = parsed
        flat = _flat(tree)
        if not flat:
            _refuse_without_tensors(tree)
        read = functools.cache(lambda name: array(flat[name]))
        wanted = choose({name: tuple(leaf.shape) for name, leaf in flat.items()}, read)
        return {name: read(full) for name, full in wanted.items()}

    return _parsing(path, key, use)


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

    def use(parsed: Parsed) -> dict[str, np.ndarray]:
        tree, array = parsed
        state = _state_dict(tree)
        if not state:
            _refuse_without_tensors(tree)
        return {name: array(value) for name, value in state.items() if isinstance(value, _LEAVES)}

    state = _parsing(path, key, use)
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
