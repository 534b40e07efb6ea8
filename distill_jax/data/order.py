"""Which examples, and in which order: permutations, stratified splits, the endless training order.

Everything here is host numpy and a pure function of its arguments, so that a run that resumes at
position p sees what the uninterrupted run saw. Permutations are made from raw Philox words, whose
stream numpy guarantees across versions (unlike `Generator.permutation`), so an order outlives an
upgrade in the middle of a run. Left out on purpose: sampling with replacement and class-balanced
sampling, neither of which the distillation recipes use.
"""

import functools
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from distill_jax.errors import UsageError, unknown

# Streams of one seed: epochs count up from 0, so the other uses sit far above any epoch.
VALIDATION_STREAM = 2**63
FRACTION_STREAM = 2**63 + 1
SOURCE_STREAM = 2**63 + 2
CROP_STREAM = 2**63 + 3


class Classes(Protocol):
    """The classes of a data set: how many there are, and their names, which may be unknown."""

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...


class Labelled(Protocol):
    """Examples that have a class each: all that a split needs to know of them."""

    def __len__(self) -> int: ...

    def labels(self) -> np.ndarray: ...

    @property
    def info(self) -> Classes: ...


def permutation(count: int, seed: int, stream: int) -> np.ndarray:
    """A permutation of range(count), keyed by (seed, stream).

    Args:
      count: how many numbers to permute.
      seed: any integer; taken modulo 2**64.
      stream: which of the seed's independent permutations, in [0, 2**64).

    Returns:
      int64 [count].
    """
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(count)
    return np.argsort(words, kind="stable")


def stratified(labels: np.ndarray, count: int, seed: int, stream: int) -> np.ndarray:
    """Chooses `count` examples so that each class keeps its share, within one example.

    Each class gets floor(count * its size / total); the examples still missing go to the classes
    with the largest remainders, the lower class first on a tie.

    Args:
      labels: int [N], the class of each example.
      count: how many to choose, in [0, N].
      seed: the seed of the choice.
      stream: which use of the seed this is.

    Returns:
      int64 [count], sorted positions in `labels`.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares, remainders = np.divmod(sizes.astype(np.int64) * count, max(len(labels), 1))
    missing = count - int(shares.sum())
    shares[np.argsort(-remainders, kind="stable")[:missing]] += 1
    shuffled = permutation(len(labels), seed, stream)
    chosen = [
        shuffled[labels[shuffled] == label][:share]
        for label, share in zip(classes, shares, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def splits(
    examples_train: Labelled,
    *,
    validation: float | int,
    split_seed: int,
    fraction: float = 1.0,
    only_classes: Iterable[int | str] = (),
    exclude_classes: Iterable[int | str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Divides the train split into what trains and what chooses; the test split takes no part.

    Validation is held out first, from all classes, so that it is the same whatever part of the
    rest is trained on. Then `fraction` thins the rest, and the class filters drop classes from it:
    an example of a kept class is trained on or not whatever the filter.

    Args:
      examples_train: the train split.
      validation: the part held out, stratified by class: a float in [0, 1) or a count in [0, N).
      split_seed: the seed of both choices.
      fraction: the part of the rest that is trained on, stratified by class, in (0, 1].
      only_classes: class numbers or names to train on; empty means all.
      exclude_classes: class numbers or names not to train on.

    Returns:
      (train ids, validation ids): sorted int32 positions in the full train split, disjoint.

    Raises:
      UsageError: a value out of its range, an unknown class, or nothing left to train on.
    """
    total = len(examples_train)
    held_out = _count(validation, total)
    if not 0 < fraction <= 1:
        raise UsageError(f"data.fraction={fraction!r}: expected a number in (0, 1]")
    only = _classes("data.only_classes", only_classes, examples_train)
    exclude = _classes("data.exclude_classes", exclude_classes, examples_train)

    rest = np.arange(total)
    chosen = np.zeros(0, np.int64)
    if held_out or fraction < 1 or only or exclude:
        labels = examples_train.labels()
        chosen = stratified(labels, held_out, split_seed, VALIDATION_STREAM)
        rest = np.setdiff1d(rest, chosen, assume_unique=True)
        if fraction < 1:
            kept = round(fraction * len(rest))
            rest = rest[stratified(labels[rest], kept, split_seed, FRACTION_STREAM)]
        if only:
            rest = rest[np.isin(labels[rest], only)]
        rest = rest[~np.isin(labels[rest], exclude)]
    if not len(rest):
        raise UsageError(
            f"data: no example is left to train on of {total}, after data.validation={validation!r}"
            f", data.fraction={fraction!r}, data.only_classes={tuple(only_classes)!r},"
            f" data.exclude_classes={tuple(exclude_classes)!r}"
        )
    return rest.astype(np.int32), chosen.astype(np.int32)


