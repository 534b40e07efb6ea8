"""Relations among the examples of the global batch, on pooled features: RKD, PKT, CC."""

import dataclasses

import jax
import jax.numpy as jnp

from distill_jax import losses
from distill_jax.methods import networks, taps
from distill_jax.methods.base import (
    Arrays,
    Context,
    Method,
    Pair,
    Values,
    choice_option,
    integer_option,
    number_option,
    register,
)
from distill_jax.models import Outputs


@dataclasses.dataclass(frozen=True)
class OnPooled(Method):
    """A method that reads one vector per example of each network.

    Attributes:
      student_tap: name of the student's feature, [B, D].
      teacher_tap: name of the teacher's, [B, D'].
    """

    student_tap: str = "pooled"
    teacher_tap: str = "pooled"

    def vectors(self, student: Outputs, teacher: Outputs) -> tuple[taps.Feature, taps.Feature]:
        """Both features, checked to be vectors."""
        ours = taps.tap(student, "student_tap", self.student_tap)
        theirs = taps.tap(teacher, "teacher_tap", self.teacher_tap)
        name = type(self).__name__
        taps.check_vector(ours, name, "student_tap", self.student_tap)
        taps.check_vector(theirs, name, "teacher_tap", self.teacher_tap)
        return ours, theirs

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        del key
        self.vectors(*pair.outputs)
        return {}


@dataclasses.dataclass(frozen=True)
class RelationalKD(OnPooled):
    """Distances between pairs and angles of triplets (Park et al. 2019, RKD).

    Attributes:
      distance: weight of the distances.
      angle: weight of the angles.
    """

    distance: float = 25.0
    angle: float = 50.0

    def __post_init__(self):
        for option in ("distance", "angle"):
            number_option("rkd", option, getattr(self, option), 0.0, float("inf"))

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        vectors = self.vectors(student, teacher)
        return self.distance * losses.relational_distance(
            *vectors
        ) + self.angle * losses.relational_angle(*vectors)


@dataclasses.dataclass(frozen=True)
class ProbabilisticTransfer(OnPooled):
    """Conditional probabilities of being neighbours (Passalis & Tefas 2018, PKT).

    With the paper's cosine kernel, and the mean over all B² pairs of the authors' code, to which
    the weight belongs.
    """

    published_weight = 30000.0

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        return losses.probabilistic_transfer(*self.vectors(student, teacher))


@dataclasses.dataclass(frozen=True)
class CorrelationCongruence(OnPooled):
    """Correlations among the examples of a batch (Peng et al. 2019, CC).

    Attributes:
      variant: "code" (RepDistiller, from the authors): products of the differences of neighbours in
        the batch, after a trained embedding of both networks; "paper": mean squared difference of
        the matrices of a Gaussian kernel, expanded to second order, without embeddings.
      dimension: of the embeddings of "code".
    """

    published_weight = 0.02

    variant: str = "code"
    dimension: int = 128

    def __post_init__(self):
        choice_option("cc", "variant", self.variant, ("code", "paper"))
        integer_option("cc", "dimension", self.dimension, 1)

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        ours, theirs = self.vectors(*pair.outputs)
        if self.variant == "paper":
            return {}
        keys = jax.random.split(key)
        return networks.conv_arrays(
            "student", keys[0], 0, ours.shape[-1], self.dimension
        ) | networks.conv_arrays("teacher", keys[1], 0, theirs.shape[-1], self.dimension)

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        ours, theirs = self.vectors(student, teacher)
        if self.variant == "code":
            ours = networks.conv(context.adapters, "student", ours)
            theirs = networks.conv(context.adapters, "teacher", theirs)
            # The loss depends on the difference alone and stops the teacher's gradient. Passing
            # the difference as the student trains both embeddings.
            ours, theirs = ours - theirs, jnp.zeros_like(theirs)
        return losses.correlation_congruence(ours, theirs, variant=self.variant)


register("rkd", RelationalKD)
register("pkt", ProbabilisticTransfer)
register("cc", CorrelationCongruence)
