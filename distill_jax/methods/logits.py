"""Methods that read only logits: any student with any teacher, whatever their features.

A divergence between tempered distributions is multiplied with the power of the temperature that
keeps its gradient's size as T grows: T² for those that are quadratic in the difference of the
logits (Hinton, Vinyals & Dean 2015, section 2.1), T for the total variation, which is linear in it.

The divergences have the option `standardize`: the logits of both networks are first standardised to
mean 0 and deviation 1 over the classes (Sun et al. 2024, Logit standardization in knowledge
distillation, algorithm 1); the student's gradient flows through both statistics.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.losses.vocab import VocabDivergence
from distill_jax.methods.base import (
    Arrays,
    Context,
    Method,
    Pair,
    Stage,
    Values,
    choice_option,
    number_option,
    register,
)
from distill_jax.models import Outputs

Logits = Float[Array, "batch classes"]


@dataclasses.dataclass(frozen=True)
class OnLogits(Method):
    """A method of two arrays of logits; subclasses define `between`."""

    standardize: bool = False

    def __post_init__(self):
        choice_option("this method", "standardize", self.standardize, (False, True))

    def logits(self, student: Outputs, teacher: Outputs) -> tuple[Logits, Logits]:
        """Both logits, standardised if the option is set."""
        if not self.standardize:
            return student.logits, teacher.logits
        return losses.standardise(student.logits), losses.standardise(teacher.logits)

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        return self.between(*self.logits(student, teacher), context)

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        """One value per example from the logits of student and teacher."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Divergence(OnLogits):
    """A divergence of two distributions, over classes or, on text, over a vocabulary at each token.

    Attributes:
      vocab_formula: name of the same divergence in `losses.vocab.FORMULAS`.
      skew_option: the option that is the formula's skew; "" for a formula without one.
    """

    only = None

    vocab_formula: ClassVar[str]
    skew_option: ClassVar[str] = ""

    def vocab_divergence(self) -> VocabDivergence:
        if self.standardize:
            raise UsageError("method.standardize=True: not for text; expected False")
        skew = getattr(self, self.skew_option) if self.skew_option else None
        return VocabDivergence(self.vocab_formula, skew)


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """The labels alone: how teachers and baselines are trained."""

    needs_teacher = False
    only = None

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(None),)


@dataclasses.dataclass(frozen=True)
class SoftTarget(Divergence):
    """T² · KL(teacher_T ‖ student_T) (Hinton, Vinyals & Dean 2015, section 2)."""

    vocab_formula = "forward_kl"

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        return losses.soft_target(student, teacher, temperature=context.temperature)


@dataclasses.dataclass(frozen=True)
class LogitMSE(OnLogits):
    """Mean over classes of the squared difference of logits (Ba & Caruana 2014); no temperature."""

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        return losses.logit_mse(student, teacher)


@dataclasses.dataclass(frozen=True)
class ReverseKL(Divergence):
    """T² · KL(student_T ‖ teacher_T), which seeks the teacher's modes (Gu et al. 2024, MiniLLM)."""

    vocab_formula = "reverse_kl"

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        values = losses.reverse_kl(student, teacher, temperature=context.temperature)
        return context.temperature**2 * values


@dataclasses.dataclass(frozen=True)
class JensenShannon(Divergence):
    """T² · JSD(β) of the softened distributions (Agarwal et al. 2024, GKD, equation 1)."""

    vocab_formula = "jensen_shannon"
    skew_option = "beta"

    beta: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        number_option("jensen_shannon", "beta", self.beta, 0.0, 1.0)
        if self.beta in (0.0, 1.0):  # the formula is then zero everywhere
            raise UsageError(
                f"method.beta={self.beta!r}: jensen_shannon is zero at 0 and 1; expected a number "
                "between, or method.name='soft_target' or 'reverse_kl'"
            )

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        values = losses.jensen_shannon(
            student, teacher, temperature=context.temperature, beta=self.beta
        )
        return context.temperature**2 * values


@dataclasses.dataclass(frozen=True)
class SkewKL(Divergence):
    """T² · KL(teacher_T ‖ α teacher_T + (1 − α) student_T) (Ko et al. 2024, DistiLLM)."""

    vocab_formula = "skew_kl"
    skew_option = "alpha"

    alpha: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        number_option("skew_kl", "alpha", self.alpha, 0.0, 1.0)
        if self.alpha == 1.0:
            raise UsageError("method.alpha=1.0: skew_kl is zero there; expected a number below 1")

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        values = losses.skew_kl(student, teacher, temperature=context.temperature, alpha=self.alpha)
        return context.temperature**2 * values