def _count(validation: float | int, total: int) -> int:
    """The number of examples that `validation` means; at least one when it is not zero."""
    if isinstance(validation, int | np.integer) and not isinstance(validation, bool):
        if 0 <= validation < total:
            return int(validation)
    elif isinstance(validation, float) and 0 <= validation < 1:
        return max(round(validation * total), 1) if validation else 0
    raise UsageError(
        f"data.validation={validation!r}: expected a fraction in [0, 1) as a float,"
        f" or a count in [0, {total}) as an integer"
    )


def _classes(key: str, wanted: Iterable[int | str], examples: Labelled) -> list[int]:
    """Class numbers of a list that may hold names."""
    info = examples.info
    numbers = []
    for item in wanted:
        if isinstance(item, str) and item in info.class_names:
            numbers.append(info.class_names.index(item))
        elif isinstance(item, int | np.integer) and 0 <= item < info.num_classes:
            numbers.append(int(item))
        elif isinstance(item, str):
            raise unknown(key, item, info.class_names, "class")
        else:
            raise UsageError(
                f"{key}={item!r}: expected a class name or a number in [0, {info.num_classes})"
            )
    return numbers


def process_rows(batch_size: int, process: int, processes: int) -> slice:
    """The rows of a batch that a process reads: consecutive, in the order of the processes.

    Args:
      batch_size: B, over all processes.
      process: the number of this process, from 0.
      processes: how many feed the run.

    Raises:
      UsageError: B is not a positive multiple of `processes`.
    """
    if batch_size < 1 or batch_size % processes:
        raise UsageError(
            f"training.batch_size={batch_size}: expected a positive multiple of the {processes}"
            " processes"
        )
    own = batch_size // processes
    return slice(process * own, (process + 1) * own)


# Two epochs: a batch may span the end of one and the start of the next.
@functools.lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(count, seed, epoch)


class Order:
    """The endless order in which examples are trained on: position p is in epoch p // len(ids).

    Every epoch holds every id exactly once, in a permutation of its own that depends on nothing
    but (seed, epoch): not on the batch size, not on where reading began.
    """

    def __init__(self, ids: np.ndarray, seed: int):
        """Args: ids: int [n], at least one. seed: any integer."""
        self._ids = np.asarray(ids, dtype=np.int32)
        self._seed = seed
        if self._ids.ndim != 1 or not len(self._ids):
            raise UsageError(f"data: an order needs at least one id, got shape {self._ids.shape}")

    def __len__(self) -> int:
        """The number of examples in an epoch."""
        return len(self._ids)

    def ids(self, start: int, count: int) -> np.ndarray:
        """The ids at global positions start .. start + count - 1.

        Args:
          start: the first position, at least 0.
          count: how many, at least 0; may span epochs.

        Returns:
          int32 [count].
        """
        out = np.empty(count, np.int32)
        filled = 0
        while filled < count:
            epoch, offset = divmod(start + filled, len(self._ids))
            order = _epoch(len(self._ids), self._seed, epoch)
            part = order[offset : offset + count - filled]
            out[filled : filled + len(part)] = self._ids[part]
            filled += len(part)
        return out
