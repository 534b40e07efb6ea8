"""Feature distillation in every stage through trained connectors: OFD and ReviewKD."""

import dataclasses

import jax
import jax.numpy as jnp

from distill_jax import losses
from distill_jax.methods import networks, taps
from distill_jax.methods.base import (
    Method,
    choice_option,
    integer_option,
    number_option,
    register,
)
from distill_jax.methods.logits import warm_up


@dataclasses.dataclass(frozen=True)
class Overhaul(Method):
    """The teacher's features before the ReLU, where they matter after it (Heo et al. 2019b, OFD).

    Positive responses are to be met, negative ones only to stay below a margin,
    the expected negative response of the channel. Stage i of L has weight 2^(i - L). The teacher is
    in evaluation mode; the authors' code leaves it in training mode.

    Attributes:
      student_taps: names of the stages that are read before their ReLU; () for all.
      teacher_taps: the teacher's.
      variant: "code": the margins come from scale and bias of the teacher's last batch
        normalisation before the tap, as of a normal distribution; "paper": they are the mean of the
        negative responses, of the batch at hand.
    """

    published_weight = 1e-3

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    variant: str = "code"

    def __post_init__(self):
        choice_option("ofd", "variant", self.variant, ("code", "paper"))

    def _pairs(self, student, teacher):
        return taps.paired(
            student, teacher, "ofd", self.student_taps, self.teacher_taps, deepest=True
        )

    def adapters(self, pair, key):
        arrays = {}
        for index, (ours, theirs) in enumerate(self._pairs(pair.student, pair.teacher)):
            key, own = jax.random.split(key)
            widths = pair.student.taps[ours].shape[-1], pair.teacher.taps[theirs].shape[-1]
            arrays |= networks.conv_arrays(
                str(index), own, 1, *widths, bias=False, norm=True, init="fan_out"
            )
            if self.variant == "code":
                taps.norm_before(pair.teacher_params, theirs, "ofd")
        return arrays

    def _margin(self, target, name, context):
        if self.variant == "code":
            scale, bias = taps.norm_before(context.teacher_params, name, "ofd")
            return losses.overhaul_margin(bias, scale)
        negative = target < 0
        count = jnp.maximum(jnp.sum(negative, (0, 1, 2)), 1)
        return jnp.sum(jnp.where(negative, target, 0.0), (0, 1, 2)) / count

    def __call__(self, student, teacher, context):
        pairs = self._pairs(student, teacher)
        total = 0.0
        for index, (ours, theirs) in enumerate(pairs):
            source = networks.conv(context.adapters, str(index), taps.before_relu(student, ours))
            target = taps.before_relu(teacher, theirs).astype(jnp.float32)
            margin = self._margin(target, theirs, context)
            target = losses.adaptive_average(target, source.shape[1:3])
            values = losses.overhaul(source, target, margin)
            total += values / 2.0 ** (len(pairs) - index - 1)
        return total


@dataclasses.dataclass(frozen=True)
class Review(Method):
    """Each teacher stage is taught by all student stages from it on (Chen et al. 2021, ReviewKD).

    Attention-based fusion from the deepest feature upwards, and the hierarchical context loss
    . The teacher's features are those before the ReLU and the pooled one. The
    teacher is in evaluation mode; the authors' CIFAR code forgets to put it there.

    Attributes:
      student_preactivation: whether the student's features are read before their ReLU too, as the
        reference code does for resnet8x4 and wrn students.
      widest: the most channels within a fusion.
      warmup_epochs: the weight grows linearly through the first ones.
      variant: "code": from 1/warmup_epochs on (mdistiller); "paper": from 0 on (the authors').
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

    def _levels(self, student, teacher):
        """(student's, teacher's) features [B, H, W, C], the deepest first."""
        pairs = taps.paired(student, teacher, "review", deepest=True)[::-1]
        levels = [(_as_map(student.taps["pooled"]), _as_map(teacher.taps["pooled"]))]
        for ours, theirs in pairs:
            read = taps.before_relu(student, ours)
            source = read if self.student_preactivation else student.taps[ours]
            levels.append((source, taps.before_relu(teacher, theirs)))
        return levels

    def adapters(self, pair, key):
        levels = jax.eval_shape(self._levels, pair.student, pair.teacher)
        width = min(self.widest, levels[0][0].shape[-1])
        arrays = {}
        for index, (source, target) in enumerate(levels):
            keys = jax.random.split(jax.random.fold_in(key, index), 3)
            more = dict(bias=False, norm=True, init="kaiming_uniform")
            inputs, outputs = source.shape[-1], target.shape[-1]
            arrays |= networks.conv_arrays(f"{index}/in", keys[0], 1, inputs, width, **more)
            arrays |= networks.conv_arrays(f"{index}/out", keys[1], 3, width, outputs, **more)
            if index:
                arrays |= networks.conv_arrays(f"{index}/attention", keys[2], 1, 2 * width, 2)
        return arrays

    def __call__(self, student, teacher, context):
        arrays, total, fused = context.adapters, 0.0, None
        for index, (source, target) in enumerate(self._levels(student, teacher)):
            x = networks.conv(arrays, f"{index}/in", source)
            if fused is not None:
                fused = networks.resize_nearest(fused, x.shape[1:3])
                both = jnp.concatenate([x, fused], axis=-1)
                share = jax.nn.sigmoid(networks.conv(arrays, f"{index}/attention", both))
                x = x * share[..., :1] + fused * share[..., 1:]
            fused = networks.resize_nearest(x, target.shape[1:3])
            total += losses.hierarchical_context(
                networks.conv(arrays, f"{index}/out", fused), target
            )
        return warm_up(context, self.warmup_epochs, first=int(self.variant == "code")) * total


def _as_map(pooled: jax.Array) -> jax.Array:
    return pooled[:, None, None, :]


register("ofd", Overhaul)
register("review", Review)
