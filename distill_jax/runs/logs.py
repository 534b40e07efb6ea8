"""What a run writes as it goes: metrics.jsonl, performance.jsonl, and what trackers show."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from distill_jax.processes import coordination
from distill_jax.runs.workdir import Workdir
from distill_jax.storage import GrowingFiles
from distill_jax.training.logging import trackers, writers

#: The files of a workdir that grow during a run; those in a bucket are uploaded as a whole.
GROWING = ("metrics.jsonl", "performance.jsonl", "tensorboard", "wandb_run_id", "trackio_run_id")

Log = writers.MetricsLog | writers.Silent

MOST_TEXTS = 5  # of an evaluation in a tracker; result.json has all of them
LONGEST_TEXT = 2000  # characters


class RunLogs:
    """The logs of a run; only process 0 writes.

    Args:
      paths: the workdir, on a disk or in a bucket.
    """

    def __init__(self, paths: Workdir):
        self._files = GrowingFiles(paths.root, GROWING if coordination.is_first() else ())
        self._local = Workdir(self._files.folder)
        self._metrics = _open_log(self._local.metrics)
        self._performance = _open_log(self._local.performance)
        self._trackers: list[trackers.Tracker] = []

    def resume(self, config: ConfigDict, step: int) -> None:
        """Drops what was written after `step`, and opens the trackers that the config names."""
        self._metrics.truncate(step)
        self._performance.truncate(step)
        if not coordination.is_first():
            return
        if config.logging.tensorboard:
            folder = self._local.tensorboard
            self._trackers.append(trackers.TensorBoard(folder, purge_step=step + 1))
        for name, tracker in (("wandb", trackers.Wandb), ("trackio", trackers.Trackio)):
            if project := config.logging[name]:
                self._trackers.append(tracker(project, config.to_dict(), self._local.root))

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of a split."""
        self._metrics.write(step, split, metrics)
        for tracker in self._trackers:
            tracker.write(step, split, metrics)

    def write_performance(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes speed and memory, which differ between equal runs, to a file of their own."""
        self._performance.write(step, "train", values)
        for tracker in self._trackers:
            tracker.write(step, "performance", values)

    @property
    def tracked(self) -> bool:
        """Whether this process shows the run in a tracker."""
        return bool(self._trackers)

    def write_to_trackers(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Shows metrics that metrics.jsonl does not have."""
        for tracker in self._trackers:
            tracker.write(step, split, values)

    def show_figure(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Shows an image, uint8 [H, W, 3], in every tracker."""
        for tracker in self._trackers:
            tracker.show_figure(step, name, pixels)

    def show_samples(self, step: int, split: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """Shows the first answers to prompts in every tracker."""
        rows = [
            {name: str(value)[:LONGEST_TEXT] for name, value in sample.items()}
            for sample in samples[:MOST_TEXTS]
        ]
        for tracker in self._trackers if rows else ():
            tracker.show_texts(step, f"{split}/samples", rows)

    def digest(self, step: int) -> str:
        """Of the lines of metrics.jsonl up to a step; "" for none, and in other processes."""
        return self._metrics.digest(step)

    def sync(self) -> None:
        """Returns when everything written is on the disk or in the bucket."""
        self._metrics.sync()
        self._performance.sync()
        self._files.upload()

    def upload_periodically(self, warn: Callable[[str], None]) -> None:
        """Uploads to a bucket from time to time; warns of a failure and tries again later."""
        self._files.upload_periodically(warn)

    def close(self) -> None:
        for writer in (self._metrics, self._performance, *self._trackers):
            writer.close()
        self._files.close()


def _open_log(path: Any) -> Log:
    return writers.MetricsLog(path) if coordination.is_first() else writers.Silent()
