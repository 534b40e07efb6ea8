"""All that changes during training, as one pytree: what a checkpoint holds."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax.parallel import place

Flat = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state between two steps. No random state: draws are functions of the seed and the step.

    Attributes:
      step: number of steps done, int32.
      seed: of the run, int32. Here and not in the program: runs of other seeds share one program.
      params: the student's parameters.
      stats: the student's batch statistics.
      adapters: trainable arrays of the method, beside the student.
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


def placed(host: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
    """A state on the devices, of one on the host; its buffers are its own, so may be donated."""
    return jax.tree.map(lambda a: place(np.array(a, copy=True), sharding), host)


def initial(
    params: Flat,
    stats: Flat,
    adapters: Flat,
    memory: Flat,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    averaged: bool,
    metrics: Iterable[str],
) -> TrainState:
    """The state before the first step.

    Args:
      params: the student's initial parameters.
      stats: its initial batch statistics.
      adapters: the method's initial arrays that are trained.
      memory: its initial arrays that are not.
      optimizer: gives its state.
      seed: of the run.
      averaged: whether a moving average is kept; it starts as a copy of the student.
      metrics: names of what a step measures.
    """
    copy = {"params": params, "stats": stats} if averaged else {}
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.int32(seed),
        params=params,
        stats=stats,
        adapters=adapters,
        memory=memory,
        optimizer=optimizer.init({"student": params, "adapters": adapters}),
        average=jax.tree.map(jnp.copy, copy),
        sums={name: jnp.float32(0) for name in ("steps", *metrics, "gradient_norm")},
        bad_step=jnp.int32(-1),
    )
