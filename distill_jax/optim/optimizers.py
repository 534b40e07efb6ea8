"""Optimizers and learning-rate schedules, all from optax, by their names in a config."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

NAMES = ("sgd", "adamw", "lion", "muon")
SCHEDULES = ("constant", "cosine", "linear", "step")

LearningRate = Callable[[jax.Array | int], jax.Array]


P = ParamSpec("P")
R = TypeVar("R")


def _with_promotion(function: Callable[P, R]) -> Callable[P, R]:
    """Lets optax mix step counts, rates and arrays even if JAX is set to refuse promotion."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return run


def learning_rate(
    config: ConfigDict, rate: float, total_steps: int, steps_per_epoch: float
) -> LearningRate:
    """The learning rate as a function of the step.

    Args:
      config: the section `schedule` of a config.
      rate: the rate after the warm-up.
      total_steps: steps of the whole run.
      steps_per_epoch: examples over batch size, not necessarily whole.

    Returns:
      A traceable function: a linear warm-up from 0, then the rate of `schedule.name`. Milestones
      count from the start of the run: the rate drops at the first step past a milestone's epoch.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    decay_steps = max(total_steps - warmup, 1)
    if config.name == "constant":
        main = optax.constant_schedule(rate)
    elif config.name == "cosine":
        main = optax.cosine_decay_schedule(rate, decay_steps, alpha=config.end_factor)
    elif config.name == "linear":
        main = optax.linear_schedule(rate, rate * config.end_factor, decay_steps)
    else:
        drops = {
            max(round(epoch * steps_per_epoch) - warmup, 0): config.factor
            for epoch in config.milestones
        }
        main = optax.piecewise_constant_schedule(rate, drops)
    if warmup:
        main = optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])
    return _with_promotion(main)


def kernels_only(params: optax.Params) -> optax.Params:
    """A mask over flat-dict parameters: True for kernels, False for biases and normalisation."""

    def is_kernel(path: tuple[jax.tree_util.DictKey, ...], leaf: object) -> bool:
        del leaf
        return str(path[-1].key).rpartition("/")[2] == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def create(config: ConfigDict, rate: LearningRate) -> optax.GradientTransformation:
    """The optimizer of a config.

    Args:
      config: the section `optimizer` of a config.
      rate: from `learning_rate`.

    Returns:
      Gradient clipping, if any, then the optimizer. With sgd, the weight decay is added to the
      gradient before the momentum, as in PyTorch; with adamw, lion and muon it is decoupled.
    """
    mask = kernels_only if config.decay_mask == "kernels" else None
    decay = {"weight_decay": config.weight_decay}
    if config.name == "sgd":
        main = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=mask),
            optax.sgd(rate, momentum=config.momentum or None, nesterov=config.nesterov),
        )
    elif config.name == "adamw":
        main = optax.adamw(rate, b1=config.b1, b2=config.b2, mask=mask, **decay)
    elif config.name == "lion":
        main = optax.lion(rate, b1=config.b1, b2=config.b2, mask=mask, **decay)
    else:
        main = optax.contrib.muon(rate, beta=config.momentum, weight_decay_mask=mask, **decay)
    if config.clip_norm:
        main = optax.chain(optax.clip_by_global_norm(config.clip_norm), main)
    return optax.GradientTransformation(main.init, _with_promotion(main.update))


def constrain_norms(params: dict[str, jax.Array], max_norm: float) -> dict[str, jax.Array]:
    """Scales down each unit's incoming weights in dense layers to a norm of at most `max_norm`.

    The max-norm constraint that Hinton et al. 2012 (Improving neural networks by preventing
    co-adaptation, section 2) and Srivastava et al. 2014 (section 5.1) use together with dropout;
    apply it after an update.

    Args:
      params: flat parameters; two-dimensional kernels [inputs, units] are constrained.
      max_norm: largest Euclidean norm of a column.

    Returns:
      The parameters, all but those kernels unchanged.
    """

    def constrain(name: str, value: jax.Array) -> jax.Array:
        if value.ndim != 2 or name.rpartition("/")[2] != "kernel":
            return value
        norms = jnp.linalg.norm(value, axis=0, keepdims=True)
        return value * jnp.minimum(1.0, max_norm / jnp.maximum(norms, 1e-12))

    return {name: constrain(name, value) for name, value in params.items()}
