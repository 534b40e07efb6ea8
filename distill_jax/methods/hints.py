"""Regression on features: FitNet's hints and variational information distillation."""

import dataclasses

import jax
import jax.numpy as jnp

from distill_jax import losses
from distill_jax.methods import networks, taps
from distill_jax.methods.base import (
    Context,
    Method,
    Pair,
    Stage,
    choice_option,
    number_option,
    register,
)


@dataclasses.dataclass(frozen=True)
class FitNet(Method):
    """Mean squared error between a teacher's feature and a regression from the student's.

    Romero et al. 2015 (FitNets), equation 3. The regressor is a convolution whose size depends on
    those of the maps (`networks.regressor_arrays`), a dense layer for pooled features, then a ReLU.

    Attributes:
      student_tap: name of the student's feature, [B, H, W, C] or [B, C].
      teacher_tap: name of the teacher's.
      variant: "code" (Tian et al. 2020 and after): batch normalisation before the ReLU, the loss
        is added to the others through the whole training. "paper": no normalisation; the student
        up to the hint and the regressor are trained first, for `init_epochs`, then the student on
        labels and soft targets (its decay of the soft weight is a schedule of the config).
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

    def adapters(self, pair, key):
        source = taps.tap(pair.student, "student_tap", self.student_tap)
        target = taps.tap(pair.teacher, "teacher_tap", self.teacher_tap)
        taps.check_kind(source, target, "fitnet", "student_tap", self.student_tap)
        return networks.regressor_arrays(
            "regressor", key, source, target, norm=self.variant == "code"
        )

    def stages(self):
        if self.variant == "code":
            return (Stage(self),)
        hints = Stage(self, self.init_epochs, hard=False)
        return hints, Stage(_soft_targets, trains=lambda name: name.startswith("student/"))

    def __call__(self, student, teacher, context):
        source, target = student.taps[self.student_tap], teacher.taps[self.teacher_tap]
        predicted = jax.nn.relu(networks.regress(context.adapters, "regressor", source, target))
        if target.ndim == 4:
            predicted, target = losses.match_size(predicted, target)
        return jnp.mean(jnp.square(predicted - target), axis=range(1, predicted.ndim))


def _soft_targets(student, teacher, context: Context) -> jax.Array:
    return losses.soft_target(student.logits, teacher.logits, temperature=context.temperature)


@dataclasses.dataclass(frozen=True)
class VariationalInformation(Method):
    """Gaussian log-likelihood of the teacher's features given the student's, in every stage.

    Ahn et al. 2019 (VID): the mean is three 1x1 convolutions of the student's map, the
    variance a trained number a channel, which begins at 5.

    Attributes:
      student_taps: names of the student's maps; () for all stages.
      teacher_taps: names of the teacher's.
      variant: "code" (RepDistiller): no batch normalisation in the regressor; "paper": with it.
        mdistiller leaves the variances out of the optimizer by mistake: they stay at 5, which is
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

    def _pairs(self, student, teacher):
        return taps.paired(student, teacher, "vid", self.student_taps, self.teacher_taps)

    def adapters(self, pair: Pair, key):
        arrays = {}
        for index, (ours, theirs) in enumerate(self._pairs(pair.student, pair.teacher)):
            out = pair.teacher.taps[theirs].shape[-1]
            widths = (pair.student.taps[ours].shape[-1], out, out, out)
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

    def stages(self):
        fixed = not self.train_variance
        return (Stage(self, trains=lambda name: not (fixed and name.endswith("/raw_scale"))),)

    def __call__(self, student, teacher, context):
        total = 0.0
        for index, (ours, theirs) in enumerate(self._pairs(student, teacher)):
            mean, target = losses.match_size(student.taps[ours], teacher.taps[theirs])
            for layer in range(3):
                mean = networks.conv(context.adapters, f"{index}/{layer}", mean)
                mean = jax.nn.relu(mean) if layer < 2 else mean
            scale = context.adapters[f"{index}/raw_scale"]
            total += losses.variational_information(mean, target, scale)
        return total


register("fitnet", FitNet)
register("vid", VariationalInformation)
