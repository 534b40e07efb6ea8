"""IDX files, the format of MNIST and Fashion-MNIST (LeCun, Cortes & Burges 1998), plain or gzipped.

The four files keep their published names, with "-" or "." before "idx", with or without ".gz":
train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte.
"""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from distill_jax.data.images.sources.base import ArrayExamples, from_arrays, most_unpacked
from distill_jax.errors import UsageError

PREFIXES = {"train": "train", "test": "t10k"}


def load(path: str, split: str, image_size: int = 0) -> ArrayExamples:
    """The split in the folder `path`; the number of classes is that of the train labels.

    Raises:
      UsageError: a missing, unreadable or truncated file, a wrong magic number, unequal counts.
    """
    folder = pathlib.Path(path).expanduser()
    prefix = PREFIXES[split]
    images = _read(_find(folder, prefix, "images", 3), 3)
    labels = _read(_find(folder, prefix, "labels", 1), 1)
    train_labels = labels if split == "train" else _read(_find(folder, "train", "labels", 1), 1)
    if len(images) != len(labels):
        raise UsageError(
            f"data.path={path!r}: {len(images)} {split} images but {len(labels)} labels"
        )
    return from_arrays(
        "idx",
        images,
        labels,
        num_classes=int(train_labels.max(initial=0)) + 1,
        location=f"data.path={path!r}",
        image_size=image_size,
    )


def _find(folder: pathlib.Path, prefix: str, content: str, rank: int) -> pathlib.Path:
    names = [
        f"{prefix}-{content}{mark}idx{rank}-ubyte{end}" for end in ("", ".gz") for mark in "-."
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"data.path={str(folder)!r}: no file {names[0]} (or with .gz) in this folder")


def _read(path: pathlib.Path, rank: int) -> np.ndarray:
    """The uint8 array of an IDX file, whose header is 0, 0, 8 (uint8), rank, then the shape."""
    location = f"data.path={str(path)!r}"
    try:
        opened = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
        with opened as file:
            start = 4 + 4 * rank
            header = file.read(start)
            expected = _check_header(header, path, rank, location)
            content = header + file.read(expected - start + 1)  # one more shows what is too long
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{location}: unreadable or truncated file: {error}") from error
    shape = struct.unpack(f">{rank}I", content[4:start])
    if len(content) != expected:
        raise UsageError(
            f"{location}: {'fewer' if len(content) < expected else 'more'} bytes than the "
            f"{expected} that its header, shape {list(shape)}, means; truncated or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _check_header(header: bytes, path: pathlib.Path, rank: int, location: str) -> int:
    """How many bytes the header promises; UsageError where the file cannot hold as many."""
    if len(header) < 4 + 4 * rank:
        raise UsageError(f"{location}: truncated file, {len(header)} bytes are no IDX header")
    magic, *shape = struct.unpack(f">{1 + rank}I", header)
    if magic != 0x800 + rank:
        raise UsageError(
            f"{location}: magic number {magic}, expected {0x800 + rank}; not this file?"
        )
    expected = len(header) + math.prod(shape)
    held = path.stat().st_size
    if expected > (most_unpacked(held) if path.suffix == ".gz" else held):
        raise UsageError(
            f"{location}: {held} bytes but its header, shape {shape}, means {expected};"
            " truncated or damaged"
        )
    return expected
