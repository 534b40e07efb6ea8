"""What a teacher is, for the step: it is asked about a view and answers."""

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
      draws: the numbers of `data.augment.draw`, by which a stored answer is found.
      stored_answers: what came with the batch from a store on the host, by name; {} otherwise.
    """

    images: jax.Array
    ids: jax.Array
    draws: dict[str, jax.Array]
    stored_answers: dict[str, jax.Array]


class Teacher(Protocol):
    """Where answers come from.

    Attributes:
      weights: one a teacher, summing to 1.
      own_average: whether the answers are those of the student's own average.
      precomputed: whether the answers were given before, so that the pixels are not looked at.
    """

    weights: tuple[float, ...]
    own_average: bool
    precomputed: bool

    def outputs(self, variables: Sequence[Any], view: View) -> list[Outputs]:
        """One `Outputs` a teacher for a view, without gradient."""

    def params(self, variables: Sequence[Any]) -> Flat:
        """The first teacher's parameters, for methods that reuse a part of it; {} without."""
