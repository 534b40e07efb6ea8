"""One run in its workdir: what happens when a log line, an evaluation or a checkpoint is due."""

import contextlib
import dataclasses
import resource
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from distill_jax.errors import UsageError
from distill_jax.evaluation.text_metrics import METRICS
from distill_jax.processes import coordination
from distill_jax.reports import figure_style
from distill_jax.runs import figures
from distill_jax.runs.logs import RunLogs
from distill_jax.runs.workdir import Workdir
from distill_jax.tasks.base import Parts
from distill_jax.training import checkpoints, loop, state
from distill_jax.training.logging.progress import Progress


@dataclasses.dataclass
class History:
    """What a run remembers of its past; checkpoints carry it over a restart.

    Attributes:
      best_score: of the validation split so far, see `Session.save`.
      last_validation: the latest metrics of the validation split, with their step.
      best_test: the metrics of the test split where its accuracy was best; reported, never used.
      training_time_s: seconds of training over all restarts, without evaluating and saving.
    """

    best_score: float | None = None
    last_validation: dict[str, Any] = dataclasses.field(default_factory=dict)
    best_test: dict[str, Any] | None = None
    training_time_s: float = 0.0

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> "History":
        """The history in the `extra` of a checkpoint."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: extra[name] for name in names if name in extra})


class Session:
    """The hooks of the loop for one run in its workdir.

    Args:
      parts: of the run.
      paths: its workdir.
      progress: what the user sees.
      resumed: whether the workdir already holds this run.

    Attributes:
      history: what the run remembers of its past.
      checkpoints: those of the workdir.
    """

    def __init__(self, parts: Parts, paths: Workdir, progress: Progress, resumed: bool):
        self.parts, self.paths = parts, paths
        self.config = parts.config
        self.history = History()
        self.checkpoints = checkpoints.Checkpoints(
            paths.checkpoints,
            keep_last=self.config.checkpoint.keep_last,
            keep_best="validation" in parts.evaluators,
            warn=progress.note,
        )
        self._progress = progress
        self._resumed = resumed
        self._run = paths.run_id()
        self._logs = RunLogs(paths)
        self._timed_since = time.perf_counter()
        self._cpu_since = time.process_time()
        self._last_logged = (0, 0.0)  # step, and seconds of training
        self._cpu_time_s = 0.0  # of training, since the last line of the log
        train = parts.description["data"].get("train")
        # Of text, the tokens of a row that are not padding, on average; of images none.
        self._tokens_an_example = (
            train["input_tokens"] / max(train["rows"], 1) if isinstance(train, Mapping) else 0.0
        )

    def start(self) -> tuple[state.TrainState, int, int]:
        """The state to start or resume from, its step, and its position in the data."""
        restored = self._restore() if self._resumed else None
        if restored is None:
            now, at, extra = self.parts.initial, 0, {}
        else:
            now, at, extra = restored.state, restored.step, restored.extra
            self._progress.note(f"resumed from the checkpoint of step {at}")
            self._check_own(at, extra)
        self.history = History.of(extra)
        self._last_logged = (at, self.history.training_time_s)
        self._logs.resume(self.config, at)
        self._begin_timing()
        return now, at, extra.get("position", 0)

    def _check_own(self, at: int, extra: Mapping[str, Any]) -> None:
        """Refuses a checkpoint of another run, and metrics that are not those before it."""
        if extra.get("run", self._run) != self._run:
            raise UsageError(
                f"--workdir={self.paths.root}: checkpoint {at} is of another run "
                f"({str(extra['run'])[:12]}); expected those of {str(self._run)[:12]}"
            )
        expected = extra.get("metrics_sha256", "")
        found = self._logs.digest(at)
        if not expected or not coordination.is_first() or found == expected:
            return
        if found:
            raise UsageError(
                f"--workdir={self.paths.root}: metrics.jsonl is not what this run wrote up to step "
                f"{at}; expected that file, or none, after which the curves begin at step {at}"
            )
        self._progress.note(
            f"WARNING: metrics.jsonl has lost what the run wrote up to step {at}; "
            "the curves begin there"
        )

    def _restore(self) -> checkpoints.Restored | None:
        abstract = self.abstract_state()
        if self.checkpoints.steps():
            # The devices may not have room for two states.
            jax.tree.map(lambda a: a.delete(), self.parts.initial)
        return self.checkpoints.restore(abstract)

    def abstract_state(self) -> state.TrainState:
        """Shapes, dtypes and shardings of the state."""
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
            self.parts.initial,
        )

    def note(self, line: str) -> None:
        """Shows the user a line."""
        self._progress.note(line)

    def close(self) -> None:
        """Waits for the last checkpoint and closes the logs."""
        self.checkpoints.close()
        self._logs.close()

    def log(self, at: int, sums: dict[str, float]) -> None:
        """Writes the means of the training metrics since the last line, and the speed."""
        count = sums.pop("steps")
        values = {name: total / count for name, total in sums.items()}
        values["epoch"] = at / self.parts.steps_per_epoch
        recipe = self.parts.recipe_at(at - 1)
        values["learning_rate"] = float(recipe.learning_rate(at - 1 - recipe.begin))
        self._logs.write(at, "train", values)
        performance = self._measure_performance(at)
        self._logs.write_performance(at, performance)
        shown = {name: values[name] for name in ("loss", "accuracy", "epoch")}
        if values.get("on_policy"):
            # What the student wrote are no labels: the figure says how often it would again.
            shown["agreement_with_own_samples"] = shown.pop("accuracy")
        validation = self.history.last_validation
        for name in ("accuracy", *METRICS):
            if name in validation:
                shown[f"validation_{name}"] = validation[name]
        shown["examples_per_second"] = performance["examples_per_second"]
        if tokens := self._tokens_an_example:
            shown["tokens_per_second"] = tokens * performance["examples_per_second"]
        memory = performance["device_memory_bytes"] or performance["host_memory_bytes"]
        shown["memory_bytes"] = memory
        self._progress.update(at, shown)
        self._logs.upload_periodically(self._progress.note)

    def _measure_performance(self, at: int) -> dict[str, Any]:
        """Speed since the last line of the log, and memory."""
        self._count_training_time()
        step, seconds = self._last_logged
        self._last_logged = (at, self.history.training_time_s)
        steps, seconds = at - step, self.history.training_time_s - seconds
        cpu_time_s, self._cpu_time_s = self._cpu_time_s, 0.0
        return {
            "examples_per_second": steps * self.config.training.batch_size / max(seconds, 1e-9),
            "step_time_s": seconds / max(steps, 1),
            "step_cpu_time_s": cpu_time_s / max(steps, 1),
            "device_memory_bytes": _device_memory(),
            "host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def evaluate(self, at: int, now: state.TrainState) -> bool:
        """Evaluates the validation split; True when this is the best state so far."""
        with self._not_training():
            if self.config.evaluation.track_test:
                self._track_test(at, now)
            evaluator = self.parts.evaluators.get("validation")
            if evaluator is None:
                return False
            values = _scalars(evaluator(*self.parts.evaluated(now)))
            self._logs.write(at, "validation", values)
            self.history.last_validation = {"step": at, **values}
            score = self._score(values)
            best = self.history.best_score is None or score > self.history.best_score
            if best:
                self.history.best_score = score
            return best

    def show_final(self, metrics: Mapping[str, Any]) -> None:
        """Shows the figures and texts of the finished run in its trackers.

        Args:
          metrics: of the last step, by split.
        """
        if not self._logs.tracked:
            return
        total, test = self.parts.total_steps, metrics.get("test") or {}
        self._logs.write_to_trackers(total, "test", _scalars(test))
        self._logs.show_samples(total, "test", test.get("samples") or ())
        for name, figure in figures.of_evaluation(self.paths, self.parts.description, test).items():
            self._logs.show_figure(total, f"test/{name}", figure_style.pixels(figure))

    def _track_test(self, at: int, now: state.TrainState) -> None:
        """Writes the metrics of the test split and remembers the best ones."""
        values = _scalars(self.parts.evaluators["test"](*self.parts.evaluated(now)))
        self._logs.write(at, "test", values)
        best = self.history.best_test
        if best is None or values["accuracy"] > best["accuracy"]:
            self.history.best_test = {"step": at, **values}

    def _score(self, validation: Mapping[str, Any]) -> float:
        """What selects a model; higher is better."""
        select = self.config.evaluation.select
        return -validation["nll"] if select == "nll" else validation[select]

    def save(self, at: int, now: state.TrainState) -> None:
        """Starts saving a checkpoint, with its score where this step was evaluated."""
        with self._not_training():
            self._logs.sync()
            history = self.history
            evaluated = history.last_validation.get("step") == at
            extra = {
                "position": at * self.config.training.batch_size,
                "best_score": history.best_score,
                "last_validation": history.last_validation,
                "best_test": history.best_test,
                "training_time_s": history.training_time_s,
                "run": self._run,
                "metrics_sha256": self._logs.digest(at),
            }
            score = self._score(history.last_validation) if evaluated else None
            self.checkpoints.save(at, now, extra, score=score)

    def diverged(self, at: int) -> loop.Diverged:
        """The error for a loss that was not finite in the step numbered `at` from 0."""
        ids = self.parts.ids(at)
        sealed = self.checkpoints.steps()
        good = f"the checkpoint of step {sealed[-1]}" if sealed else "none"
        listed = " ".join(map(str, ids[:64])) + (" ..." if len(ids) > 64 else "")
        return loop.Diverged(
            f"loss or gradient is not finite in step {at + 1}; last good: {good} in "
            f"{self.paths.checkpoints}; ids of the batch: {listed}"
        )

    def _count_training_time(self) -> None:
        """Adds the time since the last call to the training time, wall and processor."""
        self.history.training_time_s += time.perf_counter() - self._timed_since
        self._cpu_time_s += time.process_time() - self._cpu_since
        self._begin_timing()

    def _begin_timing(self) -> None:
        """From here on, time counts as training time."""
        self._timed_since, self._cpu_since = time.perf_counter(), time.process_time()

    @contextlib.contextmanager
    def _not_training(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        self._count_training_time()
        yield
        self._begin_timing()


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of an evaluation that are single numbers."""
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def _device_memory() -> int | None:
    """Peak bytes in use on the first device; None where the backend does not count them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
