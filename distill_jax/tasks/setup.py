"""What every task sets up alike: the mesh, the state, and the settings of a stage."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import kernels, parallel
from distill_jax.errors import UsageError
from distill_jax.optim import optimizers, schedules
from distill_jax.optim.optimizers import LearningRate
from distill_jax.quantization.aware import Quantizer
from distill_jax.training import state
from distill_jax.training.recipe import Recipe, StageSettings
from distill_jax.training.state import InitialArrays, TrainState


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices of a run.

    Args:
      config: resolved.
      devices: those to use; by default all that this process has.

    Raises:
      UsageError: the mesh needs another number of devices, or does not divide a batch or a part of
        one.
    """
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    for key in ("training.batch_size", "evaluation.batch_size"):
        parallel.check_divides(mesh, key, configs.flatten(config)[key])
    part = config.training.batch_size // config.training.accumulate
    if part % parallel.batch_ways(mesh):
        raise UsageError(
            f"training.accumulate={config.training.accumulate}: parts of {part} examples do "
            f"not divide by the {parallel.batch_ways(mesh)} devices that share a batch; expected a "
            "smaller number"
        )
    select_kernels(config, mesh)
    return mesh


def select_kernels(config: ConfigDict, mesh: Mesh) -> None:
    """Selects the kernels of CPUs, as `training.cpu_kernels` names them, for what is traced next.

    Raises:
      UsageError: the kernels cannot be used here.
    """
    choice = config.training.cpu_kernels
    try:
        kernels.select(choice, platform=parallel.platform(mesh), devices=mesh.size)
    except kernels.Unavailable as error:
        raise UsageError(
            f"training.cpu_kernels={choice!r}: {error}; expected 'auto' or 'xla' here"
        ) from None


def initial_state(
    config: ConfigDict, mesh: Mesh, recipe: Recipe, arrays: InitialArrays
) -> TrainState:
    """The state before the first step of a run.

    Args:
      config: resolved.
      mesh: the devices.
      recipe: of the first stage.
      arrays: what the run begins with, or `jax.ShapeDtypeStruct`s of it.
    """
    return state.initial_state(
        arrays,
        recipe.optimizer,
        mesh=mesh,
        replicate=config.mesh.replicate,
        seed=config.seed,
        averaged=config.training.ema_decay > 0,
        metrics=recipe.metrics,
    )


def frozen_shardings(config: ConfigDict, mesh: Mesh, arrays: Any, part: str) -> Any:
    """The shardings of frozen arrays of "student" or "teacher", as `mesh.replicate` asks."""
    return parallel.shardings({part: arrays}, mesh, config.mesh.replicate)[part]


def step_count(epochs: float, steps_per_epoch: float) -> int:
    """How many steps complete `epochs` epochs."""
    return math.ceil(epochs * steps_per_epoch - 1e-9)


def main_steps(config: ConfigDict, steps_per_epoch: float) -> int:
    """The steps of the training itself: `training.steps`, else those of `training.epochs`."""
    return config.training.steps or step_count(config.training.epochs, steps_per_epoch)


def main_learning_rate(config: ConfigDict, steps: int, steps_per_epoch: float) -> LearningRate:
    """The learning rate of the training itself, as a function of its step."""
    return optimizers.learning_rate(
        config.schedule, config.optimizer.learning_rate, steps, steps_per_epoch
    )


def stage_settings(
    config: ConfigDict,
    *,
    begin: int,
    steps: int,
    steps_per_epoch: float,
    learning_rate: LearningRate,
    hard_weight: float | str | None = None,
    soft_weight: float | str | None = None,
    quantize: Quantizer | None = None,
) -> StageSettings:
    """What the recipes of every task need to know of a stage.

    Args:
      config: resolved.
      begin: the first step of the stage.
      steps: of the stage.
      steps_per_epoch: examples over batch size.
      learning_rate: of the stage.
      hard_weight: of the stage, a number or a schedule; None for `method.hard_weight`.
      soft_weight: likewise; None for `method.soft_weight`.
      quantize: of a student that is trained with quantized matrices.
    """
    hard = config.method.hard_weight if hard_weight is None else hard_weight
    soft = config.method.soft_weight if soft_weight is None else soft_weight
    return StageSettings(
        begin=begin,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        hard_weight=schedules.parse(hard),
        soft_weight=schedules.parse(soft),
        temperature=schedules.parse(config.method.temperature),
        optimizer=optimizers.create(config.optimizer, learning_rate),
        learning_rate=learning_rate,
        max_norm=config.optimizer.max_norm,
        ema_decay=config.training.ema_decay,
        accumulate=config.training.accumulate,
        log_every=config.logging.every_steps,
        ema_warmup=config.training.ema_warmup,
        quantize=quantize,
    )


def abstract_batches(
    mesh: Mesh, shapes: Mapping[str, tuple[tuple[int, ...], Any]], ahead: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """The batches of `ahead` steps as shapes, split over the mesh, from {name: (shape, dtype)}."""
    split = NamedSharding(mesh, PartitionSpec(None, parallel.BATCH))
    return {
        name: jax.ShapeDtypeStruct((ahead, *shape), dtype, sharding=split)
        for name, (shape, dtype) in shapes.items()
    }
