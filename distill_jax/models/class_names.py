"""Whether a network and a data set mean the same by class k: their names, compared and mapped.

A network of K classes fits any data of K classes by its shape. Only the names tell whether its
class 3 is the class 3 of the data. They are compared without case and without the difference
between " ", "_" and "-". Left out on purpose: synonyms, and networks with more classes than the
data.
"""

import dataclasses
import unicodedata
from collections.abc import Sequence

from distill_jax.errors import UsageError

#: How the classes of a teacher correspond to those of the data: the values of teacher.classes.
CHOICES = ("same", "by_name", "by_position")

_SHOWN = 20  # names of a list in an error


@dataclasses.dataclass(frozen=True)
class Match:
    """How the classes of a network correspond to those of the data.

    Attributes:
      order: for each class of the data, the class of the network; () where they are the same.
      note: one line where the names do not tell; "" where they do.
    """

    order: tuple[int, ...] = ()
    note: str = ""


def match(theirs: Sequence[str], ours: Sequence[str], *, how: str, location: str) -> Match:
    """Compares the class names of a network with those of the data.

    Args:
      theirs: of the network, by class; () for unknown.
      ours: of the data, by class; () for unknown.
      how: "same" refuses another order or other names, "by_name" maps another order, "by_position"
        takes class k for class k whatever the names.
      location: what errors and the note begin with, such as "teacher.path='runs/a'".

    Raises:
      UsageError: both are known and differ, or they are to be mapped and that is not possible.
    """
    if how == "by_position":
        return Match()
    first, second = _canonical(theirs), _canonical(ours)
    # Numbers that are out of order, such as folders 0, 1, 10, 2, can be told from plain numbers.
    first = first or (_numbers(len(second)) if _out_of_order(second) else ())
    second = second or (_numbers(len(first)) if _out_of_order(first) else ())
    if not (first and second):
        unknown = " and ".join(
            whose for whose, names in (("the teacher", theirs), ("the data", ours)) if not names
        )
        if how == "by_name":
            raise UsageError(
                f"teacher.classes='by_name': {location}: the class names of {unknown} are unknown;"
                " expected 'same', or names: distill-jax import has --class-names"
            )
        return Match(
            note=f"{location}: the class names of {unknown} are unknown; its class k is taken to "
            "be class k of the data"
        )
    if first == second:
        return Match()
    permuted = sorted(first) == sorted(second) and len(set(first)) == len(first)
    if how == "by_name" and permuted:
        return Match(tuple(first.index(name) for name in second))
    remedy = "teacher.classes='by_name' maps them" if permuted else "a teacher of these classes"
    raise UsageError(
        f"{location}: its classes are {_listed(theirs or first)}; those of the data are "
        f"{_listed(ours or second)} ({_difference(first, second)}); expected the same in the same "
        f"order: {remedy}, and 'by_position' takes them as they are"
    )


def _canonical(names: Sequence[str]) -> tuple[str, ...]:
    plain = str.maketrans("_-", "  ")
    return tuple(unicodedata.normalize("NFC", n).casefold().translate(plain) for n in names)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _out_of_order(names: tuple[str, ...]) -> bool:
    plain = _numbers(len(names))
    return names != plain and sorted(names) == sorted(plain)


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if sorted(theirs) == sorted(ours):
        return "the same names in another order"
    shared = len(set(theirs) & set(ours))
    return f"{shared} names of {len(ours)} are in both"


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return "[" + ", ".join(map(repr, names[:_SHOWN])) + more + "]"
