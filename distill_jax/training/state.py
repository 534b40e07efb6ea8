"""All that changes during training, as one pytree: what a checkpoint holds."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from distill_jax import parallel

Flat = dict[str, jax.Array]


class InitialArrays(NamedTuple):
    """What a run begins with: the student's arrays and the method's.

    Attributes:
      params: the student's parameters that are trained.
      stats: its batch statistics.
      adapters: the method's arrays that are trained with the student.
      memory: the method's arrays that each step replaces.
    """

    params: Flat
    stats: Flat
    adapters: Flat
    memory: Flat


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """The parameters that no step changes: never donated, and in no checkpoint.

    Attributes:
      student: the part of the student that is not trained, by name: the base under low-rank
        adapters; {} where all of it is trained.
      teachers: the arrays of each teacher, in the form that its structure takes.
    """

    student: Flat = dataclasses.field(default_factory=dict)
    teachers: list[Any] = dataclasses.field(default_factory=list)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state between two steps. It has no random state: draws follow from the seed and the step.

    Attributes:
      step: number of steps done, int32.
      seed: of the run, int32; an input of the program, so that runs of other seeds share it.
      params: the student's parameters.
      stats: the student's batch statistics.
      adapters: arrays of the method that are trained with the student.
      memory: arrays that the method replaces in each step, such as a memory bank.
      optimizer: optax's state over {"student": params, "adapters": adapters}.
      average: {"params", "stats"}: exponential moving averages of both, or {}.
      sums: sums of the training metrics since the last line of the log, over `sums["steps"]` steps.
      bad_step: the first step whose loss or gradient was not finite, or -1; int32.
    """

    step: jax.Array
    seed: jax.Array
    params: Flat
    stats: Flat
    adapters: Flat
    memory: Flat
    optimizer: Any
    average: dict[str, Flat]
    sums: dict[str, jax.Array]
    bad_step: jax.Array

    @property
    def evaluated(self) -> tuple[Flat, Flat]:
        """Parameters and statistics that are evaluated and saved: the averages where kept."""
        if self.average:
            return self.average["params"], self.average["stats"]
        return self.params, self.stats


def copy_to(state: TrainState, layout: Any) -> TrainState:
    """A copy of the state in new buffers, which a step may then donate.

    Args:
      state: on the host or on devices of this process.
      layout: one sharding, or the tree of them.
    """
    return parallel.put(jax.tree.map(lambda a: np.array(a, copy=True), state), layout)


def initial_state(
    arrays: InitialArrays,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    replicate: Collection[str] = (),
    seed: int,
    averaged: bool,
    metrics: Iterable[str],
) -> TrainState:
    """The state before the first step, on the devices, in buffers of its own.

    From `jax.ShapeDtypeStruct`s it makes a state of shapes, dtypes and shardings.

    Args:
      arrays: of the student and the method.
      optimizer: gives its state.
      mesh: the devices; `parallel.shardings` splits the state over them.
      replicate: what is whole on every device: "student", "adapters", "optimizer" or "average".
      seed: of the run.
      averaged: whether a moving average is kept; it starts as a copy of the student.
      metrics: names of what a step measures.
    """

    def make(arrays):
        params, stats, adapters, memory = arrays
        return TrainState(
            step=jnp.int32(0),
            seed=jnp.int32(seed),
            params=params,
            stats=stats,
            adapters=adapters,
            memory=memory,
            optimizer=optimizer.init({"student": params, "adapters": adapters}),
            average={"params": params, "stats": stats} if averaged else {},
            sums={name: jnp.float32(0) for name in ("steps", *metrics, "gradient_norm")},
            bad_step=jnp.int32(-1),
        )

    abstract = jax.eval_shape(make, arrays)
    whole = {"params" if part == "student" else part for part in replicate}
    shardings = parallel.shardings(abstract, mesh, whole)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(arrays)):
        return with_shardings(abstract, shardings)
    # Moments of sharded arrays have the same shardings: no device ever holds them whole.
    return jax.tree.map(jnp.copy, parallel.put(make(arrays), shardings))


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of `jax.ShapeDtypeStruct`s with these shardings."""
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        shapes,
        shardings,
    )
