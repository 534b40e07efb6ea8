"""The interface of all sources: an `Info`, single examples, batches, and the whole as arrays.

A source reads one split and changes nothing in it; `data.order` chooses examples and `augment`
changes them. Sources can be pickled, so that each worker process opens its own copy.
"""

import abc
import dataclasses
import io
import math
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from distill_jax.data.images.crops import Cut
from distill_jax.errors import UsageError

# Pillow modes by channel count, to which images are converted; only these may be resized.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

#: The formats that are read, by Pillow's names.
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
#: A larger image is refused: as RGB it would take over 200 MB.
MOST_PIXELS = 2**26

# How many examples `arrays` decodes at a time; bounds the encoded bytes in memory.
CHUNK = 1024

# Sets below this size in bytes are read as a whole, larger ones by samples.
SMALL = 2**30


@dataclasses.dataclass(frozen=True)
class Info:
    """The properties of a data set that a model depends on.

    Attributes:
      name: the name by which it was loaded.
      num_classes: the number of classes; labels are in [0, num_classes).
      image_shape: (height, width, channels) of every image.
      class_names: one name a class; the numbers of the classes where they have no names.
      named: whether such numbers are the names that the classes really have, as of digits.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    named: bool = False

    @property
    def known_names(self) -> tuple[str, ...]:
        """The names of the classes; () where they are unknown."""
        placeholders = self.class_names == numbered(self.num_classes)
        return () if placeholders and not self.named else tuple(self.class_names)


def numbered(count: int) -> tuple[str, ...]:
    """The numbers of so many classes, which stand for names that are unknown."""
    return tuple(map(str, range(count)))


class Examples(abc.ABC):
    """One split of a data set of labelled uint8 images, read by position."""

    info: Info
    notes: tuple[str, ...] = ()  # lines about what may be wrong with the files
    crops: bool = False  # whether `cropped` is implemented: images are decoded when they are read
    _decoded: tuple[np.ndarray, np.ndarray] | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """The image, uint8 [H, W, C], and the label of one example."""

    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """All labels, int32 [N]; images are decoded for them at most in sets below `SMALL`."""

    @property
    def nbytes(self) -> int:
        """The size in bytes of `arrays()`, known without reading it."""
        return len(self) * (int(np.prod(self.info.image_shape)) + np.dtype(np.int32).itemsize)

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples at `ids`: images uint8 [B, H, W, C] and labels int32 [B]."""
        images = np.empty((len(ids), *self.info.image_shape), np.uint8)
        labels = np.empty(len(ids), np.int32)
        for row, index in enumerate(ids):
            images[row], labels[row] = self[int(index)]
        return images, labels

    def cropped(self, ids: np.ndarray, cuts: Sequence[Cut | None]) -> tuple[np.ndarray, np.ndarray]:
        """As `batch`, but of each image the part that its cut chooses, resized to the common size.

        Args:
          ids: int [B].
          cuts: one for each id; None takes the image as `batch` does.
        """
        raise NotImplementedError(f"{type(self).__name__} does not decode images when it is read")

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole split, decoded once and kept: uint8 [N, H, W, C], int32 [N]; read-only."""
        if self._decoded is None:
            images = np.empty((len(self), *self.info.image_shape), np.uint8)
            labels = np.empty(len(self), np.int32)
            for start in range(0, len(self), CHUNK):
                rows = slice(start, min(start + CHUNK, len(self)))
                images[rows], labels[rows] = self.batch(np.arange(rows.start, rows.stop))
            self._decoded = (read_only(images), read_only(labels))
        return self._decoded

    def __getstate__(self) -> dict:
        # A worker process decodes its own images; sending it the cache would copy the whole set.
        return {key: value for key, value in vars(self).items() if key != "_decoded"}


class InColour(Examples):
    """A grey split whose images have three equal channels, as its other split has colours."""

    def __init__(self, grey: Examples):
        """Args: grey: images of one channel."""
        height, width, _ = grey.info.image_shape
        self.info = dataclasses.replace(grey.info, image_shape=(height, width, 3))
        self.crops = grey.crops
        self._grey = grey

    def __len__(self) -> int:
        return len(self._grey)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image, label = self._grey[index]
        return np.repeat(image, 3, axis=-1), label

    def labels(self) -> np.ndarray:
        return self._grey.labels()

    def cropped(self, ids: np.ndarray, cuts: Sequence[Cut | None]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self._grey.cropped(ids, cuts)
        return np.repeat(images, 3, axis=-1), labels


class ArrayExamples(Examples):
    """A split that is in memory from the start."""

    def __init__(self, info: Info, images: np.ndarray, labels: np.ndarray):
        """Args: images: uint8 [N, H, W, C] of the shape that `info` names. labels: int [N]."""
        self.info = info
        self._images = read_only(images)
        self._labels = read_only(labels.astype(np.int32))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images[index], int(self._labels[index])

    def labels(self) -> np.ndarray:
        return self._labels

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._images[ids], self._labels[ids]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return self._images, self._labels


def from_arrays(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    location: str = "",
    image_size: int = 0,
    class_names: tuple[str, ...] = (),
    named: bool = False,
) -> ArrayExamples:
    """Checks arrays, for example from a file, and makes a split of them.

    Args:
      name: the data set's name.
      images: uint8 [N, H, W] or [N, H, W, C].
      labels: int [N].
      num_classes: the number of classes.
      location: what errors name as the cause, such as "data.path='x.npz'"; by default data.name.
      image_size: height and width to which every image is resized; 0 keeps the size.
      class_names: one a class; numbers when empty.
      named: as of `Info`.

    Returns:
      The split.

    Raises:
      UsageError: wrong type or shape, no images, or a label out of range.
    """
    location = location or f"data.name={name!r}"
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UsageError(
            f"{location}: expected images as uint8 [N, H, W] or [N, H, W, C],"
            f" got {images.dtype} {list(images.shape)}"
        )
    if not images.size:
        raise UsageError(f"{location}: no images, shape {list(images.shape)}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UsageError(
            f"{location}: expected {len(images)} integer labels, one an image,"
            f" got {labels.dtype} {list(labels.shape)}"
        )
    check_labels(labels, num_classes, location)
    images = images.reshape(*images.shape[:3], -1)
    check_layout(images.shape[1:], location)
    if image_size and images.shape[1:3] != (image_size, image_size):
        images = np.stack([resize(image, image_size) for image in images])
    _, height, width, channels = images.shape
    names = class_names or numbered(num_classes)
    info = Info(name, num_classes, (height, width, channels), names, named)
    examples = ArrayExamples(info, images, labels)
    if images.max() <= 1:
        examples.notes = (
            f"{location}: no pixel is above 1, so that all images are nearly black; expected 0 to "
            "255 (were they in [0, 1] before they became uint8?)",
        )
    return examples


def check_layout(shape: tuple[int, ...], location: str) -> None:
    """Raises UsageError for the shape of an image whose channels are probably first.

    Args:
      shape: (H, W, C) as it would be read.
      location: what the error names as the cause.
    """
    first, *others = shape
    if first in MODES and min(others) > max(MODES):
        raise UsageError(
            f"{location}: images are {list(shape)}, which reads as {first} by {others[0]} pixels "
            f"of {others[1]} channels; expected [N, H, W, C], as transpose(0, 2, 3, 1) of arrays "
            "with channels first"
        )


def check_labels(labels: np.ndarray, num_classes: int, location: str) -> None:
    """Raises UsageError when a label is not in [0, num_classes), such as -1 for "unknown"."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UsageError(
            f"{location}: example {wrong[0]} has label {labels[wrong[0]]}, expected 0 to"
            f" {num_classes - 1}; {len(wrong)} labels are out of range"
        )


