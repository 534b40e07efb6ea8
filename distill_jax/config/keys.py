"""The kinds of keys that `schema.py` is written with.

The check of a key returns the canonical form of a value or raises ValueError, from which
`config.check` makes the line for the user: key, value, and what the key expects.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypedDict, Unpack

from distill_jax import storage
from distill_jax.optim import schedules

Check = Callable[[Any], Any]  # returns the value in its canonical form or raises ValueError


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
      default: the value in a config that does not set the key.
      check: returns the canonical form of a value or raises ValueError.
      expected: what the check accepts, in words.
      meaning: one line for `--help-config`.
      lasting: whether a resumed run must have the same value.
      only: the kind of data that the key is for; None for both.
    """

    default: Any
    check: Check
    expected: str
    meaning: str
    lasting: bool = True
    only: Literal["text", "images"] | None = None


class _Options(TypedDict, total=False):
    """The fields of `Key` that every kind of key takes by name."""

    lasting: bool
    only: Literal["text", "images"] | None


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    if value != int(value):
        raise ValueError
    return int(value)


def finite(value: Any) -> float:
    """A finite number; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _within(value: float, low: float, high: float, open_low: bool, open_high: bool) -> None:
    below = value <= low if open_low else value < low
    if below or (value >= high if open_high else value > high):
        raise ValueError


def integer(
    default: int, meaning: str, *, low: int = 0, high: int = 2**31 - 1, **options: Unpack[_Options]
) -> Key:
    """A whole number in [low, high]."""

    def check(value: Any) -> int:
        value = _integer(value)
        _within(value, low, high, False, False)
        return value

    words = f"an integer >= {low}" if high == 2**31 - 1 else f"an integer from {low} to {high}"
    return Key(default, check, words, meaning, **options)


def number(
    default: float,
    meaning: str,
    *,
    low: float = 0.0,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    **options: Unpack[_Options],
) -> Key:
    """A finite number between low and high; `open_low` and `open_high` exclude an end."""

    def check(value: Any) -> float:
        value = finite(value)
        _within(value, low, high, open_low, open_high and math.isfinite(high))
        return value

    words = f"a number {'>' if open_low else '>='} {low:g}"
    if math.isfinite(high):
        words = (
            f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        )
    return Key(default, check, words, meaning, **options)


def flag(default: bool, meaning: str, **options: Unpack[_Options]) -> Key:
    """True or false."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Key(default, check, "true or false", meaning, **options)


def text(default: str, meaning: str, **options: Unpack[_Options]) -> Key:
    """Any text."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        return value

    return Key(default, check, "a text", meaning, **options)


def file(default: str, meaning: str, *, remote: bool = False, **options: Unpack[_Options]) -> Key:
    """The path of a file or folder on a disk, with `remote` also in a bucket; or an empty text."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        return _check_path(value, remote)

    return Key(default, check, "a path", meaning, **options)


def choice(default: str, names: Iterable[str], meaning: str, **options: Unpack[_Options]) -> Key:
    """One of some names."""
    names = tuple(names)

    def check(value: Any) -> str:
        if value not in names:
            raise ValueError
        return value

    return Key(default, check, "one of " + ", ".join(names), meaning, **options)


def several(
    default: tuple, item: Check, words: str, meaning: str, **options: Unpack[_Options]
) -> Key:
    """A tuple of what `item` checks; a single one is taken as a tuple of it."""

    def check(value: Any) -> tuple:
        if isinstance(value, (str, int, float)):
            value = (value,)
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return tuple(item(part) for part in value)

    return Key(default, check, words, meaning, **options)


def scheduled(
    default: float | str, meaning: str, *, low: float = 0.0, open_low: bool = False
) -> Key:
    """A number or a schedule of `optim.schedules`, at least `low` throughout."""

    def check(value: Any) -> float | str:
        schedule = schedules.parse(value)
        _within(schedule.extremes[0], low, math.inf, open_low, False)
        return schedule.start if schedule.kind == "constant" else value

    words = f"{schedules.EXPECTED}, {'>' if open_low else '>='} {low:g} throughout"
    return Key(default, check, words, meaning)


def share_or_count(value: Any) -> float | int:
    """A fraction in [0, 1) or a count."""
    if isinstance(value, float) and not value.is_integer():
        _within(value, 0.0, 1.0, False, True)
        return value
    value = _integer(value)
    _within(value, 0, math.inf, False, False)
    return value


def local_path(value: Any) -> str:
    """The path of a local file or folder, not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError
    return _check_path(value, remote=False)


def path_or_url(value: Any) -> str:
    """The path of a file or folder, on a disk or in a bucket, not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError
    return _check_path(value, remote=True)


def _check_path(value: str, remote: bool) -> str:
    if wrong := storage.path_problem(value, remote=remote):
        raise ValueError(wrong)
    return value


def one_line(value: Any) -> str:
    """A text without line breaks, which may be empty."""
    if not isinstance(value, str) or len(value.splitlines()) > 1:
        raise ValueError
    return value.strip()


def truth(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError
    return value


def class_index(value: Any) -> int:
    """An integer >= 0."""
    value = _integer(value)
    _within(value, 0, math.inf, False, False)
    return value


def positive(value: Any) -> float:
    """A finite number > 0."""
    value = finite(value)
    _within(value, 0.0, math.inf, True, False)
    return value


def not_negative(value: Any) -> float:
    """A finite number >= 0."""
    value = finite(value)
    _within(value, 0.0, math.inf, False, False)
    return value
