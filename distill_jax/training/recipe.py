"""What a step is made from, and does not change during a stage of the training.

`Recipe` has the fields that every step needs; `distill_jax.tasks` has one subclass for images and
one for text, which say what a step reads and what it costs.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from distill_jax.optim.optimizers import LearningRate
from distill_jax.optim.schedules import Schedule
from distill_jax.training.state import Frozen, TrainState

Flat = dict[str, jax.Array]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Moment:
    """How far the training is, and what the schedules give there.

    Attributes:
      progress: fraction of the stage that is done.
      epoch: epochs of the stage that are done.
      temperature: of the soft targets.
    """

    progress: jax.Array
    epoch: jax.Array
    temperature: jax.Array


class ForwardState(NamedTuple):
    """The arrays that a forward pass replaces, rather than the optimizer.

    Attributes:
      stats: the student's batch statistics.
      memory: the method's, such as a memory bank.
    """

    stats: Flat
    memory: Flat


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """What every recipe needs to know of a stage: its length, weights and optimizer.

    Attributes:
      begin: the first step of the stage.
      steps: the number of its steps.
      steps_per_epoch: examples over batch size.
      hard_weight: weight of the cross-entropy with the labels.
      soft_weight: weight of the method's loss.
      temperature: of the soft targets.
      optimizer: applies to {"student": ..., "adapters": ...}.
      learning_rate: the rate in the optimizer, as a function of the step within the stage.
      max_norm: constraint on dense units' incoming weights; 0 for none.
      ema_decay: of the moving average; 0 for none.
      accumulate: how many parts a batch is computed in, one after the other.
      log_every: the sums of the metrics are reset after this many steps.
      ema_warmup: whether the moving average begins with smaller decays.
      quantize: the student's parameters -> what its forward pass takes in their place, their
        quantized values; None for the parameters as they are.
    """

    begin: int
    steps: int
    steps_per_epoch: float
    hard_weight: Schedule
    soft_weight: Schedule
    temperature: Schedule
    optimizer: optax.GradientTransformation
    learning_rate: LearningRate
    max_norm: float
    ema_decay: float
    accumulate: int
    log_every: int
    ema_warmup: bool = False
    quantize: Callable[[Flat], Flat] | None = None

    def average_rate(self, step: jax.Array) -> jax.Array | float:
        """How much of the student the moving average takes over in a step, counted from 0.

        1 - ema_decay; with a warm-up at least 9 / (10 + step), as TensorFlow's
        ExponentialMovingAverage with num_updates.
        """
        rate = 1.0 - self.ema_decay
        if not self.ema_warmup:
            return rate
        return jnp.maximum(rate, 9.0 / (10.0 + jnp.asarray(step, jnp.float32)))

    def moment(self, step: jax.Array) -> Moment:
        """How far the training is at a step, which is counted from the start of the run."""
        done = jnp.asarray(step - self.begin, jnp.float32)
        progress = done / self.steps
        return Moment(progress, done / self.steps_per_epoch, self.temperature.at(progress))


@dataclasses.dataclass(frozen=True)
class Recipe(StageSettings, abc.ABC):
    """What a compiled step is made from; one for each stage of a method."""

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of what `loss` measures, "loss" and "accuracy" among them."""

    @property
    def ahead(self) -> int:
        """Steps whose teacher outputs are computed in one forward pass; 1 for none ahead."""
        return 1

    def trains(self, group: str, name: str) -> bool:
        """Whether the stage trains a parameter of "student" or "adapters"."""
        del group, name
        return True

    def outputs_ahead(
        self, state: TrainState, frozen: Frozen, resident: Batch, batches: Batch
    ) -> Any:
        """The teachers' outputs on the next K steps; called where `ahead` is above 1.

        Args:
          state: before the first of the steps.
          frozen: the parameters that no step changes.
          resident: the data set on the devices, or {}.
          batches: of the K steps, [K, B, ...].

        Returns:
          Arrays [K, B, ...] for `inputs`.
        """
        raise NotImplementedError

    def frozen_at(self, state: TrainState, frozen: Frozen) -> Frozen:
        """What is frozen during a step: a student that teaches itself adds its average."""
        del state
        return frozen

    @abc.abstractmethod
    def inputs(
        self,
        state: TrainState,
        frozen: Frozen,
        resident: Batch,
        batch: Batch,
        teacher_outputs: Any,
    ) -> dict[str, Any]:
        """What `loss` reads of a batch: arrays of its B examples, [B, ...].

        Args:
          state: before the step.
          frozen: the parameters that the step does not change.
          resident: the data set on the devices, or {}.
          batch: of the step.
          teacher_outputs: on this batch, where they are computed already, else None.
        """

    @abc.abstractmethod
    def loss(
        self,
        moment: Moment,
        frozen: Frozen,
        trainable: dict[str, Flat],
        forward: ForwardState,
        inputs: dict[str, Any],
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[ForwardState, dict[str, jax.Array]]]:
        """The loss of a part of a batch.

        Args:
          moment: how far the training is.
          frozen: the parameters that the step does not change.
          trainable: {"student", "adapters"}.
          forward: batch statistics and memory before the part.
          inputs: what `inputs` gave, of the examples of the part.
          key: of dropout and of the method's draws.

        Returns:
          (loss, (batch statistics and memory after the part, the values of `metrics`)).
        """
