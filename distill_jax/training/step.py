"""The one step: teacher, baseline and distillation differ in nothing but the recipe.

View, teacher, student, loss, update: one compiled program over the mesh. All randomness is
`fold_in(key(seed), step)`, so that step n is the same after any restart on any mesh. The teacher's
arrays and the data are arguments: captured as constants they would cost minutes of folding.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax import losses, models
from distill_jax.data import augment
from distill_jax.methods import Method
from distill_jax.models import Outputs, Spec
from distill_jax.parallel import batch_sharding, replicated
from distill_jax.teachers import Teachers, mean_probabilities
from distill_jax.training import optimizers
from distill_jax.training.schedules import Schedule
from distill_jax.training.state import TrainState

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about a step that does not change during training.

    Attributes:
      seed: of the views and the dropout.
      spec: the student's.
      graphdef: the student's static structure.
      augment: how a view is drawn.
      method: the loss against the teacher.
      teachers: the teachers' structure, or None.
      sum_losses: with several teachers, a loss to each instead of one to their mean.
      hard_weight: weight of the cross-entropy with the labels.
      soft_weight: weight of the method's loss.
      temperature: of the soft targets.
      label_smoothing: of the hard targets, in [0, 1).
      optimizer: applies to {"student": ..., "adapters": ...}.
      learning_rate: the rate in the optimizer, as a function of the step.
      max_norm: constraint on dense units' incoming weights; 0 for none.
      ema_decay: of the moving average; 0 for none.
      accumulate: parts of a batch, one after the other.
      total_steps: of the run, for the schedules.
      log_every: the sums of the metrics start anew after this many steps.
    """

    seed: int
    spec: Spec
    graphdef: Any
    augment: augment.Augment
    method: Method
    teachers: Teachers | None
    sum_losses: bool
    hard_weight: Schedule
    soft_weight: Schedule
    temperature: Schedule
    label_smoothing: float
    optimizer: optax.GradientTransformation
    learning_rate: optimizers.LearningRate
    max_norm: float
    ema_decay: float
    accumulate: int
    total_steps: int
    log_every: int


def soft_values(
    recipe: Recipe,
    student: Outputs,
    answers: Sequence[Outputs],
    labels: jax.Array,
    adapters: dict[str, jax.Array],
    temperature: jax.Array,
) -> jax.Array:
    """The method's values [B] against one teacher, several one by one, or their mean."""
    weights = recipe.teachers.weights
    if len(answers) > 1 and not recipe.sum_losses:
        logits = mean_probabilities([a.logits for a in answers], weights, temperature)
        answers, weights = [Outputs(logits=logits, taps={})], (1.0,)
    return sum(
        weight * recipe.method(student, answer, labels, adapters, temperature)
        for weight, answer in zip(weights, answers, strict=True)
        if weight > 0
    )


def examples_of(batch: Batch, store: Batch) -> tuple[jax.Array, jax.Array]:
    """Raw images and labels of a batch: its own, or those of its ids in the resident set."""
    if "image" in batch:
        return batch["image"], batch["label"]
    return store["image"][batch["id"]], store["label"][batch["id"]]


