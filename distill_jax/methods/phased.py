"""Methods with a stage before the main training: activation boundaries, FSP and factor transfer.

The stage is a part of the same run: logged, checkpointed and resumed with it. The main training
then starts with a new optimizer state and learning rate, as in RepDistiller (Tian et al. 2020).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.methods import networks, taps
from distill_jax.methods.base import (
    Arrays,
    Context,
    Method,
    Pair,
    Stage,
    Values,
    add_up,
    choice_option,
    number_option,
    register,
)
from distill_jax.models import Outputs


def _all_but_classifier(name: str) -> bool:
    """What an earlier stage trains of a student."""
    return not name.startswith("student/classifier/")


@dataclasses.dataclass(frozen=True)
class ActivationBoundary(Method):
    """First the signs of the teacher's pre-activations, then the labels (Heo et al. 2019, AB).

    Over all stages of the networks, stage i of L with weight 2^(i - L + 1), times 3/1000 as in
    RepDistiller. A 1x1 convolution (or one that changes the size) with batch normalisation connects
    maps of different shapes.

    Attributes:
      student_taps: names of the stages that are read before their ReLU; () for all.
      teacher_taps: the teacher's.
      margin: of the hinge, distance of a pre-activation from 0.
      init_epochs: length of the stage before the training on labels.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    margin: float = 1.0
    init_epochs: float = 30.0

    def __post_init__(self):
        number_option("ab", "margin", self.margin, 0.0, float("inf"))
        number_option("ab", "init_epochs", self.init_epochs, 1e-3, 1e6)

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[str, str]]:
        return taps.paired(student, teacher, "ab", self.student_taps, self.teacher_taps)

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        arrays: Arrays = {}
        student, teacher = pair.outputs
        for index, (ours, theirs) in enumerate(self._pairs(student, teacher)):
            source = taps.before_relu(student, ours)
            target = taps.before_relu(teacher, theirs)
            if source.shape != target.shape:
                key, own = jax.random.split(key)
                arrays |= networks.regressor_arrays(str(index), own, source, target, norm=True)
        return arrays

    def stages(self) -> tuple[Stage, ...]:
        boundaries = Stage(self, self.init_epochs, hard=False, trains=_all_but_classifier)
        return boundaries, Stage(None, trains=lambda name: name.startswith("student/"))

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        pairs = self._pairs(student, teacher)
        weighted = []
        for index, (ours, theirs) in enumerate(pairs):
            source = taps.before_relu(student, ours)
            target = taps.before_relu(teacher, theirs)
            if f"{index}/kernel" in context.adapters:
                source = networks.regress(context.adapters, str(index), source, target)
            source, target = losses.match_size(source, target)
            weight = 2.0 ** (index - len(pairs) + 1)
            values = losses.activation_boundary(source, target, margin=self.margin)
            weighted.append(weight * 3 / 1000 * values)
        return add_up(weighted)


@dataclasses.dataclass(frozen=True)
class FlowOfSolution(Method):
    """First the Gram matrices between successive stages, then the labels (Yim et al. 2017, FSP).

    The matrices are those of the stem and stage 1, of stages 1 and 2, and so on; both networks must
    have the same number of channels in each.

    Attributes:
      init_epochs: length of the stage before the training on labels.
    """

    init_epochs: float = 30.0

    def __post_init__(self):
        number_option("fsp", "init_epochs", self.init_epochs, 1e-3, 1e6)

    @staticmethod
    def _names(student: Outputs, teacher: Outputs) -> list[tuple[str, str]]:
        return [("stem", "stem"), *taps.paired(student, teacher, "fsp")]

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        student, teacher = pair.outputs
        for ours, theirs in self._names(student, teacher):
            source = taps.tap(student, "name", ours)
            target = taps.tap(teacher, "name", theirs)
            if source.shape[-1] != target.shape[-1]:
                raise UsageError(
                    f"method.name='fsp': expects as many channels in both networks; {ours} has "
                    f"{source.shape[-1]} in the student, {theirs} has {target.shape[-1]} in the "
                    "teacher"
                )
        return {}

    def stages(self) -> tuple[Stage, ...]:
        return Stage(self, self.init_epochs, hard=False, trains=_all_but_classifier), Stage(None)

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        names = self._names(student, teacher)
        ours = [student.taps[name] for name, _ in names]
        theirs = [teacher.taps[name] for _, name in names]
        steps = zip(ours[:-1], ours[1:], theirs[:-1], theirs[1:], strict=True)
        return add_up(losses.flow_of_solution(*maps) for maps in steps)


