"""Distillation through a token of its own in vision transformers (DeiT)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.methods.base import (
    Arrays,
    Context,
    Method,
    Pair,
    Values,
    choice_option,
    register,
)
from distill_jax.models import Outputs


@dataclasses.dataclass(frozen=True)
class DistillationToken(Method):
    """The class token learns the labels, the distillation token the teacher (Touvron et al. 2021).

    The published weights are 1/2 and 1/2.

    Attributes:
      hard: True for DeiT's hard distillation, cross-entropy with the teacher's most likely class;
        False for soft distillation, T² · KL(teacher_T ‖ student_T).
    """

    published_weight = 0.5

    hard: bool = True

    def __post_init__(self):
        choice_option("deit", "hard", self.hard, (False, True))

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        if "distillation_logits" not in pair.student.taps:
            raise UsageError(
                f"student.name={pair.student_spec.name!r}: deit expects a network with a "
                "distillation token, such as 'deit_tiny'"
            )
        return {}

    def hard_logits(self, student: Outputs) -> Float[Array, "batch classes"]:
        return student.taps["class_logits"]

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        logits = student.taps["distillation_logits"]
        if self.hard:
            return losses.cross_entropy(logits, jnp.argmax(teacher.logits, axis=-1))
        return losses.soft_target(logits, teacher.logits, temperature=context.temperature)


register("deit", DistillationToken)
