"""Feature distillation in every stage, through trained connectors: OFD and ReviewKD."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax import losses
from distill_jax.methods import networks, taps
from distill_jax.methods.base import (
    Arrays,
    Context,
    Method,
    Pair,
    Values,
    add_up,
    choice_option,
    integer_option,
    number_option,
    register,
)
from distill_jax.methods.logits import warm_up
from distill_jax.models import Outputs


@dataclasses.dataclass(frozen=True)
class Overhaul(Method):
    """The teacher's features before the ReLU, as far as they change its output.

    Heo et al. 2019b (OFD). The student matches the teacher's positive responses; where a response
    of the teacher is negative, the student's stays below a margin, the expected negative response
    of the channel. Stage i of L has weight 2^(i - L). The teacher is in evaluation mode; the
    authors' code leaves it in training mode.

    Attributes:
      student_taps: names of the stages that are read before their ReLU; () for all.
      teacher_taps: the teacher's.
      variant: "code": the margins come from scale and bias of the teacher's last batch
        normalisation before the tap, assuming a normal distribution; "paper": they are the mean of
        the negative responses in the batch.
    """

    published_weight = 1e-3

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    variant: str = "code"

    def __post_init__(self):
        choice_option("ofd", "variant", self.variant, ("code", "paper"))

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[str, str]]:
        return taps.paired(
            student, teacher, "ofd", self.student_taps, self.teacher_taps, deepest=True
        )

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        arrays: Arrays = {}
        student, teacher = pair.outputs
        for index, (ours, theirs) in enumerate(self._pairs(student, teacher)):
            key, own = jax.random.split(key)
            widths = student.taps[ours].shape[-1], teacher.taps[theirs].shape[-1]
            arrays |= networks.conv_arrays(
                str(index), own, 1, *widths, bias=False, norm=True, init="fan_out"
            )
            if self.variant == "code":
                taps.norm_before(pair.teacher_params, theirs, "ofd")
        return arrays

    def _margin(
        self, target: Float[Array, "batch height width channels"], name: str, context: Context
    ) -> Float[Array, " channels"]:
        if self.variant == "code":
            scale, bias = taps.norm_before(context.teacher_params, name, "ofd")
            return losses.overhaul_margin(bias, scale)
        negative = target < 0
        count = jnp.maximum(jnp.sum(negative, (0, 1, 2)), 1).astype(jnp.float32)
        return jnp.sum(jnp.where(negative, target, 0.0), (0, 1, 2)) / count

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        pairs = self._pairs(student, teacher)
        weighted = []
        for index, (ours, theirs) in enumerate(pairs):
            source = networks.conv(context.adapters, str(index), taps.before_relu(student, ours))
            target = taps.before_relu(teacher, theirs).astype(jnp.float32)
            margin = self._margin(target, theirs, context)
            target = losses.adaptive_average(target, taps.size(source))
            values = losses.overhaul(source, target, margin)
            weighted.append(values / 2.0 ** (len(pairs) - index - 1))
        return add_up(weighted)


@dataclasses.dataclass(frozen=True)
class Review(Method):
    """Each teacher stage is compared with all student stages from it on, fused.

    Chen et al. 2021 (ReviewKD): attention-based fusion from the deepest feature upwards, and the
    hierarchical context loss. The teacher's features are those before the ReLU and the pooled one.
    The teacher is in evaluation mode; the authors' CIFAR code leaves it in training mode.

    Attributes:
      student_preactivation: whether the student's features, too, are read before their ReLU, as in
        the reference code for resnet8x4 and wrn students.
      widest: the most channels within a fusion.
      warmup_epochs: the weight grows linearly over the first epochs.
      variant: "code": from 1/warmup_epochs (mdistiller); "paper": from 0 (the authors' code).
    """

    student_preactivation: bool = False
    widest: int = 512
    warmup_epochs: float = 20.0
    variant: str = "code"

    def __post_init__(self):
        choice_option("review", "student_preactivation", self.student_preactivation, (False, True))
        choice_option("review", "variant", self.variant, ("code", "paper"))
        integer_option("review", "widest", self.widest, 1)
        number_option("review", "warmup_epochs", self.warmup_epochs, 0.0, float("inf"))

    def _levels(
        self, student: Outputs, teacher: Outputs
    ) -> list[tuple[taps.Feature, taps.Feature]]:
        """Pairs of features [B, H, W, C], (student's, teacher's), the deepest first."""
        pairs = taps.paired(student, teacher, "review", deepest=True)[::-1]
        levels = [(_as_map(student.taps["pooled"]), _as_map(teacher.taps["pooled"]))]
        for ours, theirs in pairs:
            read = taps.before_relu(student, ours)
            source = read if self.student_preactivation else student.taps[ours]
            levels.append((source, taps.before_relu(teacher, theirs)))
        return levels

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        levels = jax.eval_shape(self._levels, *pair.outputs)
        width = min(self.widest, levels[0][0].shape[-1])
        connector = functools.partial(
            networks.conv_arrays, bias=False, norm=True, init="kaiming_uniform"
        )
        arrays: Arrays = {}
        for index, (source, target) in enumerate(levels):
            keys = jax.random.split(jax.random.fold_in(key, index), 3)
            inputs, outputs = source.shape[-1], target.shape[-1]
            arrays |= connector(f"{index}/in", keys[0], 1, inputs, width)
            arrays |= connector(f"{index}/out", keys[1], 3, width, outputs)
            if index:
                arrays |= networks.conv_arrays(f"{index}/attention", keys[2], 1, 2 * width, 2)
        return arrays

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        arrays = context.adapters
        values: list[Values] = []
        fused: jax.Array | None = None
        for index, (source, target) in enumerate(self._levels(student, teacher)):
            x = networks.conv(arrays, f"{index}/in", source)
            if fused is not None:
                fused = networks.resize_nearest(fused, taps.size(x))
                both = jnp.concatenate([x, fused], axis=-1)
                share = jax.nn.sigmoid(networks.conv(arrays, f"{index}/attention", both))
                x = x * share[..., :1] + fused * share[..., 1:]
            fused = networks.resize_nearest(x, taps.size(target))
            predicted = networks.conv(arrays, f"{index}/out", fused)
            values.append(losses.hierarchical_context(predicted, target))
        factor = warm_up(context, self.warmup_epochs, first=int(self.variant == "code"))
        return factor * add_up(values)


def _as_map(pooled: Float[Array, "batch channels"]) -> Float[Array, "batch 1 1 channels"]:
    return pooled[:, None, None, :]


register("ofd", Overhaul)
register("review", Review)