@dataclasses.dataclass(frozen=True)
class SkewReverseKL(Divergence):
    """T² · KL(student_T ‖ (1 − α) teacher_T + α student_T) (Ko et al. 2024, DistiLLM)."""

    vocab_formula = "skew_reverse_kl"
    skew_option = "alpha"

    alpha: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        number_option("skew_reverse_kl", "alpha", self.alpha, 0.0, 1.0)
        if self.alpha == 1.0:
            raise UsageError(
                "method.alpha=1.0: skew_reverse_kl is zero there; expected a number below 1"
            )

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        values = losses.skew_reverse_kl(
            student, teacher, temperature=context.temperature, alpha=self.alpha
        )
        return context.temperature**2 * values


@dataclasses.dataclass(frozen=True)
class TotalVariation(Divergence):
    """T · ½ Σ |teacher_T − student_T|."""

    vocab_formula = "total_variation"

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        values = losses.total_variation(student, teacher, temperature=context.temperature)
        return context.temperature * values


def warm_up(context: Context, epochs: float, first: int = 1) -> Float[Array, ""]:
    """The factor of a weight that grows: min((n + first) / epochs, 1) in epoch n = 0, 1, ...

    With epochs=0 it is 1.
    """
    if not epochs:
        return jnp.float32(1)
    return jnp.minimum((jnp.floor(context.epoch + 1e-4) + first) / epochs, 1.0)


@dataclasses.dataclass(frozen=True)
class DecoupledKD(OnLogits):
    """T² · (α TCKD + β NCKD) (Zhao et al. 2022, DKD, equation 7).

    Attributes:
      alpha: weight of the divergence between "the label" and "not the label".
      beta: weight of the divergence among the other classes; 8, 6 or 2 by pair in the authors'
        code.
      warmup_epochs: the weight grows linearly over the first epochs, from 1/warmup_epochs, as in
        the authors' code; the paper does not mention it.
    """

    alpha: float = 1.0
    beta: float = 8.0
    warmup_epochs: float = 20.0

    def __post_init__(self):
        super().__post_init__()
        for option in ("alpha", "beta", "warmup_epochs"):
            number_option("dkd", option, getattr(self, option), 0.0, float("inf"))

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        values = losses.decoupled_kd(
            student,
            teacher,
            context.labels,
            temperature=context.temperature,
            alpha=self.alpha,
            beta=self.beta,
        )
        return warm_up(context, self.warmup_epochs) * values


@dataclasses.dataclass(frozen=True)
class Dist(OnLogits):
    """β (1 − ρ over the classes of an example) + γ (1 − ρ over the examples of a class).

    ρ is Pearson's correlation of probabilities at T (Huang et al. 2022, DIST). The second part is
    over the global batch. The published weight of the sum is 2.

    Attributes:
      beta: weight of the relations among classes.
      gamma: weight of the relations among examples.
      variant: "code" multiplies with T², "paper" does not.
    """

    published_weight = 2.0

    beta: float = 1.0
    gamma: float = 1.0
    variant: str = "code"

    def __post_init__(self):
        super().__post_init__()
        choice_option("dist", "variant", self.variant, ("code", "paper"))
        for option in ("beta", "gamma"):
            number_option("dist", option, getattr(self, option), 0.0, float("inf"))

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        values = losses.dist(
            student, teacher, temperature=context.temperature, beta=self.beta, gamma=self.gamma
        )
        return context.temperature**2 * values if self.variant == "code" else values


