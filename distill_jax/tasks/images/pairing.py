"""Matches a student with its teacher: the method's arrays, and the teacher's taps that it uses.

Everything comes from shapes; neither network is computed here.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.errors import UsageError
from distill_jax.methods import Context, Method, Pair, Stage
from distill_jax.models import Flat, Outputs
from distill_jax.teachers import StoredTeacher

# No step has these numbers, so that no step draws from the same keys.
_ADAPTERS, _MEMORY = np.uint32(2**32 - 1), np.uint32(2**32 - 2)


#: A teacher's outputs -> the taps of it on which the loss of each stage depends.
TapsUsed = Callable[[Outputs], list[frozenset[str]]]


@dataclasses.dataclass(frozen=True)
class Paired:
    """A method's arrays before the first step.

    Attributes:
      params: the student's parameters.
      adapters: trainable arrays.
      memory: arrays that the steps replace.
      teacher_taps: for each stage, the taps of the teacher that its loss depends on.
    """

    params: Flat
    adapters: Flat
    memory: Flat
    teacher_taps: tuple[frozenset[str], ...]


def pair_up(
    method: Method,
    pair: Pair,
    *,
    name: str,
    teachers: Sequence[Outputs],
    seed: int,
    sum_losses: bool,
    store: StoredTeacher | None = None,
) -> Paired:
    """Makes the arrays of a method.

    Args:
      method: the method.
      pair: the student, and the first teacher if the method needs one.
      name: of the method, for errors.
      teachers: the shapes of the teachers' outputs, one each; empty for a method without teacher.
      seed: of the run.
      sum_losses: whether each of several teachers has a loss of its own.
      store: the teacher, where its answers are stored.

    Raises:
      UsageError: the pair cannot be matched, with the reason.
    """
    key = jax.random.key(seed)
    adapters = method.adapters(pair, jax.random.fold_in(key, _ADAPTERS))
    memory = method.memory(pair, jax.random.fold_in(key, _MEMORY))

    def used_of(teacher: Outputs | None) -> list[frozenset[str]]:
        replaced = dataclasses.replace(pair, teacher=teacher)
        return [taps_used(stage, replaced, adapters, memory) for stage in method.stages()]

    used = used_of(pair.teacher)
    wanted = frozenset().union(*used)
    if store is not None:
        store.refuse_missing(name, wanted)
    if len(teachers) > 1 and wanted:
        if not all(_reads_alike(teachers[0], other, used, used_of) for other in teachers[1:]):
            raise UsageError(
                f"method.name={name!r}: it reads features of teachers of one shape; expected "
                "teachers of the same architecture"
            )
        if not sum_losses:
            raise UsageError(
                f"teacher.combine='mean_probabilities': {name} reads features, which have no mean "
                "distribution; expected 'sum_losses'"
            )
    return Paired(method.student_params(pair), adapters, memory, tuple(used))


def _reads_alike(
    first: Outputs, other: Outputs, used: Sequence[frozenset[str]], used_of: TapsUsed
) -> bool:
    """Whether the stages read the same features of another teacher as of the first.

    A stage that loops over taps may read some of the other teacher's that the first does not have.
    """
    if {n: tap.shape for n, tap in first.taps.items()} == {
        n: tap.shape for n, tap in other.taps.items()
    }:
        return True
    wanted = frozenset().union(*used)
    return all(
        name in other.taps and other.taps[name].shape == first.taps[name].shape for name in wanted
    ) and list(used) == used_of(other)


def taps_used(stage: Stage, pair: Pair, adapters: Flat, memory: Flat) -> frozenset[str]:
    """The teacher's taps on which the values or the memory of a stage depend.

    The stage is traced on shapes, and its jaxpr followed from the outputs back to the taps. How a
    method gets at a tap (by name, in a loop over all of them, through `jax.tree`) is therefore
    irrelevant. A tap that is not in the result can hold anything without changing the loss.
    """
    compute = stage.values
    if compute is None or pair.teacher is None:
        return frozenset()
    # Two examples: some losses are trivial for one.
    student, teacher = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((2, *a.shape[1:]), a.dtype), (pair.student, pair.teacher)
    )
    spec = pair.student_spec

    def values(taps, logits, student, strong, images, adapters, memory, teacher_params, key):
        context = Context(
            labels=jnp.zeros(2, jnp.int32),
            targets=jnp.zeros((2, spec.num_classes)),
            ids=jnp.zeros(2, jnp.int32),
            images=images,
            adapters=adapters,
            memory=memory,
            teacher_params=teacher_params,
            temperature=jnp.float32(1),
            epoch=jnp.float32(0),
            key=key,
            spec=spec,
            strong=strong,
        )
        return compute(student, Outputs(logits, taps), context)

    images = jax.ShapeDtypeStruct((2, *spec.input_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(values)(
        teacher.taps,
        teacher.logits,
        student,
        (student, teacher),
        images,
        adapters,
        memory,
        pair.teacher_params,
        jax.random.key(0),
    ).jaxpr
    names = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(teacher.taps)]
    live = _live_variables(jaxpr)
    return frozenset(
        name for name, variable in zip(names, jaxpr.invars, strict=False) if variable in live
    )


def _live_variables(jaxpr: Any) -> set[Any]:
    """The variables of a jaxpr that its outputs or its effects depend on.

    An equation that contains a jaxpr of its own counts as using all of its operands.
    """
    live = {variable for variable in jaxpr.outvars if not hasattr(variable, "val")}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(variable in live for variable in equation.outvars):
            live.update(operand for operand in equation.invars if not hasattr(operand, "val"))
    return live
