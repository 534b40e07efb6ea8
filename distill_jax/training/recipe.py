"""Everything about a step that does not change during a stage of the training."""

import dataclasses
from typing import Any

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
    """Where the training stands: what the schedules say.

    Attributes:
      progress: fraction of the stage that is done.
      epoch: epochs of the stage that are done.
      temperature: of the soft targets.
    """

    progress: jax.Array
    epoch: jax.Array
    temperature: jax.Array


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a compiled step is made from; one for each stage of a method.

    What is shown in a step and what that costs is the matter of a kind of data: `images` has one
    subclass, `text` the other.

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
      accumulate: parts of a batch, one after the other.
      log_every: the sums of the metrics start anew after this many steps.
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

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what `loss` measures, "loss" and "accuracy" among them."""
        raise NotImplementedError

    @property
    def ahead(self) -> int:
        """Steps whose teacher answers are computed in one forward pass; 1 for none ahead."""
        return 1

    def trains(self, group: str, name: str) -> bool:
        """Whether the stage trains a parameter of "student" or "adapters"."""
        del group, name
        return True

    def moment(self, step: jax.Array) -> Moment:
        """Where the training stands at a step, counted from the start of the run."""
        done = jnp.asarray(step - self.begin, jnp.float32)
        progress = done / self.steps
        return Moment(progress, done / self.steps_per_epoch, self.temperature.at(progress))

    def answers_ahead(
        self, state: TrainState, frozen: Frozen, resident: Batch, batches: Batch
    ) -> Any:
        """The teachers' answers to the next K steps; called where `ahead` is above 1.

        Args:
          state: before the first of the steps.
          frozen: the parameters that no step changes.
          resident: the data set on the devices, or {}.
          batches: of the K steps, [K, B, ...].

        Returns:
          Arrays [K, B, ...] for `shown`.
        """
        raise NotImplementedError

    def frozen_at(self, state: TrainState, frozen: Frozen) -> Frozen:
        """What is frozen during a step: a student that teaches itself adds its average."""
        del state
        return frozen

    def shown(
        self, state: TrainState, frozen: Frozen, resident: Batch, batch: Batch, answers: Any
    ) -> dict[str, Any]:
        """What a step shows to `loss`: arrays of B examples, [B, ...].

        Args:
          state: before the step.
          frozen: the parameters that the step does not change.
          resident: the data set on the devices, or {}.
          batch: of the step.
          answers: the teachers' on this step, where they are known already, else None.
        """
        raise NotImplementedError

    def loss(
        self,
        now: Moment,
        frozen: Frozen,
        trainable: dict[str, Flat],
        kept: tuple[Flat, Flat],
        part: dict[str, Any],
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[tuple[Flat, Flat], dict[str, jax.Array]]]:
        """The loss of a part of a batch.

        Args:
          now: where the training stands.
          frozen: the parameters that the step does not change.
          trainable: {"student", "adapters"}.
          kept: the student's batch statistics and the method's memory, before.
          part: what `shown` gave, of some of the examples.
          key: of the dropout and of the method's draws.

        Returns:
          (loss, ((statistics, memory), measures)), the measures by `metrics`.
        """
        raise NotImplementedError
