"""Methods that compare feature maps without trainable arrays: AT, NST, SP."""

import dataclasses

import jax
from jaxtyping import Array, Float

from distill_jax import losses
from distill_jax.methods import taps
from distill_jax.methods.base import (
    Arrays,
    Context,
    Method,
    Pair,
    Values,
    add_up,
    choice_option,
    register,
)
from distill_jax.models import Outputs

Map = Float[Array, "batch height width channels"]
TeacherMap = Float[Array, "batch teacher_height teacher_width teacher_channels"]


@dataclasses.dataclass(frozen=True)
class OnStages(Method):
    """A method that adds up a loss over pairs of feature maps; subclasses define `between`.

    Attributes:
      student_taps: names of the student's maps; () for all stages.
      teacher_taps: names of the teacher's.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[str, str]]:
        """Pairs of names of taps."""
        name = type(self).__name__
        return taps.paired(student, teacher, name, self.student_taps, self.teacher_taps)

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        del key
        self.pairs(*pair.outputs)  # an error before training if there are no maps
        return {}

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        del context
        return add_up(
            self.between(student.taps[ours], teacher.taps[theirs])
            for ours, theirs in self.pairs(student, teacher)
        )

    def between(self, student: Map, teacher: TeacherMap) -> Values:
        """One value per example from a pair of maps."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class AttentionTransfer(OnStages):
    """Where in the image activations are large: squared, averaged over channels, normalised.

    Zagoruyko & Komodakis 2017 (AT), equation 2. Maps of different sizes are averaged down to the
    smaller one.

    Attributes:
      variant: "code": the mean over positions of the squared difference, to which the published
        weight of 1000 belongs; "paper": the Euclidean norm of the difference (with weight β/2).
    """

    published_weight = 1000.0

    variant: str = "code"

    def __post_init__(self):
        choice_option("at", "variant", self.variant, ("code", "paper"))

    def between(self, student: Map, teacher: TeacherMap) -> Values:
        return losses.attention_transfer(student, teacher, variant=self.variant)


@dataclasses.dataclass(frozen=True)
class NeuronSelectivity(OnStages):
    """Distance of the distributions of neurons' activation maps (Huang & Wang 2017, NST).

    Squared maximum mean discrepancy with the polynomial kernel of degree 2.
    """

    published_weight = 50.0

    def between(self, student: Map, teacher: TeacherMap) -> Values:
        return losses.neuron_selectivity(student, teacher)


@dataclasses.dataclass(frozen=True)
class SimilarityPreserving(Method):
    """Which examples of the batch have similar activations (Tung & Mori 2019, SP).

    Over the global batch; the last feature map by default.

    Attributes:
      student_tap: name of the student's feature, any shape; "" for the last map.
      teacher_tap: name of the teacher's.
    """

    published_weight = 3000.0

    student_tap: str = ""
    teacher_tap: str = ""

    def _names(self, student: Outputs, teacher: Outputs) -> tuple[str, str]:
        ours = taps.last(student, "sp", "student_tap", self.student_tap)
        return ours, taps.last(teacher, "sp", "teacher_tap", self.teacher_tap)

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        del key
        self._names(*pair.outputs)
        return {}

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        del context
        ours, theirs = self._names(student, teacher)
        return losses.similarity_preserving(student.taps[ours], teacher.taps[theirs])


register("at", AttentionTransfer)
register("nst", NeuronSelectivity)
register("sp", SimilarityPreserving)
