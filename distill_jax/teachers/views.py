"""What a teacher is to the step: it gives outputs for a view."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax

from distill_jax.models import Flat, Outputs


@dataclasses.dataclass(frozen=True)
class View:
    """One view of a batch.

    Attributes:
      images: float32 [B, H, W, C] in [0, 1].
      ids: positions of the examples in the split, int32 [B].
      draws: the numbers of `data.augment.draw`, which select a stored answer.
      stored_answers: what the host read from a store for the batch, by name; {} otherwise.
    """

    images: jax.Array
    ids: jax.Array
    draws: dict[str, jax.Array]
    stored_answers: dict[str, jax.Array]


class Teacher(Protocol):
    """Where the teacher's outputs come from: a network, several, or a store.

    Attributes:
      weights: one a teacher, summing to 1.
      own_average: whether the teacher is the moving average of the student.
      precomputed: whether the outputs come from a store, so that the pixels are not read.
    """

    @property
    def weights(self) -> tuple[float, ...]: ...

    @property
    def own_average(self) -> bool: ...

    @property
    def precomputed(self) -> bool: ...

    def outputs(self, variables: Sequence[Any], view: View) -> list[Outputs]:
        """One `Outputs` a teacher for a view, without gradient."""
        ...

    def params(self, variables: Sequence[Any]) -> Flat:
        """The first teacher's parameters, for methods that reuse a part of it; {} without."""
        ...
