"""Loaders by the name of their data set; any other name is looked up in TFDS."""

from collections.abc import Callable

from distill_jax.data.images.sources.base import Examples

Loader = Callable[[str, str, int], Examples]  # (split, path, image_size)

_loaders: dict[str, Loader] = {}


def register(name: str, loader: Loader) -> None:
    """Makes a source available as `data.name`. A name can be taken once.

    Args:
      name: what a config calls the set.
      loader: called with the split ("train" or "test"), `data.path` and `data.image_size`.

    Raises:
      ValueError: the name is taken.
    """
    if name in _loaders:
        raise ValueError(f"a data set named {name!r} is registered already: {_loaders[name]}")
    _loaders[name] = loader


def names() -> tuple[str, ...]:
    """Every registered name, sorted."""
    return tuple(sorted(_loaders))


def find(name: str) -> Loader | None:
    """The loader of a name; None if it is not registered."""
    return _loaders.get(name)
