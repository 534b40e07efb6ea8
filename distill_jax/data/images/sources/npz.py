"""One .npz file with x_train, y_train, x_test and y_test, as Keras packs its image sets.

Object arrays are refused: reading them would run pickled code.
"""

import math
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from distill_jax.data.images.sources.base import ArrayExamples, from_arrays, most_unpacked
from distill_jax.errors import UsageError

# What reading a damaged file raises.
_DAMAGE = (
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def load(path: str, split: str, image_size: int = 0) -> ArrayExamples:
    """The split in the file `path`; the number of classes is that of the train labels.

    Images are uint8 [N, H, W] or [N, H, W, C]; labels are integers [N] or [N, 1].

    Raises:
      UsageError: a missing, unreadable or truncated file, a missing array, a wrong type or shape.
    """
    location = f"data.path={path!r}"
    images, labels, train_labels = _read(
        pathlib.Path(path).expanduser(), location, f"x_{split}", f"y_{split}", "y_train"
    )
    if labels.shape == (len(labels), 1):
        labels = labels[:, 0]
    if train_labels.dtype.kind not in "iu" or not train_labels.size:
        raise UsageError(f"{location}: y_train is not integer labels but {train_labels.dtype}")
    return from_arrays(
        "npz",
        images,
        labels,
        num_classes=int(train_labels.max()) + 1,
        location=location,
        image_size=image_size,
    )


def _read(path: pathlib.Path, location: str, *keys: str) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive]
            if missing:
                raise UsageError(
                    f"{location}: no array {missing[0]!r} in this file;"
                    f" it holds: {', '.join(archive.files)}"
                )
            _check_sizes(path, keys)
            return [np.atleast_1d(archive[key]) for key in keys]
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"{location}: no such file") from error
    except _DAMAGE as error:
        raise UsageError(f"{location}: not a readable .npz file: {error}") from error


def _check_sizes(path: pathlib.Path, keys: Sequence[str]) -> None:
    """ValueError for an array that is larger than its file can honestly hold, before it is read."""
    with zipfile.ZipFile(path) as archive:
        names = [f"{key}.npy" if f"{key}.npy" in archive.namelist() else key for key in keys]
        total = sum(archive.getinfo(name).file_size for name in names)
        if total > (most := most_unpacked(path.stat().st_size)):
            raise ValueError(f"it would unpack to {total} bytes; expected at most {most}")
        for name in names:
            with archive.open(name) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0}
                header = read.get(version, np.lib.format.read_array_header_2_0)
                shape, _, dtype = header(file)
                claimed = math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and claimed > archive.getinfo(name).file_size:
                    raise ValueError(
                        f"{name}: its header, {dtype} {list(shape)}, means {claimed} bytes; it has "
                        f"{archive.getinfo(name).file_size}"
                    )
