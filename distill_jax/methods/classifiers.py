"""Methods that use the teacher's classifier: SimKD and SRRL."""

import dataclasses

import jax
import jax.numpy as jnp

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.methods import networks, taps
from distill_jax.methods.base import Arrays, Context, Method, Pair, Stage, Values, register
from distill_jax.methods.relations import OnPooled
from distill_jax.models import Flat, Outputs

_CLASSIFIER = ("classifier/kernel", "classifier/bias")


def _classifier(params: Flat, method: str) -> Arrays:
    """The parameters of the teacher's last layer; UsageError if there are none."""
    missing = [name for name in _CLASSIFIER if name not in params]
    if missing:
        raise UsageError(
            f"method.name={method!r}: expects the parameters of a teacher with one classifier "
            f"(teacher.path); {missing[0]} is not at hand"
        )
    return {name: params[name] for name in _CLASSIFIER}


@dataclasses.dataclass(frozen=True)
class SimpleKD(Method):
    """The student's last map is regressed to the teacher's, whose classifier it uses.

    SimKD (Chen et al. 2022): mean squared error of the last maps after a projector. The student is
    the model "simkd", of which projector and classifier are a part; the classifier is the teacher's
    and is not trained. The published recipe has `hard_weight=0`.

    Attributes:
      teacher_tap: name of the teacher's map; "" for the last.
    """

    teacher_tap: str = ""

    def _maps(self, student: Outputs, teacher: Outputs) -> tuple[taps.Feature, taps.Feature]:
        theirs = taps.last(teacher, "simkd", "teacher_tap", self.teacher_tap)
        return student.taps["projected"], teacher.taps[theirs]

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        if "projected" not in pair.student.taps:
            raise UsageError(
                f"student.name={pair.student_spec.name!r}: simkd expects student.name='simkd' with "
                "student.backbone, the network that is distilled"
            )
        source, target = self._maps(*pair.outputs)
        if source.shape[-1] != target.shape[-1]:
            raise UsageError(
                f"student.features={source.shape[-1]}: simkd expects {target.shape[-1]}, the "
                "channels of the teacher's last map"
            )
        return {}

    def student_params(self, pair: Pair) -> Flat:
        found = _classifier(pair.teacher_params, "simkd")
        for name, value in found.items():
            if value.shape != pair.student_params[name].shape:
                raise UsageError(
                    f"method.name='simkd': the teacher's {name} is {value.shape}; expected "
                    f"{pair.student_params[name].shape}"
                )
        return {**pair.student_params, **found}

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self, trains=lambda name: not name.startswith("student/classifier/")),)

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        source, target = losses.match_size(*self._maps(student, teacher))
        return jnp.mean(jnp.square(source - target), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class SoftmaxRegression(OnPooled):
    """The teacher's classifier applied to the student's features (Yang et al. 2021, SRRL).

    In the form of the SimKD repository: the student's pooled feature goes through a dense layer,
    batch normalisation and ReLU. The loss is the mean squared error to the teacher's feature, plus
    that of the logits which the teacher's classifier computes from it.
    """

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        ours, theirs = self.vectors(*pair.outputs)
        _classifier(pair.teacher_params, "srrl")
        return networks.conv_arrays(
            "connector", key, 0, ours.shape[-1], theirs.shape[-1], bias=False, norm=True
        )

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Values:
        source, target = self.vectors(student, teacher)
        kernel, bias = _classifier(context.teacher_params, "srrl").values()
        connected = jax.nn.relu(networks.conv(context.adapters, "connector", source))
        logits = connected @ kernel.astype(jnp.float32) + bias[None]
        features = jnp.mean(jnp.square(connected - target.astype(jnp.float32)), axis=-1)
        return features + losses.logit_mse(logits, teacher.logits)


register("simkd", SimpleKD)
register("srrl", SoftmaxRegression)
