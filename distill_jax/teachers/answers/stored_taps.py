"""The teacher's taps as an answer store has them: those that it lacks are refused, never ignored.

A network always returns all of its taps, so a method may loop over them, ask whether one exists, or
take a tap by name. A store holds some of them. `StoredTaps` is a dictionary of those that raises
where a method would otherwise see fewer taps than the teacher has, and so compute another loss.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from distill_jax.errors import UsageError


class StoredTaps(dict[str, Any]):
    """Taps from a store; reading all of them, or one that the store lacks, is a UsageError.

    Args:
      taps: those that the store has.
      missing: the names of the teacher's other taps; None where they are unknown, so that every
        other name counts as one.
      path: of the store, for errors.
    """

    def __init__(self, taps: Mapping[str, Any], missing: frozenset[str] | None, path: str):
        super().__init__(taps)
        self.missing = missing
        self.path = path

    def _refuse(self, wanted: str) -> NoReturn:
        taps = ",".join(sorted({*dict.keys(self), *(self.missing or ())}))
        raise UsageError(
            f"teacher.store={self.path!r}: the method reads {wanted}; the store has "
            f"{', '.join(dict.keys(self)) or 'none'}; expected one written with --taps={taps}, "
            "or teacher.path alone"
        )

    def _all(self) -> None:
        if self.missing is None or self.missing:
            self._refuse("all taps of the teacher")

    def _one(self, name: object) -> None:
        lacking = not super().__contains__(name) if self.missing is None else name in self.missing
        if lacking:
            self._refuse(f"the tap {name!r}")

    def __getitem__(self, name: str) -> Any:
        self._one(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._one(name)
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def __len__(self) -> int:
        self._all()
        return super().__len__()

    def __bool__(self) -> bool:
        return self.missing is None or bool(self.missing) or bool(dict.keys(self))

    def keys(self) -> Any:
        self._all()
        return super().keys()

    def values(self) -> Any:
        self._all()
        return super().values()

    def items(self) -> Any:
        self._all()
        return super().items()

    def __or__(self, other):
        return {**self, **other}

    def __ror__(self, other):
        return {**other, **self}

    def __reversed__(self) -> Iterator[str]:
        self._all()
        return super().__reversed__()

    def pop(self, name, *default):
        self._one(name)
        return super().pop(name, *default)

    def copy(self) -> "StoredTaps":
        return StoredTaps(dict(dict.items(self)), self.missing, self.path)


def _flatten(taps: StoredTaps) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    held = sorted(dict.items(taps))
    names = tuple(name for name, _ in held)
    children = [(jax.tree_util.DictKey(name), value) for name, value in held]
    return children, (names, taps.missing, taps.path)


def _unflatten(about: tuple[Any, ...], children: Iterable[Any]) -> StoredTaps:
    names, missing, path = about
    return StoredTaps(dict(zip(names, children, strict=True)), missing, path)


jax.tree_util.register_pytree_with_keys(StoredTaps, _flatten, _unflatten)
