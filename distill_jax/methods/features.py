"""Methods that read features inside the two networks, through trainable adapters.

Adapters are made from the shapes of the taps, train with the student's optimizer, and are left out
of the saved student.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from distill_jax.errors import UsageError, unknown
from distill_jax.methods.base import register
from distill_jax.models import Outputs


def _tap(outputs: Outputs, option: str, name: str):
    if name not in outputs.taps:
        raise unknown(f"method.{option}", name, outputs.taps, "tap of this model")
    return outputs.taps[name]


@dataclasses.dataclass(frozen=True)
class FitNet:
    """Mean squared error between a teacher's feature and a regression from the student's.

    The regression is a 1x1 convolution (a linear map for pooled features), so both features must
    have the same height and width. Romero et al. 2015 (FitNets, equation 3) train it as a stage of
    its own; here it is one term of the loss, as in Tian et al. 2020 (CRD).

    Attributes:
      student_tap: name of the student's feature, [B, H, W, C] or [B, C].
      teacher_tap: name of the teacher's feature, with the same H and W.
    """

    student_tap: str = "pooled"
    teacher_tap: str = "pooled"

    needs_teacher = True

    def adapters(self, student: Outputs, teacher: Outputs, key: jax.Array) -> dict:
        source = _tap(student, "student_tap", self.student_tap)
        target = _tap(teacher, "teacher_tap", self.teacher_tap)
        if source.shape[1:-1] != target.shape[1:-1]:
            raise UsageError(
                f"method.student_tap={self.student_tap!r}: fitnet expects taps of one height "
                f"and width; the student's is {source.shape[1:]}, the teacher's {target.shape[1:]}"
            )
        width, out = source.shape[-1], target.shape[-1]
        kernel = jax.random.normal(key, (width, out), jnp.float32) / math.sqrt(width)
        return {"regressor/kernel": kernel, "regressor/bias": jnp.zeros((out,), jnp.float32)}

    def __call__(self, student, teacher, labels, adapters, temperature):
        source = student.taps[self.student_tap].astype(jnp.float32)
        target = teacher.taps[self.teacher_tap].astype(jnp.float32)
        predicted = source @ adapters["regressor/kernel"] + adapters["regressor/bias"]
        return jnp.mean(jnp.square(predicted - target), axis=range(1, target.ndim))


register("fitnet", FitNet)
