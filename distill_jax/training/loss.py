"""The loss of one part of a batch: what the two networks answer to a view, and what that costs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax import losses, models
from distill_jax.methods import Context
from distill_jax.models import Outputs
from distill_jax.teachers import View, mean_probabilities
from distill_jax.training.recipe import Recipe

Flat = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where the training stands: what the schedules say, and the keys of this step.

    Attributes:
      progress: fraction of the stage that is done.
      epoch: epochs of the stage that are done.
      temperature: of the soft targets.
    """

    progress: jax.Array
    epoch: jax.Array
    temperature: jax.Array


def moment(recipe: Recipe, step: jax.Array) -> Moment:
    """The moment of a step, counted from the start of the run."""
    done = step - recipe.begin
    progress = done / recipe.steps
    return Moment(progress, done / recipe.steps_per_epoch, recipe.temperature.at(progress))


def soft_values(
    recipe: Recipe, student: Outputs, answers: Sequence[Outputs], context: Context
) -> tuple[jax.Array, Flat]:
    """The method's values [B] and its memory: against one teacher, several, or their mean.

    Args:
      recipe: of the stage.
      student: the student's outputs.
      answers: one a teacher; empty for a method that needs none.
      context: all else that a method reads.
    """

    def one(answer: Outputs | None, context: Context) -> tuple[jax.Array, Flat]:
        found = recipe.stage.values(student, answer, context)
        return found if isinstance(found, tuple) else (found, context.memory)

    if not answers:
        return one(None, context)
    weights = recipe.teachers.weights
    if len(answers) > 1 and not recipe.sum_losses:
        logits = [answer.logits for answer in answers]
        mean = mean_probabilities(logits, weights, context.temperature)
        answers, weights = [Outputs(logits=mean, taps={})], (1.0,)
    total = jnp.float32(0)
    for weight, answer in zip(weights, answers, strict=True):
        if weight > 0:
            values, memory = one(answer, context)
            context = dataclasses.replace(context, memory=memory)
            total = total + weight * values
    return total, context.memory


def loss_of(
    recipe: Recipe,
    now: Moment,
    teacher_variables: Any,
    trainable: dict[str, Flat],
    kept: tuple[Flat, Flat],
    part: dict[str, Any],
    key: jax.Array,
) -> tuple[jax.Array, tuple[tuple[Flat, Flat], dict[str, jax.Array]]]:
    """The loss of a part of a batch.

    Args:
      recipe: of the stage.
      now: where the training stands.
      teacher_variables: what the teachers' structure is applied to.
      trainable: {"student", "adapters"}.
      kept: the student's batch statistics and the method's memory, before.
      part: "images", "targets", "labels", "ids" of the view; "strong", a second view, for methods
        that show one; "answers", one `Outputs` a teacher, where they are known already.
      key: of the dropout and of the method's draws.

    Returns:
      (loss, ((statistics, memory), metrics)).
    """
    stats, memory = kept
    spec, method = recipe.spec, recipe.method
    strong_key, method_key = (jax.random.fold_in(key, n) for n in range(2))

    def student_on(images, stats, key):
        inputs = models.normalise(images, spec.mean, spec.std)
        return models.apply(
            recipe.graphdef, trainable["student"], stats, inputs, train=True, key=key
        )

    def teachers_on(images):
        view = View(images, part["ids"], {}, {})
        return recipe.teachers.answers(teacher_variables, view)

    def hard_values(student):
        return losses.cross_entropy(
            method.hard_logits(student), part["targets"], label_smoothing=recipe.label_smoothing
        )

    student, stats = student_on(part["images"], stats, key)
    hard = losses.mean(hard_values(student))
    soft = jnp.float32(0)
    if recipe.stage.values is not None:
        answers, strong = [], None
        if method.needs_teacher:
            answers = part["answers"] if "answers" in part else teachers_on(part["images"])
        if method.strong_view:
            second, stats = student_on(part["strong"], stats, strong_key)
            hard += losses.mean(hard_values(second))
            strong = second, teachers_on(part["strong"])[0]
        context = Context(
            labels=part["labels"],
            targets=part["targets"],
            ids=part["ids"],
            images=part["images"],
            adapters=trainable["adapters"],
            memory=memory,
            teacher_params=recipe.teachers.params(teacher_variables) if answers else {},
            temperature=now.temperature,
            epoch=now.epoch,
            key=method_key,
            spec=spec,
            strong=strong,
        )
        values, memory = soft_values(recipe, student, answers, context)
        soft = losses.mean(values)
    weights = recipe.hard_weight.at(now.progress), recipe.soft_weight.at(now.progress)
    loss = weights[0] * hard + weights[1] * soft
    hit = jnp.argmax(student.logits, axis=-1) == part["labels"]
    metrics = {"loss": loss, "hard_loss": hard, "soft_loss": soft, "accuracy": jnp.mean(hit)}
    return loss, ((stats, memory), metrics)
