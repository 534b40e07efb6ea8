"""Where a student meets its teacher: the method's arrays, and which of the teacher's taps it reads.

Everything comes from shapes; neither network is computed here.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.methods import Context, Method, Pair, Stage
from distill_jax.models import Flat, Outputs, Spec

# Outside the numbers of steps, so that no step draws from the same key.
_ADAPTERS, _MEMORY = np.uint32(2**32 - 1), np.uint32(2**32 - 2)


@dataclasses.dataclass(frozen=True)
class Paired:
    """A method's arrays before the first step.

    Attributes:
      params: the student's parameters.
      adapters: trainable arrays.
      memory: arrays that the steps replace.
      teacher_taps: for each stage, the taps of the teacher that it reads.
    """

    params: Flat
    adapters: Flat
    memory: Flat
    teacher_taps: tuple[frozenset[str], ...]


def pair_up(
    method: Method,
    name: str,
    student: tuple[Spec, Outputs, Flat],
    answers: Sequence[Outputs],
    teacher_params: Flat,
    labels: np.ndarray,
    seed: int,
    *,
    sum_losses: bool,
) -> Paired:
    """Makes the arrays of a method.

    Args:
      method: the method.
      name: of it, for errors.
      student: what it is, the shapes of its outputs [1, ...], its initial parameters.
      answers: the shapes of the teachers' outputs, one a teacher; empty without one.
      teacher_params: the first teacher's parameters; {} where its answers are stored.
      labels: of the training split, by id.
      seed: of the run.
      sum_losses: whether several teachers have a loss each.

    Raises:
      UsageError: the pair cannot be matched, with the reason.
    """
    spec, outputs, params = student
    pair = Pair(
        student=outputs,
        teacher=answers[0] if answers else None,
        student_spec=spec,
        student_params=params,
        teacher_params=teacher_params,
        labels=labels,
    )
    key = jax.random.key(seed)
    adapters = method.adapters(pair, jax.random.fold_in(key, _ADAPTERS))
    memory = method.memory(pair, jax.random.fold_in(key, _MEMORY))
    stages = method.stages()
    read = [_taps_read(stage, pair, adapters, memory) for stage in stages]
    if len(answers) > 1 and any(read):
        shapes = [{tap: answer.taps[tap].shape for tap in set().union(*read)} for answer in answers]
        if any(shape != shapes[0] for shape in shapes):
            raise UsageError(
                f"method.name={name!r}: it reads features of teachers of one shape; expected "
                "teachers of the same architecture"
            )
        if not sum_losses:
            raise UsageError(
                f"teacher.combine='mean_probabilities': {name} reads features, which have no mean "
                "distribution; expected 'sum_losses'"
            )
    return Paired(method.student_params(pair), adapters, memory, tuple(read))


class _Noted(dict):
    """A dictionary of taps that notes which were read."""

    def __init__(self, taps: dict, noted: set[str]):
        super().__init__(taps)
        self._noted = noted

    def __getitem__(self, name):
        self._noted.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        if name in self:
            return self[name]
        return default


def _taps_read(stage: Stage, pair: Pair, adapters: Flat, memory: Flat) -> frozenset[str]:
    """The teacher's taps that a stage reads, by tracing it on shapes."""
    if stage.values is None or pair.teacher is None:
        return frozenset()
    noted: set[str] = set()
    # Two examples: some losses are trivial for one.
    student, teacher = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((2, *a.shape[1:]), a.dtype), (pair.student, pair.teacher)
    )
    spec = pair.student_spec

    def trace(student, teacher, images, adapters, memory, teacher_params, key):
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
            strong=(student, teacher),
        )
        return stage.values(student, Outputs(teacher.logits, _Noted(teacher.taps, noted)), context)

    images = jax.ShapeDtypeStruct((2, *spec.input_shape), jnp.float32)
    jax.eval_shape(
        trace, student, teacher, images, adapters, memory, pair.teacher_params, jax.random.key(0)
    )
    return frozenset(noted)


def outputs_of(graphdef, params: Flat, stats: Flat, input_shape: tuple[int, ...]) -> Outputs:
    """Shapes of a network's outputs for one image."""
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda p, s, x: models.apply(graphdef, p, s, x, train=False), params, stats, images
    )
    return outputs
