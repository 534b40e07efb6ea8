"""The FLOPs of a step: the teacher's forward pass, the student's, its backward pass, and the rest.

Model FLOPs count every value once. The program's FLOPs are more if layers are recomputed for their
gradient (`training.remat`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax import config as configs
from distill_jax import models, tasks
from distill_jax.planning import flops
from distill_jax.tasks import AbstractStep
from distill_jax.tasks.images.recipe import ImageRecipe
from distill_jax.tasks.language.comparison import Comparison
from distill_jax.tasks.language.recipe import TextRecipe
from distill_jax.teachers import Teachers
from distill_jax.training.step import train_step


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step, over all devices.

    Attributes:
      teacher_forward: the forward pass of all teachers, with their heads.
      student_forward: the forward pass of the student, with its head.
      student_backward: the rest of the update: gradients, the method's adapters, matrix products of
        the optimizer.
      rollout: the student's generation of a batch, times the probability of a rollout.
      program: the compiled step with recomputation; a rollout counts as above.
    """

    teacher_forward: int
    student_forward: int
    student_backward: int
    rollout: int
    program: int

    @property
    def model(self) -> int:
        """Model FLOPs: every value computed once."""
        parts = (self.teacher_forward, self.student_forward, self.student_backward, self.rollout)
        return sum(parts)


def count_step(run: AbstractStep) -> StepFlops:
    """The FLOPs of a step of a run."""
    recipe = run.recipe
    text = isinstance(recipe, TextRecipe)
    if isinstance(recipe, TextRecipe):
        teacher, student = _text_forward(run, recipe.comparison)
    else:
        assert isinstance(recipe, ImageRecipe)
        teacher, student = _image_forward(run, recipe)
    view = _count_view(run)
    program = _count_train_step(run) - view
    without_remat = program
    if text and run.config.training.remat != "none":
        changed = configs.apply_overrides(run.config, {"training.remat": "none"})
        devices = list(run.mesh.devices.flat)
        without_remat = (
            _count_train_step(tasks.abstract_step(configs.resolve(changed), devices)) - view
        )
    rollout = round(run.config.rollout.probability * view) if text else view
    return StepFlops(
        teacher_forward=teacher,
        student_forward=student,
        student_backward=without_remat - teacher - student,
        rollout=rollout,
        program=program + rollout,
    )


def _single_step(tree: Any) -> Any:
    """The shapes of one of the batches of a call."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


def _count_train_step(run: AbstractStep) -> int:
    def step(state, frozen, resident, batch):
        return train_step(run.recipe, run.mesh, state, frozen, resident, batch)

    return flops.count(step, run.state, run.frozen, run.resident, _single_step(run.batches))


def _count_view(run: AbstractStep) -> int:
    """The FLOPs of making a batch's view: a rollout of the student, or transforms of images."""

    def view(state, frozen, resident, batch):
        return run.recipe.inputs(state, frozen, resident, batch, None)

    return flops.count(view, run.state, run.frozen, run.resident, _single_step(run.batches))


def _text_forward(run: AbstractStep, comparison: Comparison) -> tuple[int, int]:
    """FLOPs of the forward passes of teacher and student on text."""
    batch = _single_step(run.batches)
    alone = dataclasses.replace(comparison, teachers=(), stored=None, divergences=(), terms=())

    def count(chosen: Comparison) -> int:
        def forward(params, frozen, batch):
            weights = jnp.ones(batch["tokens"].shape, jnp.float32)
            return chosen.token_sums(params, frozen, batch, weights)[0]

        return flops.count(forward, run.state.params, run.frozen, batch)

    student = count(alone)
    both = count(comparison) if comparison.teachers else student
    return both - student, student


def _image_forward(run: AbstractStep, recipe: ImageRecipe) -> tuple[int, int]:
    """FLOPs of the forward passes of teacher and student on images."""
    teachers = recipe.teachers
    shape = (run.config.training.batch_size, *recipe.spec.input_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)

    def student(params, stats, images):
        key = jax.random.key(0)
        return models.apply(recipe.graphdef, params, stats, images, train=True, key=key)[0].logits

    own = flops.count(student, run.state.params, run.state.stats, images)
    if teachers is None or not recipe.method.needs_teacher:
        return 0, own
    if teachers.own_average:
        return own, own
    assert isinstance(teachers, Teachers)  # a plan of images has no precomputed answers

    def teacher(variables, images):
        return [outputs.logits for outputs in teachers(variables, images)]

    return flops.count(teacher, run.frozen.teachers, images), own
