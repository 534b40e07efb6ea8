"""Everything about a step that does not change during a stage of the training."""

import dataclasses
from typing import Any

import optax

from distill_jax.data import augment
from distill_jax.methods import Method, Stage
from distill_jax.models import Spec
from distill_jax.teachers import Teacher
from distill_jax.training.optimizers import LearningRate
from distill_jax.training.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a compiled step is made from; one for each stage of a method.

    Attributes:
      spec: the student's.
      graphdef: the student's static structure.
      augment: how a view is drawn.
      method: the loss against the teacher.
      stage: which stage of it.
      begin: the first step of the stage.
      steps: the number of its steps.
      steps_per_epoch: examples over batch size.
      teachers: where the answers come from, or None.
      teacher_taps: the teacher's taps that the stage reads.
      sum_losses: with several teachers, a loss to each instead of one to their mean.
      look_ahead: steps whose teacher answers are computed in one forward pass.
      hard_weight: weight of the cross-entropy with the labels.
      soft_weight: weight of the method's loss.
      temperature: of the soft targets.
      label_smoothing: of the hard targets, in [0, 1).
      optimizer: applies to {"student": ..., "adapters": ...}.
      learning_rate: the rate in the optimizer, as a function of the step within the stage.
      max_norm: constraint on dense units' incoming weights; 0 for none.
      ema_decay: of the moving average; 0 for none.
      accumulate: parts of a batch, one after the other.
      log_every: the sums of the metrics start anew after this many steps.
    """

    spec: Spec
    graphdef: Any
    augment: augment.Augment
    method: Method
    stage: Stage
    begin: int
    steps: int
    steps_per_epoch: float
    teachers: Teacher | None
    teacher_taps: frozenset[str]
    sum_losses: bool
    look_ahead: int
    hard_weight: Schedule
    soft_weight: Schedule
    temperature: Schedule
    label_smoothing: float
    optimizer: optax.GradientTransformation
    learning_rate: LearningRate
    max_norm: float
    ema_decay: float
    accumulate: int
    log_every: int

    def trains(self, group: str, name: str) -> bool:
        """Whether the stage trains a parameter of "student" or "adapters"."""
        return self.stage.trains(f"{group}/{name}")