@dataclasses.dataclass(frozen=True)
class MultiLevelLogits(OnLogits):
    """KD, batch and class correlations at several temperatures (Jin et al. 2023, MLKD).

    Each step has a weakly and a strongly augmented view (`data.augment.strong_*`), with the
    cross-entropy on both. `standardize` applies to the KD terms alone, as in Sun et al.

    Attributes:
      variant: "code" is what the released code computes: each term is a mean before it is masked,
        so that the masks halve it, and T = 2 and 6 of the strong view read the weak one.
        "paper" is without these slips: on the weak view, KD and batch correlations apply to the
        less confident half of the batch; KD on the strong view has all five temperatures.
      temperatures: those in addition to `method.temperature`.
    """

    strong_view = True
    published_weight = 0.9

    variant: str = "code"
    temperatures: tuple[float, ...] = (3.0, 5.0, 2.0, 6.0)

    def __post_init__(self):
        super().__post_init__()
        choice_option("mlkd", "variant", self.variant, ("code", "paper"))
        if not all(isinstance(t, int | float) and t > 0 for t in self.temperatures):
            raise UsageError(
                f"method.temperatures={self.temperatures!r}: mlkd expects numbers above 0"
            )

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        assert context.strong is not None  # `strong_view` is set
        strong_student, strong_teacher = context.strong
        weak, strong = (student, teacher), (strong_student, strong_teacher)
        temperatures: tuple[float | jax.Array, ...] = (context.temperature, *self.temperatures)
        confident = jax.nn.softmax(teacher.logits.astype(jnp.float32))
        rows = _lower_half(jnp.max(confident, axis=-1))
        classes = _lower_half(jnp.sum(confident, axis=0))

        def kd(view: tuple[Outputs, Outputs], temperature: float | jax.Array) -> Values:
            values = losses.soft_target(*self.logits(*view), temperature=temperature)
            return values if self.variant == "paper" else jnp.mean(values) * jnp.ones_like(values)

        total = jnp.zeros(student.logits.shape[0], jnp.float32)
        for index, temperature in enumerate(temperatures):
            total += rows * kd(weak, temperature)
            late = self.variant == "code" and index >= 3
            total += kd(weak if late else strong, temperature)
            logits = student.logits, teacher.logits
            batch = losses.batch_correlation(*logits, temperature=temperature)
            columns = losses.class_correlation(*logits, temperature=temperature)
            if self.variant == "paper":
                total += rows * batch + columns
            else:
                total += jnp.mean(rows) * jnp.mean(batch) + jnp.mean(classes) * columns
        return total


def _lower_half(values: Float[Array, " count"]) -> Float[Array, " count"]:
    """1 where a value is at most the median, else 0."""
    return (values <= jnp.median(values)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class CurriculumTemperature(OnLogits):
    """Soft targets at a temperature that is learnt against the student (Li et al. 2023, CTKD).

    T = start + range · sigmoid(θ). θ is initialised to 1 and its gradient reversed, so that the
    temperature makes the task harder; the reversed gradient is multiplied with a factor that grows
    from 0 to 1 as half a cosine over `ramp_epochs`. The global form of the paper;
    `method.temperature` is not read.

    Attributes:
      start: the lowest temperature.
      range: the highest temperature is start + range.
      ramp_epochs: how long the factor grows.
      decoupled: DKD with α = 1 in place of soft targets.
      beta: DKD's β.
    """

    start: float = 1.0
    range: float = 20.0
    ramp_epochs: float = 10.0
    decoupled: bool = False
    beta: float = 8.0

    def __post_init__(self):
        super().__post_init__()
        choice_option("ctkd", "decoupled", self.decoupled, (False, True))
        for option in ("start", "range", "ramp_epochs", "beta"):
            number_option("ctkd", option, getattr(self, option), 1e-3, float("inf"))

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        del pair, key
        return {"theta": jnp.float32(1)}

    def between(self, student: Logits, teacher: Logits, context: Context) -> Values:
        done = jnp.clip((jnp.floor(context.epoch + 1e-4) + 1) / self.ramp_epochs, 0.0, 1.0)
        factor = 0.5 - 0.5 * jnp.cos(jnp.pi * done)
        theta = context.adapters["theta"]
        # The value is theta; the gradient is -factor times that of theta.
        reversed_ = jax.lax.stop_gradient(theta * (1 + factor)) - factor * theta
        temperature = self.start + self.range * jax.nn.sigmoid(reversed_)
        if self.decoupled:
            return losses.decoupled_kd(
                student, teacher, context.labels, temperature=temperature, beta=self.beta
            )
        return losses.soft_target(student, teacher, temperature=temperature)


register("supervised", Supervised)
register("soft_target", SoftTarget)
register("logit_mse", LogitMSE)
register("reverse_kl", ReverseKL)
register("jensen_shannon", JensenShannon)
register("skew_kl", SkewKL)
register("skew_reverse_kl", SkewReverseKL)
register("total_variation", TotalVariation)
register("dkd", DecoupledKD)
register("dist", Dist)
register("mlkd", MultiLevelLogits)
register("ctkd", CurriculumTemperature)
