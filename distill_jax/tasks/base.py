"""The parts of a run, whatever the kind of its data."""

import abc
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.training import state
from distill_jax.training.recipe import Recipe

# (parameters, statistics) -> the figures of a split
Evaluate = Callable[[Any, Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts(abc.ABC):
    """Everything that a run is made of, opened and checked.

    Attributes:
      config: resolved.
      mesh: the devices.
      recipes: what is fixed about a step, one for each stage of the method, in their order.
      initial: the state before the first step, on the devices; a run uses it up.
      frozen: the parameters that no step changes, on the devices.
      resident: the training set on the devices, or {}.
      evaluators: "validation" (where held out) and "test".
      steps_per_epoch: examples over batch size.
      description: {"teachers": ..., "data": ...} for the manifest.
    """

    config: ConfigDict
    mesh: Mesh
    recipes: tuple[Recipe, ...]
    initial: state.TrainState
    frozen: state.Frozen
    resident: dict[str, jax.Array]
    evaluators: Mapping[str, Evaluate]
    steps_per_epoch: float
    description: dict[str, Any]

    @property
    def layout(self) -> state.TrainState:
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

    @abc.abstractmethod
    def batches(self, position: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches of the run, without end, from the given number of examples on.

        Of many processes each gets its own rows.
        """

    @abc.abstractmethod
    def ids(self, step: int) -> np.ndarray:
        """The ids of the examples of a step."""

    @abc.abstractmethod
    def save(self, folder: str | os.PathLike, params: Any, stats: Any) -> str:
        """Writes a student of this run; returns its fingerprint.

        All processes call it together, with arrays on the devices, which come to the host one at a
        time; the first process writes.
        """

    @abc.abstractmethod
    def load(self, folder: str | os.PathLike) -> tuple[Any, Any]:
        """Parameters and statistics of a student that `save` wrote, on the devices."""
