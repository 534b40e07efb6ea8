"""Methods that read nothing but logits: no adapters, any student with any teacher.

The divergences between softened distributions are multiplied with the power of the temperature that
keeps their gradient's size as T grows: T² for those that are quadratic in the logits' difference
(Hinton, Vinyals & Dean 2015, section 2.1), T for the total variation, which is linear in it.
"""

import dataclasses

import jax

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.methods.base import number_option, register
from distill_jax.models import Outputs


class _OnLogits:
    """A method without adapters."""

    needs_teacher = True

    def adapters(self, student: Outputs, teacher: Outputs, key: jax.Array) -> dict:
        del student, teacher, key
        return {}


@dataclasses.dataclass(frozen=True)
class Supervised(_OnLogits):
    """The labels alone: how teachers and baselines are trained."""

    needs_teacher = False

    def __call__(self, student, teacher, labels, adapters, temperature):
        raise AssertionError("training on labels alone has no soft loss")


@dataclasses.dataclass(frozen=True)
class SoftTarget(_OnLogits):
    """T² · KL(teacher_T ‖ student_T) (Hinton, Vinyals & Dean 2015, section 2)."""

    def __call__(self, student, teacher, labels, adapters, temperature):
        return losses.soft_target(student.logits, teacher.logits, temperature=temperature)


@dataclasses.dataclass(frozen=True)
class LogitMSE(_OnLogits):
    """Mean over classes of the squared difference of logits (Ba & Caruana 2014); no temperature."""

    def __call__(self, student, teacher, labels, adapters, temperature):
        return losses.logit_mse(student.logits, teacher.logits)


@dataclasses.dataclass(frozen=True)
class ReverseKL(_OnLogits):
    """T² · KL(student_T ‖ teacher_T), which seeks the teacher's modes (Gu et al. 2024, MiniLLM)."""

    def __call__(self, student, teacher, labels, adapters, temperature):
        values = losses.reverse_kl(student.logits, teacher.logits, temperature=temperature)
        return temperature**2 * values


@dataclasses.dataclass(frozen=True)
class JensenShannon(_OnLogits):
    """T² · JSD(β) of the softened distributions (Agarwal et al. 2024, GKD, equation 1)."""

    beta: float = 0.5

    def __post_init__(self):
        number_option("jensen_shannon", "beta", self.beta, 0.0, 1.0)
        if self.beta in (0.0, 1.0):  # the formula is then zero everywhere
            raise UsageError(
                f"method.beta={self.beta!r}: jensen_shannon is zero at 0 and 1; expected a number "
                "between, or method.name='soft_target' or 'reverse_kl'"
            )

    def __call__(self, student, teacher, labels, adapters, temperature):
        values = losses.jensen_shannon(
            student.logits, teacher.logits, temperature=temperature, beta=self.beta
        )
        return temperature**2 * values


@dataclasses.dataclass(frozen=True)
class SkewKL(_OnLogits):
    """T² · KL(teacher_T ‖ α teacher_T + (1 − α) student_T) (Ko et al. 2024, DistiLLM)."""

    alpha: float = 0.1

    def __post_init__(self):
        number_option("skew_kl", "alpha", self.alpha, 0.0, 1.0)
        if self.alpha == 1.0:
            raise UsageError("method.alpha=1.0: skew_kl is zero there; expected a number below 1")

    def __call__(self, student, teacher, labels, adapters, temperature):
        values = losses.skew_kl(
            student.logits, teacher.logits, temperature=temperature, alpha=self.alpha
        )
        return temperature**2 * values


@dataclasses.dataclass(frozen=True)
class TotalVariation(_OnLogits):
    """T · ½ Σ |teacher_T − student_T|."""

    def __call__(self, student, teacher, labels, adapters, temperature):
        values = losses.total_variation(student.logits, teacher.logits, temperature=temperature)
        return temperature * values


register("supervised", Supervised)
register("soft_target", SoftTarget)
register("logit_mse", LogitMSE)
register("reverse_kl", ReverseKL)
register("jensen_shannon", JensenShannon)
register("skew_kl", SkewKL)
register("total_variation", TotalVariation)