def train_step(
    recipe: Recipe,
    mesh: Mesh,
    state: TrainState,
    teacher_variables: Any,
    store: Batch,
    batch: Batch,
) -> TrainState:
    """One step of training.

    Args:
      recipe: what is fixed.
      mesh: the devices.
      state: before the step.
      teacher_variables: arrays of the teachers, one entry a teacher; [] for none.
      store: the resident set {"image" uint8 [N, H, W, C], "label" int32 [N]}, or {}.
      batch: {"id" int32 [B]}, with "image" and "label" where the set is streamed.

    Returns:
      The state after it.
    """
    view_key, dropout_key = jax.random.split(
        jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    )
    images, labels = examples_of(batch, store)
    draws = augment.draw(view_key, labels.shape[0], recipe.augment)
    images, targets = augment.view(images, labels, recipe.spec.num_classes, draws, recipe.augment)
    progress = state.step / recipe.total_steps
    temperature = recipe.temperature.at(progress)

    def loss_of(trainable, stats, part, key):
        inputs = models.normalise(part["images"], recipe.spec.mean, recipe.spec.std)
        student, stats = models.apply(
            recipe.graphdef, trainable["student"], stats, inputs, train=True, key=key
        )
        hard = losses.mean(
            losses.cross_entropy(
                student.logits, part["targets"], label_smoothing=recipe.label_smoothing
            )
        )
        soft = jnp.float32(0)
        if recipe.method.needs_teacher:
            answers = recipe.teachers(teacher_variables, part["images"])
            soft = losses.mean(
                soft_values(
                    recipe, student, answers, part["labels"], trainable["adapters"], temperature
                )
            )
        hit = jnp.argmax(student.logits, axis=-1) == part["labels"]
        loss = recipe.hard_weight.at(progress) * hard + recipe.soft_weight.at(progress) * soft
        return loss, (stats, {"hard_loss": hard, "soft_loss": soft, "accuracy": jnp.mean(hit)})

    # Every part takes every accumulate-th example, so that each device keeps a share of each part.
    parts = jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(-1, recipe.accumulate, *a.shape[1:]), 1, 0),
        {"images": images, "targets": targets, "labels": labels},
    )
    sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))
    parts = jax.lax.with_sharding_constraint(parts, sharding)
    trainable = {"student": state.params, "adapters": state.adapters}

    def accumulate(carry, inputs):
        stats, totals = carry
        part, key = inputs
        (loss, (stats, metrics)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            trainable, stats, part, key
        )
        new = {"gradient": gradient, "metrics": {"loss": loss, **metrics}}
        return stats, jax.tree.map(lambda a, b: a + b / recipe.accumulate, totals, new)

    nothing = {
        "gradient": jax.tree.map(jnp.zeros_like, trainable),
        "metrics": dict.fromkeys(("loss", "hard_loss", "soft_loss", "accuracy"), jnp.float32(0)),
    }
    keys = jax.random.split(dropout_key, recipe.accumulate)
    stats, totals = _fold(mesh, accumulate, (state.stats, nothing), (parts, keys))
    return _updated(recipe, state, trainable, stats, totals["gradient"], totals["metrics"])


def _updated(recipe, state, trainable, stats, gradient, metrics) -> TrainState:
    """The optimizer's update, the moving average, the sums of metrics and the finiteness check."""
    updates, optimizer = recipe.optimizer.update(gradient, state.optimizer, trainable)
    trainable = optax.apply_updates(trainable, updates)
    params = trainable["student"]
    if recipe.max_norm:
        params = optimizers.constrain_norms(params, recipe.max_norm)
    average = {}
    if state.average:
        average = optax.incremental_update(
            {"params": params, "stats": stats}, state.average, 1.0 - recipe.ema_decay
        )
    norm = optax.tree.norm(gradient)
    fresh = (state.step % recipe.log_every) == 0
    new = {"steps": 1.0, "gradient_norm": norm, **metrics}
    sums = {name: jnp.where(fresh, 0.0, total) + new[name] for name, total in state.sums.items()}
    bad = ~(jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)) & (state.bad_step < 0)
    return TrainState(
        step=state.step + 1,
        params=params,
        stats=stats,
        adapters=trainable["adapters"],
        optimizer=optimizer,
        average=average,
        sums=sums,
        bad_step=jnp.where(bad, state.step, state.bad_step),
    )


def on_cpu(mesh: Mesh) -> bool:
    """Whether the mesh is of CPUs, whose XLA runs convolutions 40 times slower inside a loop."""
    return mesh.devices.flat[0].platform == "cpu"


def _fold(mesh: Mesh, body: Callable[[Any, Any], Any], carry: Any, items: Any) -> Any:
    """`body(carry, item) -> carry` over the leading axis of the items.

    A `lax.scan` on accelerators; on a CPU the iterations stand one after the other in the program,
    since even a scan that is unrolled, or of length one, becomes a loop with slow convolutions.
    """
    if not on_cpu(mesh):
        return jax.lax.scan(lambda c, x: (body(c, x), None), carry, items)[0]
    for index in range(jax.tree.leaves(items)[0].shape[0]):
        carry = body(carry, jax.tree.map(lambda a, index=index: a[index], items))
    return carry


def compile_steps(recipe: Recipe, mesh: Mesh) -> Callable[..., TrainState]:
    """The jitted function of several steps: (state, teachers, store, batches [n, B, ...]) -> state.

    The state is donated. One program is compiled for every n that it is called with.
    """

    def steps(state, teacher_variables, store, batches):
        def one(state, batch):
            return train_step(recipe, mesh, state, teacher_variables, store, batch)

        return _fold(mesh, one, state, batches)

    return jax.jit(steps, donate_argnums=0, out_shardings=replicated(mesh))


def put_batches(batches: Sequence[dict[str, Any]], mesh: Mesh) -> Batch:
    """Host batches stacked along a new leading axis [n, B, ...] and split over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    return jax.device_put(stacked, sharding)
