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

from distill_jax.optim import optimizers
from distill_jax.parallel import batch_sharding, put, put_rows, replicated, shardings
from distill_jax.training.recipe import Batch, ForwardState, Recipe
from distill_jax.training.state import Frozen, TrainState


def train_step(
    recipe: Recipe,
    mesh: Mesh,
    state: TrainState,
    frozen: Frozen,
    resident: Batch,
    batch: Batch,
    teacher_outputs: Any = None,
) -> TrainState:
    """One step of training.

    Args:
      recipe: what is fixed.
      mesh: the devices.
      state: before the step.
      frozen: the parameters that no step changes: of the teachers, and of the student's base.
      resident: the data set on the devices, or {}.
      batch: arrays [B, ...] of its examples.
      teacher_outputs: on this batch, where they are computed already.

    Returns:
      The state after it.
    """
    moment = recipe.moment(state.step)
    frozen = recipe.frozen_at(state, frozen)
    computed = _as_computed(recipe, state)
    inputs = recipe.inputs(computed, frozen, resident, batch, teacher_outputs)

    # Every part takes every accumulate-th example, so that each device keeps a share of each part.
    parts = jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(-1, recipe.accumulate, *a.shape[1:]), 1, 0), inputs
    )
    sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))
    parts = jax.lax.with_sharding_constraint(parts, sharding)
    trainable = {"student": computed.params, "adapters": state.adapters}
    shards = shardings(trainable, mesh)

    def accumulate(carry, item):
        forward, totals = carry
        part, key = item

        def loss(trainable):
            return recipe.loss(moment, frozen, trainable, forward, part, key)

        (_, (forward, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(trainable)
        gradient = jax.lax.with_sharding_constraint(gradient, shards)
        new = {"gradient": gradient, "metrics": metrics}
        return forward, jax.tree.map(lambda a, b: a + b / recipe.accumulate, totals, new)

    nothing = {
        "gradient": jax.lax.with_sharding_constraint(
            jax.tree.map(jnp.zeros_like, trainable), shards
        ),
        "metrics": dict.fromkeys(recipe.metrics, jnp.float32(0)),
    }
    # The first of the two is the view's; the second is for dropout and the method's draws.
    own_key = jax.random.split(jax.random.fold_in(jax.random.key(state.seed), state.step))[1]
    keys = jax.random.split(own_key, recipe.accumulate)
    forward = ForwardState(state.stats, state.memory)
    forward, totals = _fold(mesh, accumulate, (forward, nothing), (parts, keys))
    return _updated(recipe, state, forward, totals["gradient"], totals["metrics"])


def _as_computed(recipe: Recipe, state: TrainState) -> TrainState:
    """The state with the parameters that the student computes with, quantized if it is so trained.

    The gradient is taken at these, once for all parts of a batch, and the optimizer applies it to
    the parameters of the state as it is: the straight-through estimator (Bengio et al., 2013,
    arXiv:1308.3432, section 3.1).
    """
    if recipe.quantize is None:
        return state
    # Without the barrier XLA could compute the last update once more within the quantization, and
    # round it otherwise than in the state that is saved.
    params = recipe.quantize(jax.lax.optimization_barrier(state.params))
    return dataclasses.replace(state, params=params)


def _only_trained(recipe: Recipe, tree: dict[str, Any]) -> dict[str, Any]:
    """The tree over {"student", "adapters"} with zeros for what the stage does not train."""
    return {
        group: {
            name: value if recipe.trains(group, name) else jnp.zeros_like(value)
            for name, value in values.items()
        }
        for group, values in tree.items()
    }


def _updated(
    recipe: Recipe,
    state: TrainState,
    forward: ForwardState,
    gradient: dict[str, Any],
    metrics: dict[str, jax.Array],
) -> TrainState:
    """The optimizer's update, the moving average, the sums of metrics and the finiteness check."""
    stats, memory = forward
    trainable = {"student": state.params, "adapters": state.adapters}
    gradient = _only_trained(recipe, gradient)
    updates, optimizer = recipe.optimizer.update(gradient, state.optimizer, trainable)
    trainable = optax.apply_updates(trainable, _only_trained(recipe, updates))
    params = trainable["student"]
    if not any(recipe.trains("student", name) for name in params):
        stats = state.stats
    if recipe.max_norm:
        params = optimizers.constrain_norms(params, recipe.max_norm)
    average = {}
    if state.average:
        average = optax.incremental_update(
            {"params": params, "stats": stats}, state.average, recipe.average_rate(state.step)
        )
    norm = optax.tree.norm(gradient)
    fresh = (state.step % recipe.log_every) == 0
    new = {"steps": 1.0, "gradient_norm": norm, **metrics}
    sums = {name: jnp.where(fresh, 0.0, total) + new[name] for name, total in state.sums.items()}
    bad = ~(jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)) & (state.bad_step < 0)
    return TrainState(
        step=state.step + 1,
        seed=state.seed,
        params=params,
        stats=stats,
        adapters=trainable["adapters"],
        memory=memory,
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


def compile_steps(
    recipe: Recipe, mesh: Mesh, layout: TrainState | None = None
) -> jax.stages.Wrapped:
    """The jitted function of n steps: (state, frozen, resident, batches [n, B, ...]) -> state.

    It donates the state. One program is compiled for every n that it is called with. The teachers'
    outputs are computed for `recipe.ahead` steps at a time, or for the largest number below it that
    divides n.

    Args:
      recipe: of the stage.
      mesh: the devices.
      layout: the shardings of the state, before and after; None where all of it is whole on every
        device.
    """

    def steps(state, frozen, resident, batches):
        count = jax.tree.leaves(batches)[0].shape[0]
        group = max(k for k in range(1, min(recipe.ahead, count) + 1) if count % k == 0)

        def one(state, item):
            batch, teacher_outputs = item
            return train_step(recipe, mesh, state, frozen, resident, batch, teacher_outputs)

        def several(state, batches):
            teacher_outputs = None
            if group > 1:
                teacher_outputs = recipe.outputs_ahead(state, frozen, resident, batches)
            return _fold(mesh, one, state, (batches, teacher_outputs))

        if group == count:
            return several(state, batches)
        grouped = jax.tree.map(lambda a: a.reshape(-1, group, *a.shape[1:]), batches)
        return _fold(mesh, several, state, grouped)

    return jax.jit(steps, donate_argnums=0, out_shardings=layout or replicated(mesh))


def compile_reset(
    recipe: Recipe, mesh: Mesh, layout: TrainState | None = None
) -> Callable[[TrainState], TrainState]:
    """The jitted function that begins a stage: it initialises the optimizer again."""

    def reset(state):
        trainable = {"student": state.params, "adapters": state.adapters}
        return dataclasses.replace(state, optimizer=recipe.optimizer.init(trainable))

    return jax.jit(reset, donate_argnums=0, out_shardings=layout or replicated(mesh))


def put_batches(batches: Sequence[dict[str, Any]], mesh: Mesh) -> Batch:
    """Host batches stacked along a new leading axis [n, B, ...] and split over the mesh.

    Each process gives its own rows of every batch. A "view_key" belongs to a whole batch rather
    than to an example, and is replicated.
    """
    split = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))
    whole = replicated(mesh)
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    return {
        name: put(value, whole) if name == "view_key" else put_rows(value, split, axis=1)
        for name, value in stacked.items()
    }
