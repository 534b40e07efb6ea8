"""A step on images: the view of a batch, the networks' outputs on it, and the loss."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax import data, losses, models, parallel, teachers
from distill_jax.data.images import augment
from distill_jax.methods import Context, Method, Stage
from distill_jax.models import Outputs, Spec
from distill_jax.teachers import StoredTeacher, Teacher, View, mean_probabilities
from distill_jax.training.recipe import Batch, Flat, ForwardState, Moment, Recipe
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
      teachers: computes or looks up the teachers' outputs; None without teachers.
      teacher_shapes: the shapes of the teachers' outputs on one image, one each.
      teacher_taps: the teacher's taps on which the loss of the stage depends.
      sum_losses: with several teachers, a loss to each instead of one to their mean.
      look_ahead: steps whose teacher outputs may be computed in one forward pass.
      mesh: the devices.
      label_smoothing: of the hard targets, in [0, 1).
    """

    spec: Spec
    graphdef: Any
    augment: augment.Augment
    method: Method
    stage: Stage
    teachers: Teacher | None
    teacher_shapes: tuple[Outputs, ...]
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
        needed = self.method.needs_teacher and self.stage.values is not None
        return self.look_ahead if online and needed else 1

    def frozen_at(self, state: TrainState, frozen: Frozen) -> Frozen:
        if self.teachers is not None and self.teachers.own_average:
            average = state.average["params"], state.average["stats"]
            return dataclasses.replace(frozen, teachers=[average])
        return frozen

    def view(
        self, seed: jax.Array, step: jax.Array, batch: Batch, resident: Batch
    ) -> dict[str, Any]:
        """The view of a step: "images", "targets", "labels", "ids", "draws", and maybe "strong"."""
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

    def _teachers_on(self, frozen: Frozen, view: View) -> list[Outputs]:
        assert self.teachers is not None
        return self.teachers.outputs(parallel.gather_tree(frozen.teachers, self.mesh), view)

    def _teacher_params(self, frozen: Frozen) -> Flat:
        assert self.teachers is not None
        return self.teachers.params(frozen.teachers)

    def outputs_ahead(
        self, state: TrainState, frozen: Frozen, resident: Batch, batches: Batch
    ) -> list[Outputs]:
        """One `Outputs` a teacher, [K, B, ...], with the taps on which the loss depends."""
        count = jax.tree.leaves(batches)[0].shape[0]
        steps = state.step + jnp.arange(count)
        views = jax.vmap(lambda step, batch: self.view(state.seed, step, batch, resident))(
            steps, batches
        )

        # Examples first, steps second: each device keeps the examples that it has.
        def flattened(a):
            a = jnp.moveaxis(a, 0, 1)
            return a.reshape(-1, *a.shape[2:])

        def by_step(a):
            return jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0)

        view = View(flattened(views["images"]), flattened(views["ids"]), {}, {})
        kept = [
            Outputs(o.logits, {name: o.taps[name] for name in o.taps if name in self.teacher_taps})
            for o in self._teachers_on(frozen, view)
        ]
        return jax.tree.map(by_step, kept)

    def inputs(
        self,
        state: TrainState,
        frozen: Frozen,
        resident: Batch,
        batch: Batch,
        teacher_outputs: Any,
    ) -> dict[str, Any]:
        """The view of a step without its draws, and "teacher_outputs" where they are known."""
        view = self.view(state.seed, state.step, batch, resident)
        draws = view.pop("draws")
        if teacher_outputs is not None:
            teacher_outputs = [
                models.with_all_taps(found, shapes)
                for found, shapes in zip(teacher_outputs, self.teacher_shapes, strict=True)
            ]
        elif isinstance(self.teachers, StoredTeacher):
            stored = View(view["images"], view["ids"], draws, batch)
            found = self._teachers_on(frozen, stored)
            teacher_outputs = [self.teachers.completed(outputs) for outputs in found]
        return view if teacher_outputs is None else {**view, "teacher_outputs": teacher_outputs}

    def loss(
        self,
        moment: Moment,
        frozen: Frozen,
        trainable: dict[str, Flat],
        forward: ForwardState,
        inputs: dict[str, Any],
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[ForwardState, dict[str, jax.Array]]]:
        stats, memory = forward
        trainable = parallel.gather_tree(trainable, self.mesh)
        strong_key, method_key = (jax.random.fold_in(key, n) for n in range(2))

        def student_on(images, stats, key):
            pixels = models.normalise(images, self.spec.mean, self.spec.std)
            return models.apply(
                self.graphdef, trainable["student"], stats, pixels, train=True, key=key
            )

        def teachers_on(images):
            return self._teachers_on(frozen, View(images, inputs["ids"], {}, {}))

        student, stats = student_on(inputs["images"], stats, key)
        hard = losses.mean(self._hard_values(student, inputs["targets"]))
        soft = jnp.float32(0)
        if self.stage.values is not None:
            outputs, strong = [], None
            if self.method.needs_teacher:
                known = "teacher_outputs" in inputs
                outputs = inputs["teacher_outputs"] if known else teachers_on(inputs["images"])
            if self.method.strong_view:
                second, stats = student_on(inputs["strong"], stats, strong_key)
                hard += losses.mean(self._hard_values(second, inputs["targets"]))
                strong = second, teachers_on(inputs["strong"])[0]
            context = Context(
                labels=inputs["labels"],
                targets=inputs["targets"],
                ids=inputs["ids"],
                images=inputs["images"],
                adapters=trainable["adapters"],
                memory=memory,
                teacher_params=self._teacher_params(frozen) if outputs else {},
                temperature=moment.temperature,
                epoch=moment.epoch,
                key=method_key,
                spec=self.spec,
                strong=strong,
            )
            values, memory = soft_values(self, student, outputs, context)
            soft = losses.mean(values)
        weights = self.hard_weight.at(moment.progress), self.soft_weight.at(moment.progress)
        loss = weights[0] * hard + weights[1] * soft
        hit = jnp.argmax(student.logits, axis=-1) == inputs["labels"]
        metrics = {"loss": loss, "hard_loss": hard, "soft_loss": soft, "accuracy": jnp.mean(hit)}
        return loss, (ForwardState(stats, memory), metrics)

    def _hard_values(self, student: Outputs, targets: jax.Array) -> jax.Array:
        logits = self.method.hard_logits(student)
        return losses.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


