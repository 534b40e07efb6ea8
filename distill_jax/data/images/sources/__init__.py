"""Where examples come from: one file a kind of source, one function to load any of them.

A new kind of source is a function that makes an `Examples`, and a call of `register`. Sources read
one split, decode, and check; they neither shuffle nor normalise, and nothing here downloads.
"""

from distill_jax.data.images.sources import digits, folder, idx, npz, tfds
from distill_jax.data.images.sources.base import ArrayExamples, Examples, Info, from_arrays
from distill_jax.data.images.sources.registry import find, names, register
from distill_jax.errors import UsageError, unknown

SPLITS = ("train", "test")

register("digits", lambda split, path, image_size: digits.load(split, image_size))
for _name, _module in {"folder": folder, "idx": idx, "npz": npz}.items():

    def _load(split: str, path: str, image_size: int, *, name=_name, module=_module) -> Examples:
        if not path:
            raise UsageError(f"data.path='': expected the path that data.name={name!r} reads")
        return module.load(path, split, image_size)

    register(_name, _load)


def load(
    name: str, split: str, *, tfds_dir: str = "", path: str = "", image_size: int = 0
) -> Examples:
    """One split of a data set.

    Args:
      name: a registered name ("digits", "idx", "folder", "npz"), or that of a prepared TFDS set.
      split: "train" or "test" ("validation" stands in where a TFDS set or a folder has no test).
      tfds_dir: where TFDS sets are prepared; "" is TFDS's own default.
      path: the folder of "idx" and "folder", the file of "npz".
      image_size: every image is scaled and cut to this height and width; 0 leaves the size.

    Returns:
      The split.

    Raises:
      UsageError: an unknown name, a set that is not there or not readable, unequal image shapes.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, "split")
    if image_size < 0:
        raise UsageError(f"data.image_size={image_size}: expected 0 (as stored) or a positive size")
    loader = find(name)
    if loader is None:
        return tfds.load(name, split, tfds_dir, image_size)
    return loader(split, path, image_size)


__all__ = ["ArrayExamples", "Examples", "Info", "from_arrays", "load", "names", "register"]
