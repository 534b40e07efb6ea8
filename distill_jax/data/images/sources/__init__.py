"""Sources of examples: one file a kind, one function to load any of them.

A new kind of source is a function that returns `Examples`, and a call of `register`. Sources read
one split, decode, and check; they neither shuffle nor normalise, and nothing here downloads.
"""

from collections.abc import Callable

from distill_jax.data.images.sources import digits, folder, idx, npz, tfds
from distill_jax.data.images.sources.base import (
    ArrayExamples,
    Examples,
    InColour,
    Info,
    check_layout,
    from_arrays,
)
from distill_jax.data.images.sources.registry import Loader, find, names, register
from distill_jax.errors import UsageError, unknown

SPLITS = ("train", "test")


def _reading_path(name: str, load_path: Callable[[str, str, int], Examples]) -> Loader:
    """A loader that needs `data.path`, from a function of (path, split, image_size)."""

    def load_split(split: str, path: str, image_size: int) -> Examples:
        if not path:
            raise UsageError(f"data.path='': expected the path that data.name={name!r} reads")
        return load_path(path, split, image_size)

    return load_split


register("digits", lambda split, path, image_size: digits.load(split, image_size))
register("folder", _reading_path("folder", folder.load))
register("idx", _reading_path("idx", idx.load))
register("npz", _reading_path("npz", npz.load))


def load(
    name: str, split: str, *, tfds_dir: str = "", path: str = "", image_size: int = 0
) -> Examples:
    """One split of a data set.

    Args:
      name: a registered name ("digits", "idx", "folder", "npz"), or that of a prepared TFDS set.
      split: "train" or "test"; of a TFDS set or a folder without a test split, "test" is its
        validation split.
      tfds_dir: the folder of prepared TFDS sets; "" is TFDS's own default.
      path: the folder of "idx" and "folder", the file of "npz".
      image_size: every image is scaled and cropped to this height and width; 0 keeps the size.

    Returns:
      The split.

    Raises:
      UsageError: an unknown name, a set that is missing or not readable, unequal image shapes.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, "split")
    if image_size < 0:
        raise UsageError(f"data.image_size={image_size}: expected 0 (as stored) or a positive size")
    loader = find(name)
    if loader is None:
        return tfds.load(name, split, tfds_dir, image_size)
    examples = loader(split, path, image_size)
    check_layout(
        examples.info.image_shape, f"data.path={path!r}" if path else f"data.name={name!r}"
    )
    return examples


__all__ = [
    "ArrayExamples",
    "Examples",
    "InColour",
    "Info",
    "from_arrays",
    "load",
    "names",
    "register",
]