@dataclasses.dataclass(frozen=True)
class FactorTransfer(Method):
    """Factors of the last maps: the teacher's from an autoencoder, the student's from a translator.

    Kim et al. 2018 (FT). First the autoencoder ("paraphraser") is trained to reconstruct the
    teacher's map; then the translator and the student are trained.

    Attributes:
      student_tap: name of the student's map; "" for the last.
      teacher_tap: name of the teacher's.
      variant: "code": the factors are pooled over channels, as in AT, before they are compared;
        "paper": the whole factors, normalised; a mean in place of the paper's sum.
      ratio: channels of the factors over those of the teacher's map.
      init_epochs: length of the paraphraser's stage.
      init_learning_rate: of that stage, constant; 0.01 for resnet and wrn students in RepDistiller;
        0 for the config's.
    """

    published_weight = 200.0

    student_tap: str = ""
    teacher_tap: str = ""
    variant: str = "code"
    ratio: float = 0.5
    init_epochs: float = 30.0
    init_learning_rate: float = 0.01

    def __post_init__(self):
        choice_option("ft", "variant", self.variant, ("code", "paper"))
        number_option("ft", "ratio", self.ratio, 0.01, 1.0)
        number_option("ft", "init_epochs", self.init_epochs, 1e-3, 1e6)
        number_option("ft", "init_learning_rate", self.init_learning_rate, 0.0, 1e6)

    def _maps(self, student: Outputs, teacher: Outputs) -> tuple[taps.Feature, taps.Feature]:
        ours = taps.last(student, "ft", "student_tap", self.student_tap)
        theirs = taps.last(teacher, "ft", "teacher_tap", self.teacher_tap)
        return student.taps[ours], teacher.taps[theirs]

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        source, target = self._maps(*pair.outputs)
        inputs, outputs = source.shape[-1], target.shape[-1]
        factors = max(int(outputs * self.ratio), 1)
        down = (outputs, outputs, factors, factors)
        layers = {
            "paraphraser/encoder": (down, False),
            "paraphraser/decoder": (down[::-1], False),
            "translator": ((inputs, inputs, factors, factors), True),
        }
        arrays: Arrays = {}
        for name, (widths, norm) in layers.items():
            for layer in range(3):
                key, own = jax.random.split(key)
                arrays |= networks.conv_arrays(
                    f"{name}/{layer}", own, 3, *widths[layer : layer + 2], norm=norm
                )
        return arrays

    def stages(self) -> tuple[Stage, ...]:
        def paraphraser(name: str) -> bool:
            return name.startswith("adapters/paraphraser/")

        return (
            Stage(
                self._reconstruction,
                self.init_epochs,
                hard=False,
                trains=paraphraser,
                learning_rate=self.init_learning_rate,
            ),
            Stage(self, trains=lambda name: not paraphraser(name)),
        )

    def _reconstruction(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        _, target = self._maps(student, teacher)
        factor = _three_layers(context.adapters, "paraphraser/encoder", target)
        reconstructed = _three_layers(context.adapters, "paraphraser/decoder", factor)
        return jnp.mean(jnp.square(reconstructed - target), axis=(1, 2, 3))

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        source, target = self._maps(student, teacher)
        ours = _three_layers(context.adapters, "translator", source)
        theirs = _three_layers(context.adapters, "paraphraser/encoder", target)
        ours, theirs = losses.match_size(ours, theirs)
        values = losses.factor_transfer(ours, theirs, variant=self.variant)
        return values / math.prod(theirs.shape[1:]) if self.variant == "paper" else values


def _three_layers(
    arrays: Arrays, name: str, x: Float[Array, "batch height width inputs"]
) -> Float[Array, "batch height width outputs"]:
    """Three 3x3 convolutions, each with a leaky ReLU (slope 0.1)."""
    for layer in range(3):
        x = jax.nn.leaky_relu(networks.conv(arrays, f"{name}/{layer}", x), 0.1)
    return x


register("ab", ActivationBoundary)
register("fsp", FlowOfSolution)
register("ft", FactorTransfer)