def soft_values(
    recipe: ImageRecipe, student: Outputs, outputs: Sequence[Outputs], context: Context
) -> tuple[jax.Array, Flat]:
    """The method's values [B] and its memory: against one teacher, several, or their mean.

    Args:
      recipe: of the stage.
      student: the student's outputs.
      outputs: the teachers', one each; empty for a method that needs none.
      context: all else that a method reads.
    """
    compute = recipe.stage.values
    assert compute is not None

    def values_of(teacher: Outputs | None, context: Context) -> tuple[jax.Array, Flat]:
        # A method that needs no teacher does not read it.
        found = compute(student, cast(Outputs, teacher), context)
        return found if isinstance(found, tuple) else (found, context.memory)

    if not outputs or recipe.teachers is None:
        return values_of(None, context)
    weights = recipe.teachers.weights
    if len(outputs) > 1 and not recipe.sum_losses:
        logits = [each.logits for each in outputs]
        mean = mean_probabilities(logits, weights, context.temperature)
        outputs, weights = [Outputs(logits=mean, taps={})], (1.0,)
    total = jnp.float32(0)
    for weight, teacher in zip(weights, outputs, strict=True):
        if weight > 0:
            values, memory = values_of(teacher, context)
            context = dataclasses.replace(context, memory=memory)
            total = total + weight * values
    return total, context.memory
