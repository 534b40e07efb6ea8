"""The features that a method reads, by name: by default every stage, or those in the config.

Methods read `outputs.taps[name]`, in a step as arrays and before training as their shapes.
"""

import re
from typing import TYPE_CHECKING

import jax
from jaxtyping import Array, Float

from distill_jax.errors import UsageError, unknown
from distill_jax.models import Flat, Outputs

if TYPE_CHECKING:
    Feature = jax.Array
else:  # Before training `Outputs` hold shapes; a method reads both through the same functions.
    Feature = jax.Array | jax.ShapeDtypeStruct

_STAGE = re.compile(r"^stage\d+$")


def stage_names(outputs: Outputs) -> list[str]:
    """ "stage1", "stage2", ... as the network has them, in order; maps [B, H, W, C] alone."""
    found = [name for name, tap in outputs.taps.items() if _STAGE.match(name) and tap.ndim == 4]
    return sorted(found, key=lambda name: int(name.removeprefix("stage")))


def tap(outputs: Outputs, option: str, name: str) -> Feature:
    """One tap by name; if the network has no such tap, a UsageError that names the option."""
    if name not in outputs.taps:
        raise unknown(f"method.{option}", name, outputs.taps, "tap of this model")
    return outputs.taps[name]


def before_relu(outputs: Outputs, name: str) -> Feature:
    """The pre-activation twin of a stage; the stage itself if no ReLU ends it."""
    return outputs.taps.get(f"{name}_pre", outputs.taps[name])


def size(feature: Feature) -> tuple[int, int]:
    """(height, width) of a feature map."""
    return feature.shape[1], feature.shape[2]


def names_of(outputs: Outputs, method: str, option: str, given: tuple[str, ...]) -> list[str]:
    """The names of the taps that a method reads: those given, else every stage.

    Raises:
      UsageError: the network has no tap of a given name, or no stages.
    """
    for name in given:
        tap(outputs, option, name)
    chosen = list(given) or stage_names(outputs)
    if not chosen:
        held = ", ".join(outputs.taps) or "none"
        raise UsageError(
            f"method.{option}=(): {method} reads the feature maps of stages, stage1 to stageN; "
            f"the taps of this network are: {held}"
        )
    return chosen


def paired(
    student: Outputs,
    teacher: Outputs,
    method: str,
    student_taps: tuple[str, ...] = (),
    teacher_taps: tuple[str, ...] = (),
    *,
    deepest: bool = False,
) -> list[tuple[str, str]]:
    """Pairs of names of taps, (student's, teacher's).

    If one network has more stages, its last ones are left out, as in RepDistiller; with `deepest`,
    its first ones.

    Raises:
      UsageError: a name is unknown, the numbers of given names differ, or there is nothing to pair.
    """
    ours = names_of(student, method, "student_taps", student_taps)
    theirs = names_of(teacher, method, "teacher_taps", teacher_taps)
    if student_taps and teacher_taps and len(ours) != len(theirs):
        raise UsageError(
            f"method.student_taps={student_taps!r}: {method} expects as many names as "
            f"method.teacher_taps={teacher_taps!r}"
        )
    count = min(len(ours), len(theirs))
    part = slice(-count, None) if deepest else slice(count)
    return list(zip(ours[part], theirs[part], strict=True))


def last(outputs: Outputs, method: str, option: str, given: str) -> str:
    """The name of the last feature map, or the one given."""
    return names_of(outputs, method, option, (given,) if given else ())[-1]


def check_kind(source: Feature, target: Feature, method: str, option: str, name: str) -> None:
    """UsageError unless both are maps [B, H, W, C] or both are vectors [B, C]."""
    if source.ndim != target.ndim or source.ndim not in (2, 4):
        raise UsageError(
            f"method.{option}={name!r}: {method} expects two maps or two vectors; the student's is "
            f"{source.shape[1:]}, the teacher's {target.shape[1:]}"
        )


def check_vector(feature: Feature, method: str, option: str, name: str) -> None:
    """UsageError unless the feature is one vector per example, [B, D]."""
    if feature.ndim != 2:
        raise UsageError(
            f"method.{option}={name!r}: {method} expects a vector an example, such as 'pooled'; "
            f"this tap is {feature.shape[1:]}"
        )


def norm_before(
    params: Flat, name: str, method: str
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    """Scale and bias [C] of the last batch normalisation before the ReLU that ends a stage.

    In a residual network that is the last one of the last block; in a pre-activation network, the
    first one of the next stage or of the head.

    Raises:
      UsageError: no parameter has a name that these families use.
    """
    blocks = {part.split("/")[1] for part in params if part.startswith(f"{name}/")}
    last = max((int(block) for block in blocks if block.isdigit()), default=None)
    inside = f"{name}/{last}"
    if f"{inside}/norm1/scale" in params:
        following = f"stage{int(name.removeprefix('stage')) + 1}/0/norm1"
        found = [following if f"{following}/scale" in params else "norm"]
    else:
        found = sorted(
            part.removesuffix("/scale")
            for part in params
            if part.startswith(f"{inside}/")
            and part.endswith("norm/scale")
            and "/projection/" not in part
        )
    if not found or f"{found[-1]}/scale" not in params:
        raise UsageError(
            f"method.variant='code': {method} reads the batch normalisation that ends {name} from "
            "the teacher's parameters, which are not at hand or have none; expected 'paper'"
        )
    return params[f"{found[-1]}/scale"], params[f"{found[-1]}/bias"]
