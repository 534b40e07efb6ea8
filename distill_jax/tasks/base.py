"""What a task gives: the parts of a run, and the same step as shapes for a plan."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.data.order import Order
from distill_jax.models import Flat
from distill_jax.training.recipe import Recipe
from distill_jax.training.state import Frozen, TrainState

#: (parameters, batch statistics) -> the figures of a split.
Evaluate = Callable[[Flat, Flat], dict[str, Any]]

#: (parameters, batch statistics) -> arrays by name that the page of a run shows, bounded in size.
MakeRecord = Callable[[Flat, Flat], dict[str, np.ndarray]]


class Feed(Protocol):
    """The batches of a run, of which each process gets its own rows."""

    def at(self, position: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches without end, from the example at `position` of the training order on."""
        ...


class StudentFiles(Protocol):
    """How the students of a run are written and read."""

    def save(self, folder: str | os.PathLike, params: Flat, stats: Flat) -> str:
        """Writes a student; returns its fingerprint.

        All processes call it together, with arrays on the devices, which come to the host one at a
        time; the first process writes.
        """
        ...

    def load(self, folder: str | os.PathLike) -> tuple[Flat, Flat]:
        """Parameters and statistics of a student that `save` wrote, on the devices."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that a run is made of, opened and checked.

    Attributes:
      config: resolved.
      mesh: the devices.
      recipes: what is fixed about a step, one for each stage of the method, in their order.
      initial: the state before the first step, on the devices; a run donates it.
      frozen: the parameters that no step changes, on the devices.
      resident: the training set on the devices, or {}.
      order: of the training examples.
      feed: the training batches.
      evaluators: "validation" (where held out) and "test".
      files: how students are written and read.
      steps_per_epoch: examples over batch size.
      description: {"teachers": ..., "data": ...} for the manifest.
      notes: lines for the user about what may be wrong with the inputs, or could not be told.
      record: makes what the page of the run shows of the test split; None where there is none.
    """

    config: ConfigDict
    mesh: Mesh
    recipes: tuple[Recipe, ...]
    initial: TrainState
    frozen: Frozen
    resident: dict[str, jax.Array]
    order: Order
    feed: Feed
    evaluators: Mapping[str, Evaluate]
    files: StudentFiles
    steps_per_epoch: float
    description: dict[str, Any]
    notes: tuple[str, ...] = ()
    record: MakeRecord | None = None

    @property
    def layout(self) -> TrainState:
        """The shardings of the state."""
        return jax.tree.map(lambda a: a.sharding, self.initial)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the last stage, the training itself."""
        return self.recipes[-1]

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return self.recipe.begin + self.recipe.steps

    def recipe_at(self, step: int) -> Recipe:
        """The recipe of the step numbered `step` from 0."""
        return next(recipe for recipe in reversed(self.recipes) if recipe.begin <= step)

    def evaluated(self, now: TrainState) -> tuple[Flat, Flat]:
        """Parameters and statistics of a state that are evaluated: of a quantized student, its
        quantized values, which are those that `files` writes.
        """
        params, stats = now.evaluated
        quantize = self.recipe.quantize
        return params if quantize is None else quantize(params), stats

    def ids(self, step: int) -> np.ndarray:
        """The ids of the examples of a step."""
        size = self.config.training.batch_size
        return self.order.ids(step * size, size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractStep:
    """All that a step takes, as shapes with shardings.

    Attributes:
      config: resolved.
      mesh: the devices.
      recipe: of the last stage of the method, the training itself.
      state: the `TrainState`.
      frozen: the parameters that no step changes.
      resident: the data set on the devices, or {}.
      batches: of `recipe.ahead` steps, [n, B, ...].
      total_steps: of the run; None where only the data can tell.
      unit: what `units` counts, "tokens" or "images".
      units: how many of them a step computes on.
      parameters: how many numbers "student" and "teacher" have.
      saved_bytes: of the arrays of the student's folder, quantized where it is so trained.
    """

    config: ConfigDict
    mesh: Mesh
    recipe: Recipe
    state: Any
    frozen: Frozen
    resident: dict[str, Any]
    batches: dict[str, Any]
    total_steps: int | None
    unit: str
    units: int
    parameters: dict[str, int]
    saved_bytes: int
