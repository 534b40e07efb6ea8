"""One run in its workdir: what happens when a log line, an evaluation or a checkpoint is due."""

import resource
import time
from collections.abc import Mapping
from typing import Any

import jax

from distill_jax.evaluation.text_metrics import METRICS
from distill_jax.processes import coordination
from distill_jax.runs.workdir import Workdir
from distill_jax.storage import GrowingFiles
from distill_jax.tasks.base import Parts
from distill_jax.training import checkpoints, loop, state
from distill_jax.training.logging import writers
from distill_jax.training.logging.progress import Progress

#: What is written beside checkpoints while a run goes on; in the run's folder.
GROWING = ("metrics.jsonl", "performance.jsonl", "tensorboard", "wandb_run_id")


class Session:
    """One run in its workdir: the hooks of the loop, and what they remember between calls."""

    def __init__(self, parts: Parts, paths: Workdir, progress: Progress, resumed: bool):
        self.parts, self.paths, self.progress = parts, paths, progress
        self.config = parts.config
        self.best_score: float | None = None
        self.seconds = 0.0  # of training, over all restarts
        self.clock = time.perf_counter()
        self.logged_step, self.logged_seconds = 0, 0.0
        self.last_validation: dict[str, Any] = {}
        self.best_test: dict[str, Any] | None = None  # shown, never used
        self.checkpoints = checkpoints.Checkpoints(
            paths.checkpoints,
            keep_last=self.config.checkpoint.keep_last,
            keep_best="validation" in parts.evaluators,
            warn=progress.note,
        )
        log = writers.MetricsLog if coordination.is_first() else lambda path: writers.Silent()
        self.growing = GrowingFiles(paths.root, GROWING if coordination.is_first() else ())
        self.logs = Workdir(self.growing.folder)
        self.metrics, self.performance = log(self.logs.metrics), log(self.logs.performance)
        self.boards: list[Any] = []
        self.resumed = resumed

    def start(self) -> tuple[state.TrainState, int, int]:
        """The state to go on from, its step, and its position in the data."""
        restored = None
        if self.resumed:
            abstract = self.abstract()
            if self.checkpoints.steps():
                # There may not be room for two states.
                jax.tree.map(lambda a: a.delete(), self.parts.initial)
            restored = self.checkpoints.restore(abstract)
        if restored is None:
            now, at, extra = self.parts.initial, 0, {}
        else:
            now, at, extra = restored.state, restored.step, restored.extra
            self.progress.note(f"resumed from the checkpoint of step {at}")
        self.best_score = extra.get("best_score")
        self.seconds = extra.get("training_time_s", 0.0)
        self.last_validation = extra.get("last_validation", {})
        self.best_test = extra.get("best_test")
        self.logged_step, self.logged_seconds = at, self.seconds
        for log in (self.metrics, self.performance):
            log.truncate(at)
        if self.config.logging.tensorboard and coordination.is_first():
            self.boards.append(writers.TensorBoard(self.logs.tensorboard, purge_step=at + 1))
        if self.config.logging.wandb and coordination.is_first():
            self.boards.append(
                writers.Wandb(self.config.logging.wandb, self.config.to_dict(), self.logs.root)
            )
        self.clock = time.perf_counter()
        return now, at, extra.get("position", 0)

    def abstract(self) -> state.TrainState:
        """Shapes, dtypes and shardings of the state."""
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
            self.parts.initial,
        )

    def close(self) -> None:
        self.checkpoints.close()
        for writer in (self.metrics, self.performance, *self.boards):
            writer.close()
        self.growing.close()

    def _write(self, at: int, split: str, values: Mapping[str, Any]) -> None:
        self.metrics.write(at, split, values)
        for board in self.boards:
            board.write(at, split, values)

    def _lap(self) -> float:
        """Seconds of training since the last lap; evaluation and saving are outside of laps."""
        now = time.perf_counter()
        lap, self.clock = now - self.clock, now
        return lap

    def log(self, at: int, sums: dict[str, float]) -> None:
        count = sums.pop("steps")
        values = {name: total / count for name, total in sums.items()}
        values["epoch"] = at / self.parts.steps_per_epoch
        recipe = self.parts.recipe_at(at - 1)
        values["learning_rate"] = float(recipe.learning_rate(at - 1 - recipe.begin))
        self._write(at, "train", values)
        self.seconds += self._lap()
        steps, seconds = at - self.logged_step, self.seconds - self.logged_seconds
        self.logged_step, self.logged_seconds = at, self.seconds
        speed = {
            "examples_per_second": steps * self.config.training.batch_size / max(seconds, 1e-9),
            "step_time_s": seconds / max(steps, 1),
            "device_memory_bytes": _device_memory(),
            "host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        self.performance.write(at, "train", speed)
        for board in self.boards:
            board.write(at, "performance", speed)
        shown = {name: values[name] for name in ("loss", "accuracy", "epoch")}
        if self.last_validation:
            for name in ("accuracy", *METRICS):
                if name in self.last_validation:
                    shown[f"validation_{name}"] = self.last_validation[name]
        self.progress.update(at, {**shown, "examples_per_second": speed["examples_per_second"]})
        self.growing.upload_periodically(self.progress.note)

    def evaluate(self, at: int, now: state.TrainState) -> bool:
        self.seconds += self._lap()
        if self.config.evaluation.track_test:
            self._track_test(at, now)
        evaluator = self.parts.evaluators.get("validation")
        if evaluator is None:
            self.clock = time.perf_counter()
            return False
        values = evaluator(*now.evaluated)
        self._write(at, "validation", _scalars(values))
        self.last_validation = {"step": at, **_scalars(values)}
        score = self._score(self.last_validation)
        best = self.best_score is None or score > self.best_score
        if best:
            self.best_score = score
        self.clock = time.perf_counter()
        return best

    def _track_test(self, at: int, now: state.TrainState) -> None:
        """Writes the figures of the test split and remembers the best epoch of the past."""
        values = _scalars(self.parts.evaluators["test"](*now.evaluated))
        self._write(at, "test", values)
        if self.best_test is None or values["accuracy"] > self.best_test["accuracy"]:
            self.best_test = {"step": at, **values}

    def _score(self, validation: Mapping[str, Any]) -> float:
        """What selects a model; higher is better."""
        select = self.config.evaluation.select
        return -validation["nll"] if select == "nll" else validation[select]

    def save(self, at: int, now: state.TrainState) -> None:
        self.seconds += self._lap()
        self.metrics.sync()
        self.performance.sync()
        self.growing.upload()
        evaluated = self.last_validation.get("step") == at
        score = self._score(self.last_validation) if evaluated else None
        extra = {
            "position": at * self.config.training.batch_size,
            "best_score": self.best_score,
            "last_validation": self.last_validation,
            "best_test": self.best_test,
            "training_time_s": self.seconds,
        }
        self.checkpoints.save(at, now, extra, score=score)
        self.clock = time.perf_counter()

    def diverged(self, at: int) -> loop.Diverged:
        ids = self.parts.ids(at)
        sealed = self.checkpoints.steps()
        good = f"the checkpoint of step {sealed[-1]}" if sealed else "none"
        listed = " ".join(map(str, ids[:64])) + (" ..." if len(ids) > 64 else "")
        return loop.Diverged(
            f"loss or gradient is not finite in step {at + 1}; last good: {good} in "
            f"{self.paths.checkpoints}; ids of the batch: {listed}"
        )


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation that are single numbers."""
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def _device_memory() -> int | None:
    """Peak bytes in use on the first device; None where the backend does not count them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
