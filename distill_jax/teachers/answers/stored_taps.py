"""Taps from an answer store whose teacher's network is unknown: none is overlooked in silence.

A network always returns all of its taps, so a method may loop over them, ask whether one exists, or
take a tap by name. A store holds some of them, and which others there are follows from the model of
its teacher. Where that is not registered, `StoredTaps` takes the place of the dictionary: it raises
where a method would otherwise see fewer taps than the teacher has, and so compute another loss.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from distill_jax.errors import UsageError

#: Stands for the unknown taps where a loss is traced: `jax.tree` finds it, no name reaches it.
UNKNOWN = "taps that are unknown"


class StoredTaps(dict[str, Any]):
    """Taps from a store; reading all of the teacher's, or one that is not here, is a UsageError.

    Args:
      taps: those that the store has.
      model: the name of the teacher's network.
      path: of the store, for errors.
    """

    def __init__(self, taps: Mapping[str, Any], model: str, path: str):
        super().__init__(taps)
        self.model = model
        self.path = path

    def _refuse(self, wanted: str) -> NoReturn:
        held = ", ".join(name for name in dict.keys(self) if name != UNKNOWN) or "none"
        raise UsageError(
            f"teacher.store={self.path!r}: the method reads {wanted}; the store has {held}, and "
            f"its teacher's model {self.model!r} is not registered here; expected one written with "
            "--taps=..., every one that the method reads by name, or models.register called for "
            "the model first"
        )

    def all(self) -> NoReturn:
        """Refuses a reading of all taps of the teacher."""
        self._refuse("all taps of the teacher")

    def _one(self, name: object) -> None:
        if not super().__contains__(name):
            self._refuse(f"the tap {name!r}")

    def __getitem__(self, name: str) -> Any:
        self._one(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._one(name)
        return True

    def get(self, name: str, default: Any = None) -> Any:
        del default
        return self[name]

    def pop(self, name, *default):
        del default
        self._one(name)
        return super().pop(name)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        self.all()

    def __len__(self) -> int:
        self.all()

    def __reversed__(self) -> Iterator[str]:
        self.all()

    def keys(self) -> Any:
        self.all()

    def values(self) -> Any:
        self.all()

    def items(self) -> Any:
        self.all()

    def __or__(self, other):
        return {**self, **other}

    def __ror__(self, other):
        return {**other, **self}

    def copy(self) -> "StoredTaps":
        return StoredTaps(dict(dict.items(self)), self.model, self.path)


def _flatten(taps: StoredTaps) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    held = sorted(dict.items(taps))
    names = tuple(name for name, _ in held)
    children = [(jax.tree_util.DictKey(name), value) for name, value in held]
    return children, (names, taps.model, taps.path)


def _unflatten(about: tuple[Any, ...], children: Iterable[Any]) -> StoredTaps:
    names, model, path = about
    return StoredTaps(dict(zip(names, children, strict=True)), model, path)


jax.tree_util.register_pytree_with_keys(StoredTaps, _flatten, _unflatten)
