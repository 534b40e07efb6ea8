"""Steps on images: the view of a batch, what the networks answer to it, and what that costs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax import data, losses, models, parallel, teachers
from distill_jax.data.images import augment
from distill_jax.methods import Context, Method, Stage
from distill_jax.models import Outputs, Spec
from distill_jax.teachers import Teacher, View, mean_probabilities
from distill_jax.training.recipe import Batch, Flat, Moment, Recipe
from distill_jax.training.state import Frozen, TrainState


def examples_of(batch: Batch, resident: Batch) -> tuple[jax.Array, jax.Array]:
    """Raw images and labels of a batch: its own, or those of its ids in the resident set."""
    if "image" in batch:
        return batch["image"], batch["label"]
    return resident["image"][batch["id"]], resident["label"][batch["id"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """What a compiled step on images is made from.

    Attributes:
      spec: the student's.
      graphdef: the student's static structure.
      augment: how a view is drawn.
      method: the loss against the teacher.
      stage: which stage of it.
      teachers: where the answers come from, or None.
      teacher_taps: the teacher's taps that the stage reads.
      sum_losses: with several teachers, a loss to each instead of one to their mean.
      look_ahead: steps whose teacher answers may be computed in one forward pass.
      mesh: the devices.
      label_smoothing: of the hard targets, in [0, 1).
    """

    spec: Spec
    graphdef: Any
    augment: augment.Augment
    method: Method
    stage: Stage
    teachers: Teacher | None
    teacher_taps: frozenset[str]
    sum_losses: bool
    look_ahead: int
    mesh: Mesh
    label_smoothing: float

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("loss", "hard_loss", "soft_loss", "accuracy")

    def trains(self, group: str, name: str) -> bool:
        return self.stage.trains(f"{group}/{name}")

    @property
    def ahead(self) -> int:
        source = self.teachers
        online = source is not None and not (source.own_average or source.precomputed)
        asked = self.method.needs_teacher and self.stage.values is not None
        return self.look_ahead if online and asked else 1

    def frozen_at(self, state: TrainState, frozen: Frozen) -> Frozen:
        if self.teachers is not None and self.teachers.own_average:
            average = state.average["params"], state.average["stats"]
            return dataclasses.replace(frozen, teachers=[average])
        return frozen

    def view(
        self, seed: jax.Array, step: jax.Array, batch: Batch, resident: Batch
    ) -> dict[str, Any]:
        """The view of a step: "images", "targets", "labels", "ids", "draws", "strong" if asked."""
        view_key = teachers.view_key(seed, step)
        if "view_key" in batch:  # the view of a stored answer, not of this run's own seed
            view_key = jax.random.wrap_key_data(batch["view_key"])
        raw, labels = examples_of(batch, resident)
        draws = augment.draw(view_key, labels.shape[0], self.augment)
        images, targets = augment.view(raw, labels, self.spec.num_classes, draws, self.augment)
        view = {"images": images, "targets": targets, "labels": labels, "ids": batch["id"]}
        if self.method.strong_view:
            more = data.draw_strong(view_key, labels.shape[0], self.augment)
            view["strong"] = data.strong_view(raw, more, self.augment)
        return {**view, "draws": draws}

    def _answers(self, frozen: Frozen, view: View) -> list[Outputs]:
        return self.teachers.outputs(parallel.gather_tree(frozen.teachers, self.mesh), view)

    def answers_ahead(
        self, state: TrainState, frozen: Frozen, resident: Batch, batches: Batch
    ) -> list[Outputs]:
        """One `Outputs` a teacher, [K, B, ...], with the taps that the stage reads."""
        count = jax.tree.leaves(batches)[0].shape[0]
        steps = state.step + jnp.arange(count)
        shown = jax.vmap(lambda step, batch: self.view(state.seed, step, batch, resident))(
            steps, batches
        )

        # Examples first, steps second: each device keeps the examples that it has.
        def merged(a):
            a = jnp.moveaxis(a, 0, 1)
            return a.reshape(-1, *a.shape[2:])

        def apart(a):
            return jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0)

        view = View(merged(shown["images"]), merged(shown["ids"]), {}, {})
        answers = self._answers(frozen, view)
        kept = [
            Outputs(a.logits, {name: a.taps[name] for name in a.taps if name in self.teacher_taps})
            for a in answers
        ]
        return jax.tree.map(apart, kept)

    def shown(
        self, state: TrainState, frozen: Frozen, resident: Batch, batch: Batch, answers: Any
    ) -> dict[str, Any]:
        """The view of a step without its draws, and "answers" where they are known already."""
        shown = self.view(state.seed, state.step, batch, resident)
        draws = shown.pop("draws")
        if answers is None and self.teachers is not None and self.teachers.precomputed:
            view = View(shown["images"], shown["ids"], draws, batch)
            answers = self._answers(frozen, view)
        return shown if answers is None else {**shown, "answers": answers}

    def loss(
        self,
        now: Moment,
        frozen: Frozen,
        trainable: dict[str, Flat],
        kept: tuple[Flat, Flat],
        part: dict[str, Any],
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[tuple[Flat, Flat], dict[str, jax.Array]]]:
        stats, memory = kept
        trainable = parallel.gather_tree(trainable, self.mesh)
        spec, method = self.spec, self.method
        strong_key, method_key = (jax.random.fold_in(key, n) for n in range(2))

        def student_on(images, stats, key):
            inputs = models.normalise(images, spec.mean, spec.std)
            return models.apply(
                self.graphdef, trainable["student"], stats, inputs, train=True, key=key
            )

        def teachers_on(images):
            view = View(images, part["ids"], {}, {})
            return self._answers(frozen, view)

        def hard_values(student):
            return losses.cross_entropy(
                method.hard_logits(student), part["targets"], label_smoothing=self.label_smoothing
            )

        student, stats = student_on(part["images"], stats, key)
        hard = losses.mean(hard_values(student))
        soft = jnp.float32(0)
        if self.stage.values is not None:
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
                teacher_params=self.teachers.params(frozen.teachers) if answers else {},
                temperature=now.temperature,
                epoch=now.epoch,
                key=method_key,
                spec=spec,
                strong=strong,
            )
            values, memory = soft_values(self, student, answers, context)
            soft = losses.mean(values)
        weights = self.hard_weight.at(now.progress), self.soft_weight.at(now.progress)
        loss = weights[0] * hard + weights[1] * soft
        hit = jnp.argmax(student.logits, axis=-1) == part["labels"]
        metrics = {"loss": loss, "hard_loss": hard, "soft_loss": soft, "accuracy": jnp.mean(hit)}
        return loss, ((stats, memory), metrics)


def soft_values(
    recipe: ImageRecipe, student: Outputs, answers: Sequence[Outputs], context: Context
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
