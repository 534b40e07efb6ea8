"""A folder of images, one folder a class: PATH/train/<class>/*.png and PATH/test/<class>/*.png.

If PATH holds neither train/ nor test/, the classes are directly under it and a fifth of each is the
test split, by a permutation from a constant seed. Classes are numbered in the order of their names.
Hidden files and folders (".ipynb_checkpoints", "._0.png", "__MACOSX") are left out at every level,
and files of other suffixes are passed over with a note.
The formats are those of `base.FORMATS`. Pixels are used as stored: an alpha channel is dropped, and
EXIF rotation is not applied, which a line of the log says where there is any.
"""

import collections
import logging
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import ExifTags

from distill_jax.data.images.crops import Cut
from distill_jax.data.images.sources.base import (
    MODES,
    Examples,
    Info,
    decode,
    decode_cut,
    open_image,
)
from distill_jax.data.order import SOURCE_STREAM, stratified
from distill_jax.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
HIDDEN = (".", "__")  # what the names of hidden files and folders begin with
LITTER = ("thumbs.db", "desktop.ini")  # of Windows
TEST_FOLDERS = ("test", "validation", "val")
TEST_FRACTION = 0.2
SPLIT_SEED = 8020

# Grey modes become one channel, colour modes RGB. Deeper modes ("I;16", "F") are refused, because
# they would silently lose bits.
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")

_LOG = logging.getLogger(__name__)

# Threads that read headers: they wait for a slow network disk, not for the processor.
THREADS = 16


class FolderExamples(Examples):
    """Image files, decoded when they are read."""

    crops = True

    def __init__(
        self, info: Info, folder: str, files: tuple[str, ...], labels: np.ndarray, image_size: int
    ):
        """Args: files: paths below `folder`, one an example. labels: int32 [N]."""
        self.info = info
        self._folder = folder
        self._files = files
        self._labels = labels
        self._image_size = image_size

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._image(index, None), int(self._labels[index])

    def cropped(self, ids: np.ndarray, cuts: Sequence[Cut | None]) -> tuple[np.ndarray, np.ndarray]:
        images = [self._image(int(index), cut) for index, cut in zip(ids, cuts, strict=True)]
        return np.stack(images), self._labels[ids]

    def _image(self, index: int, cut: Cut | None) -> np.ndarray:
        path = os.path.join(self._folder, self._files[index])
        height, width, channels = self.info.image_shape
        try:
            if cut:
                return decode_cut(path, MODES[channels], (height, width), cut)
            return decode(path, MODES[channels], self._image_size)
        except Exception as error:  # Pillow has no common type for what a damaged file raises
            raise UsageError(f"data.path={path!r}: not a readable image: {error}") from error

    def labels(self) -> np.ndarray:
        return self._labels


def load(path: str, split: str, image_size: int = 0) -> FolderExamples:
    """The split below the folder `path`.

    Args:
      path: the folder.
      split: "train" or "test".
      image_size: every image is scaled and cropped to this height and width; 0 requires equal
        shapes.

    Raises:
      UsageError: no such folder, no images, an unreadable image, or unequal shapes.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UsageError(f"data.path={path!r}: no such folder")
    train, test = _split_folders(root, path)
    folder = train
    if split == "test" and train != root:
        if test is None:
            raise UsageError(f"data.path={path!r}: holds train/ but no test/ or validation/")
        folder = test

    class_names = _classes(train)
    files, labels, passed_over = _labelled_files(
        folder, class_names, may_lack_classes=folder == test
    )
    ids = np.arange(len(files))
    if train == root:
        chosen = stratified(labels, round(TEST_FRACTION * len(ids)), SPLIT_SEED, SOURCE_STREAM)
        ids = chosen if split == "test" else np.setdiff1d(ids, chosen)
    if not len(ids):
        raise UsageError(f"data.path={str(folder)!r}: no images for the {split} split")

    chosen_files = tuple(files[index] for index in ids)
    shape = _image_shape(str(folder), chosen_files, image_size)
    info = Info("folder", len(class_names), shape, class_names)
    examples = FolderExamples(info, str(folder), chosen_files, labels[ids], image_size)
    if passed_over:
        examples.notes = (_note_on(passed_over, folder),)
    return examples


def _note_on(passed_over: Sequence[str], folder: pathlib.Path) -> str:
    """A line about files that are no images of a class."""
    return (
        f"data.path={str(folder)!r}: {len(passed_over)} files are passed over "
        f"({_counted(passed_over)}), such as {passed_over[0]!r}; images are in class folders and "
        f"end in {', '.join(SUFFIXES)}"
    )


def _counted(names: Sequence[str]) -> str:
    """Such as "4 .ppm, 1 without a suffix"."""
    suffixes = (pathlib.PurePosixPath(name).suffix.lower() for name in names)
    counts = collections.Counter(suffix or "without a suffix" for suffix in suffixes)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))


def _split_folders(root: pathlib.Path, path: str) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The folders of the train split (`root` itself if it is not divided) and of the test split."""
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    divided = (root / "train").is_dir()
    if test and not divided:
        raise UsageError(f"data.path={path!r}: holds {test.name}/ but no train/")
    return root / "train" if divided else root, test


