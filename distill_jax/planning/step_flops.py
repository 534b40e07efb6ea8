"""What a step computes: the teacher's forward pass, the student's, its backward pass, and the rest.

Model FLOPs are those of the mathematics, with every value computed once; the program's are more
where layers are computed again for their gradient (`training.remat`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax import config as configs
from distill_jax import models
from distill_jax.planning import flops
from distill_jax.planning.abstract import Abstract, prepare
from distill_jax.tasks.language.recipe import TextRecipe
from distill_jax.training.step import train_step


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step, over all devices.

    Attributes:
      teacher_forward: of all teachers, heads included.
      student_forward: of the student, its head included.
      student_backward: all else that is differentiated or updated: the gradients, the method's
        adapters, the optimizer's matrix products.
      rollout: of the student writing a batch, times the probability that it does.
      program: of the step as it is compiled, with what is computed again; of a rollout as above.
    """

    teacher_forward: int
    student_forward: int
    student_backward: int
    rollout: int
    program: int

    @property
    def model(self) -> int:
        """Of the model, each value computed once."""
        parts = (self.teacher_forward, self.student_forward, self.student_backward, self.rollout)
        return sum(parts)


def count_step(run: Abstract) -> StepFlops:
    """The work of a step of a run."""
    text = isinstance(run.recipe, TextRecipe)
    forward = _text_forward if text else _image_forward
    teacher, student = forward(run)
    writing = _shown(run)
    program = _step(run) - writing
    plain = program
    if text and run.config.training.remat != "none":
        changed = configs.apply_overrides(run.config, {"training.remat": "none"})
        devices = list(run.mesh.devices.flat)
        plain = _step(prepare(configs.resolve(changed), devices)) - writing
    chance = run.config.rollout.probability if text else 0.0
    rollout = round(chance * writing) if text else writing
    return StepFlops(teacher, student, plain - teacher - student, rollout, program + rollout)


def _one(tree: Any) -> Any:
    """The shapes of a single step of a call."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


def _step(run: Abstract) -> int:
    def step(state, frozen, resident, batch):
        return train_step(run.recipe, run.mesh, state, frozen, resident, batch)

    return flops.count(step, run.state, run.frozen, run.resident, _one(run.batches))


def _shown(run: Abstract) -> int:
    """Of making the batch: products where the student writes it, or images are transformed."""

    def shown(state, frozen, resident, batch):
        return run.recipe.shown(state, frozen, resident, batch, None)

    return flops.count(shown, run.state, run.frozen, run.resident, _one(run.batches))


def _text_forward(run: Abstract) -> tuple[int, int]:
    comparison, batch = run.recipe.comparison, _one(run.batches)
    alone = dataclasses.replace(comparison, teachers=(), stored=None, divergences=(), terms=())

    def count(chosen: Any) -> int:
        def forward(params, frozen, batch):
            weights = jnp.ones(batch["tokens"].shape, jnp.float32)
            return chosen.summed(params, frozen, batch, weights)[0]

        return flops.count(forward, run.state.params, run.frozen, batch)

    student = count(alone)
    both = count(comparison) if comparison.teachers else student
    return both - student, student


def _image_forward(run: Abstract) -> tuple[int, int]:
    recipe = run.recipe
    shape = (run.config.training.batch_size, *recipe.spec.input_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)

    def student(params, stats, images):
        key = jax.random.key(0)
        return models.apply(recipe.graphdef, params, stats, images, train=True, key=key)[0].logits

    def teacher(variables, images):
        return [answer.logits for answer in recipe.teachers(variables, images)]

    own = flops.count(student, run.state.params, run.state.stats, images)
    if recipe.teachers is None or not recipe.method.needs_teacher:
        return 0, own
    if recipe.teachers.own_average:
        return own, own
    return flops.count(teacher, run.frozen.teachers, images), own
