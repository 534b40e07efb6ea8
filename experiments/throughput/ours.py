"""This library's contenders: the parts, the compiled steps and the loop of a real run.

They do exactly what `distill-jax train` does between two evaluations: batches of ids, the steps of
a call, the metrics of the log every 50 steps. Writing the log, evaluations and checkpoints are left
out, as in PyTorch's contenders.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from distill_jax import config as configs
from distill_jax import kernels, models, parallel, tasks
from distill_jax.runs import training
from distill_jax.tasks.images.parts import prepare as parts_of
from distill_jax.training import loop, state, step
from experiments.throughput.contest import TrainFor

#: What each contender changes in the config.
CHANGES: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_xla": {"training.cpu_kernels": "xla"},
    "ours_ahead": {"teacher.look_ahead": 8},
    "ours_bf16_teacher": {"teacher.compute_dtype": "bfloat16"},
    "ours_stored": {},
}
ENDLESS = 10**9  # steps, more than any measurement takes


class _Hooks:
    """Keeps the state at the end of a measurement."""

    def __init__(self, now: state.TrainState):
        self.now, self.at = now, 0

    def log(self, at: int, sums: dict[str, float]) -> None:
        pass

    def evaluate(self, at: int, now: state.TrainState) -> bool:
        return False

    def save(self, at: int, now: state.TrainState) -> None:
        self.now, self.at = now, at

    def diverged(self, at: int) -> loop.Diverged:
        return loop.Diverged(f"loss or gradient is not finite in step {at + 1}")


def config_of(name: str, task: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """The unresolved config of a contender; see `prepare` for the arguments."""
    stored = name == "ours_stored"
    flat = task["config"] | {
        "data.path": task["few_data" if stored else "data"],
        "teacher.look_ahead": 1,
        "teacher.path": (str(folder / "teacher"),),
        "training.steps": ENDLESS,
        "evaluation.every_epochs": 0.0,
        "checkpoint.every_epochs": 0.0,
        "mesh.data": 1,
    }
    return configs.unflatten(flat | CHANGES[name])


def prepare(name: str, task: Mapping[str, Any], folder: pathlib.Path) -> tuple[TrainFor, dict]:
    """The training function of a contender, and its description.

    Args:
      name: one of CHANGES.
      task: the task of all contenders: "config", flat; "teacher", the name of its network; "data"
        and "few_data", npz files, the second with the images whose answers are stored.
      folder: the contender's folder, for its teacher and its stored answers.
    """
    config = configs.resolve(config_of(name, task, folder))
    if config.training.deterministic:
        parallel.fix_gpu_order()  # as in every run, before the first computation
    _save_teacher(task["teacher"], config, folder / "teacher")
    about: dict[str, Any] = {}
    if name == "ours_stored":
        began = time.perf_counter()
        made = tasks.precompute(config, folder / "store", taps=())
        about["store"] = {
            **{key: made[key] for key in ("images", "views", "bytes")},
            "seconds": round(time.perf_counter() - began, 1),
        }
        with config.unlocked():
            config.teacher.path, config.teacher.store = (), str(folder / "store")
    parts = parts_of(config)
    timetable, batches = training.make_timetable(parts), parts.feed.at(0)
    compiled = step.compile_steps(parts.recipe, parts.mesh)
    hooks = _Hooks(state.copy_to(parts.initial, parallel.replicated(parts.mesh)))

    def advance(now: state.TrainState, at: int, group: list[Any]) -> state.TrainState:
        placed = step.put_batches(group, parts.mesh)
        return compiled(now, parts.frozen, parts.resident, placed)

    def train_for(seconds: float) -> int:
        begun, deadline = hooks.at, time.perf_counter() + seconds
        try:
            loop.run_steps(
                hooks.now,
                hooks.at,
                advance=advance,
                batches=batches,
                timetable=timetable,
                hooks=hooks,
                stop_requested=lambda: time.perf_counter() >= deadline,
            )
        except loop.Preempted:  # how a run is stopped, after its last step has been computed
            pass
        return (hooks.at - begun) * config.training.batch_size

    _, warning = parallel.describe_devices(parts.mesh)
    about |= {
        "platform": parts.mesh.devices.flat[0].platform,
        "device": parts.mesh.devices.flat[0].device_kind,
        "steps_per_call": timetable.steps_per_call,
        "look_ahead": parts.recipe.ahead,
        "cpu_kernels": str(kernels.status()),
        **({"warning": warning} if warning else {}),
    }
    return train_for, about


def _save_teacher(name: str, config, folder: pathlib.Path) -> None:
    """Saves an untrained teacher, whose forward pass costs the same as a trained one's."""
    shape, classes = (32, 32, 3), 100
    module = models.create(name, input_shape=shape, num_classes=classes, seed=1)
    _, params, stats = models.split(module)
    spec = models.Spec(name, {}, shape, classes, config.data.mean, config.data.std)
    models.save(folder, spec, params, stats)