def open_image(source: str | pathlib.Path | bytes) -> Image.Image:
    """Opens an image of one of `FORMATS` and reads its header; to be used as a context.

    Pillow recognises a file by its content and knows formats that start other programs (EPS starts
    Ghostscript), so only the stated ones are tried, whatever the file's name.

    Raises:
      ValueError: it has more than `MOST_PIXELS`.
      Exception: of any type, whatever Pillow raises on a damaged file or another format.
    """
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        image = Image.open(opened, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(
            f"{image.width} x {image.height} pixels; expected at most {MOST_PIXELS:,} in all"
        )
    return image


def decode(source: str | pathlib.Path | bytes, mode: str, image_size: int) -> np.ndarray:
    """Decodes one image file.

    Args:
      source: a path, or the encoded bytes.
      mode: the Pillow mode to convert to, one of MODES.
      image_size: as in `resize`; 0 keeps the size.

    Returns:
      uint8 [H, W, C].

    Raises:
      Exception: of any type, whatever Pillow raises on a damaged file; the caller names the file.
    """
    with open_image(source) as image:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return resize(pixels, image_size) if image_size else pixels


def decode_cut(
    source: str | pathlib.Path | bytes, mode: str, shape: tuple[int, int], cut: Cut
) -> np.ndarray:
    """Decodes a part of one image file and resizes it (bilinear, antialiased).

    A JPEG is decoded at a half, a quarter or an eighth of its size if the part still has enough
    pixels for `shape`; the rest of the image is never computed at full size.

    Args:
      source: a path, or the encoded bytes.
      mode: as in `decode`.
      shape: (height, width) of the result.
      cut: chooses the part.

    Returns:
      uint8 [*shape, C].

    Raises:
      Exception: as in `decode`.
    """
    with open_image(source) as image:
        y, x, tall, wide = cut(image.height, image.width)
        scale = 1.0
        if image.format == "JPEG" and (spare := min(tall // shape[0], wide // shape[1])) > 1:
            full = image.width
            drafted = image.draft(None, (image.width // spare, image.height // spare))
            scale = drafted[1][2] / full if drafted else scale
        left, top, right, bottom = (side * scale for side in (x, y, x + wide, y + tall))
        corner = math.floor(left), math.floor(top)
        part = image.crop((*corner, math.ceil(right), math.ceil(bottom)))
        part = part if part.mode == mode else part.convert(mode)
    inner = (left - corner[0], top - corner[1], right - corner[0], bottom - corner[1])
    resized = part.resize(shape[::-1], Image.Resampling.BILINEAR, inner)
    return np.asarray(resized).reshape(*shape, -1)


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scales the shorter side to `size` (bilinear, antialiased) and crops the centre square.

    Args:
      pixels: uint8 [H, W, C] with 1, 3 or 4 channels.
      size: the new height and width.

    Returns:
      uint8 [size, size, C].
    """
    height, width, channels = pixels.shape
    if channels not in MODES:
        raise UsageError(
            f"data.image_size={size}: only images of 1, 3 or 4 channels are resized, got {channels}"
        )
    scale = size / min(height, width)
    tall, wide = max(size, round(height * scale)), max(size, round(width * scale))
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    scaled = np.asarray(image.resize((wide, tall), Image.Resampling.BILINEAR))
    top, left = (tall - size) // 2, (wide - size) // 2
    return scaled[top : top + size, left : left + size].reshape(size, size, channels)


def most_unpacked(size: int) -> int:
    """Bytes to which a compressed file of `size` bytes may unpack: more than images do, no bomb."""
    return 16 * size + 2**28


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written to, because all readers of a set share its arrays."""
    view = array.view()
    view.flags.writeable = False
    return view
