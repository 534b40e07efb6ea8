"""Regression on features: FitNet's hints and variational information distillation."""

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
    Stage,
    Values,
    add_up,
    choice_option,
    number_option,
    register,
)
from distill_jax.models import Outputs


@dataclasses.dataclass(frozen=True)
class FitNet(Method):
    """Mean squared error between a teacher's feature and a regression from the student's.

    Romero et al. 2015 (FitNets), equation 3. The regressor is a convolution that brings the map to
    the teacher's size (`networks.regressor_arrays`), or a dense layer for pooled features, followed
    by a ReLU.

    Attributes:
      student_tap: name of the student's feature, [B, H, W, C] or [B, C].
      teacher_tap: name of the teacher's.
      variant: "code" (Tian et al. 2020 and later): batch normalisation before the ReLU; the loss
        is one term of the whole training. "paper": no normalisation; first the student up to the
        hint and the regressor are trained for `init_epochs`, then the student on labels and soft
        targets (the paper's decay of the soft weight is a schedule of the config).
      init_epochs: length of the first stage of "paper".
    """

    published_weight = 100.0

    student_tap: str = "stage2"
    teacher_tap: str = "stage2"
    variant: str = "code"
    init_epochs: float = 30.0

    def __post_init__(self):
        choice_option("fitnet", "variant", self.variant, ("code", "paper"))
        number_option("fitnet", "init_epochs", self.init_epochs, 0.0, 1e6)

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        student, teacher = pair.outputs
        source = taps.tap(student, "student_tap", self.student_tap)
        target = taps.tap(teacher, "teacher_tap", self.teacher_tap)
        taps.check_kind(source, target, "fitnet", "student_tap", self.student_tap)
        return networks.regressor_arrays(
            "regressor", key, source, target, norm=self.variant == "code"
        )

    def stages(self) -> tuple[Stage, ...]:
        if self.variant == "code":
            return (Stage(self),)
        hints = Stage(self, self.init_epochs, hard=False)
        return hints, Stage(_soft_targets, trains=lambda name: name.startswith("student/"))

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        source, target = student.taps[self.student_tap], teacher.taps[self.teacher_tap]
        predicted = jax.nn.relu(networks.regress(context.adapters, "regressor", source, target))
        if target.ndim == 4:
            predicted, target = losses.match_size(predicted, target)
        return jnp.mean(jnp.square(predicted - target), axis=tuple(range(1, predicted.ndim)))


def _soft_targets(student: Outputs, teacher: Outputs, context: Context) -> Values:
    return losses.soft_target(student.logits, teacher.logits, temperature=context.temperature)


@dataclasses.dataclass(frozen=True)
class VariationalInformation(Method):
    """Gaussian log-likelihood of the teacher's features given the student's, in every stage.

    Ahn et al. 2019 (VID): the mean is the student's map after three 1x1 convolutions, the variance
    one trained number per channel, initialised to 5.

    Attributes:
      student_taps: names of the student's maps; () for all stages.
      teacher_taps: names of the teacher's.
      variant: "code" (RepDistiller): no batch normalisation in the regressor; "paper": with it.
        mdistiller leaves the variances out of the optimizer by mistake: they stay at 5, as with
        `train_variance=False`.
      train_variance: whether the variances are trained.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    variant: str = "code"
    train_variance: bool = True

    def __post_init__(self):
        choice_option("vid", "variant", self.variant, ("code", "paper"))
        choice_option("vid", "train_variance", self.train_variance, (False, True))

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[str, str]]:
        return taps.paired(student, teacher, "vid", self.student_taps, self.teacher_taps)

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        arrays: Arrays = {}
        student, teacher = pair.outputs
        for index, (ours, theirs) in enumerate(self._pairs(student, teacher)):
            out = teacher.taps[theirs].shape[-1]
            widths = (student.taps[ours].shape[-1], out, out, out)
            for layer in range(3):
                key, own = jax.random.split(key)
                arrays |= networks.conv_arrays(
                    f"{index}/{layer}",
                    own,
                    1,
                    *widths[layer : layer + 2],
                    bias=False,
                    norm=self.variant == "paper" and layer < 2,
                )
            raw = jnp.log(jnp.expm1(jnp.float32(5.0 - 1e-5)))
            arrays[f"{index}/raw_scale"] = jnp.full((out,), raw, jnp.float32)
        return arrays

    def stages(self) -> tuple[Stage, ...]:
        fixed = not self.train_variance
        return (Stage(self, trains=lambda name: not (fixed and name.endswith("/raw_scale"))),)

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        values = []
        for index, (ours, theirs) in enumerate(self._pairs(student, teacher)):
            mean, target = losses.match_size(student.taps[ours], teacher.taps[theirs])
            for layer in range(3):
                mean = networks.conv(context.adapters, f"{index}/{layer}", mean)
                mean = jax.nn.relu(mean) if layer < 2 else mean
            scale = context.adapters[f"{index}/raw_scale"]
            values.append(losses.variational_information(mean, target, scale))
        return add_up(values)


register("fitnet", FitNet)
register("vid", VariationalInformation)
