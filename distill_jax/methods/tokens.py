"""Distillation through a token of its own, for vision transformers (DeiT)."""

import dataclasses

import jax.numpy as jnp

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.methods.base import Method, choice_option, register


@dataclasses.dataclass(frozen=True)
class DistillationToken(Method):
    """The class token learns the labels, the distillation token the teacher (Touvron et al. 2021).

    DeiT's hard distillation, `hard=True`: cross-entropy with the teacher's decision; with False,
    soft: T² · KL(teacher_T ‖ student_T). The published weights are 1/2 and 1/2.

    Attributes:
      hard: whether the teacher's decision is the target, or its distribution.
    """

    published_weight = 0.5

    hard: bool = True

    def __post_init__(self):
        choice_option("deit", "hard", self.hard, (False, True))

    def adapters(self, pair, key):
        if "distillation_logits" not in pair.student.taps:
            raise UsageError(
                f"student.name={pair.student_spec.name!r}: deit expects a network with a "
                "distillation token, such as 'deit_tiny'"
            )
        return {}

    def hard_logits(self, student):
        return student.taps["class_logits"]

    def __call__(self, student, teacher, context):
        logits = student.taps["distillation_logits"]
        if self.hard:
            return losses.cross_entropy(logits, jnp.argmax(teacher.logits, axis=-1))
        return losses.soft_target(logits, teacher.logits, temperature=context.temperature)


register("deit", DistillationToken)