def _labelled_files(
    folder: pathlib.Path, class_names: tuple[str, ...], *, may_lack_classes: bool
) -> tuple[list[str], np.ndarray, list[str]]:
    """Paths of images below `folder`, sorted within each class, and their labels, int32 [N].

    The third are the files that are passed over.

    A test split may lack images of a class; a train split may not.
    """
    if extra := sorted(set(_classes(folder)) - set(class_names)):
        raise UsageError(f"data.path={str(folder / extra[0])!r}: no such class in train/")
    files: list[str] = []
    labels: list[int] = []
    passed_over = sorted(item.name for item in folder.iterdir() if _is_plain_file(item, folder))
    for label, name in enumerate(class_names):
        found, others = _images(folder, name)
        passed_over += others
        if not found and not may_lack_classes:
            held = f": {_counted(others)}; expected {', '.join(SUFFIXES)}" if others else ""
            raise UsageError(
                f"data.path={str(folder / name)!r}: no images in this class folder{held}"
            )
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, np.int32), passed_over


def _classes(folder: pathlib.Path) -> tuple[str, ...]:
    names = (item.name for item in folder.iterdir() if item.is_dir())
    classes = tuple(sorted(name for name in names if not name.startswith(HIDDEN)))
    for name in classes:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UsageError(
                f"data.path={str(folder)!r}: the name of the class folder {name!r} is no UTF-8; "
                "expected another name"
            )
    if not classes:
        raise UsageError(
            f"data.path={str(folder)!r}: no images; expected one folder a class, images inside"
        )
    return classes


def _images(folder: pathlib.Path, name: str) -> tuple[list[str], list[str]]:
    """Paths of the images of a class below `folder`, and of its other files, both sorted."""
    root = folder / name
    found = (
        [item for item in root.rglob("*") if _is_plain_file(item, root)] if root.is_dir() else []
    )
    paths = sorted(item.relative_to(folder).as_posix() for item in found)
    images = [path for path in paths if pathlib.PurePosixPath(path).suffix.lower() in SUFFIXES]
    return images, sorted(set(paths) - set(images))


def _is_plain_file(item: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether a path below `root` is a file that is not hidden, at any level."""
    hidden = any(part.startswith(HIDDEN) for part in item.relative_to(root).parts)
    return not hidden and item.name.lower() not in LITTER and item.is_file()


def _image_shape(folder: str, files: Iterable[str], image_size: int) -> tuple[int, int, int]:
    """The common shape, checked from the headers so that a run fails before it starts.

    One colour image makes the whole split RGB.

    Args:
      files: at least one, below `folder`.
    """
    paths = [os.path.join(folder, name) for name in files]
    first: tuple[str, tuple[int, int]] | None = None
    channels = 1
    turned: list[str] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for path, (mode, size, upright) in zip(paths, pool.map(_header, paths), strict=True):
            turned += [] if upright else [path]
            if mode not in GREY_MODES:
                channels = 3
            first = first or (path, size)
            if size != first[1] and not image_size:
                raise UsageError(
                    f"data.image_size=0: images differ in shape: {path!r} is {size[0]} x {size[1]},"
                    f" {first[0]!r} is {first[1][0]} x {first[1][1]}; set data.image_size"
                )
    if turned:
        _LOG.warning(
            "data.path=%r: %d of %d images are stored turned or mirrored (their EXIF orientation), "
            "such as %r, and are used as stored; ImageOps.exif_transpose of Pillow turns them",
            folder,
            len(turned),
            len(paths),
            turned[0],
        )
    height, width = first[1] if first and not image_size else (image_size, image_size)
    return height, width, channels


def _header(path: str) -> tuple[str, tuple[int, int], bool]:
    """Pillow mode and (height, width) of an image file, and whether it is stored upright."""
    try:
        with open_image(path) as image:
            mode, (width, height) = image.mode, image.size
            # Of other formats, Pillow would decode the pixels to look for EXIF.
            exif = image.getexif() if "exif" in image.info else {}
            upright = exif.get(ExifTags.Base.Orientation, 1) == 1
    except Exception as error:  # as in FolderExamples._image
        raise UsageError(f"data.path={path!r}: not a readable image: {error}") from error
    if mode not in GREY_MODES + COLOUR_MODES:
        raise UsageError(f"data.path={path!r}: image mode {mode!r} has more than 8 bits a channel")
    return mode, (height, width), upright
