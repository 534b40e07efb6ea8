"""What a run writes as it goes: metrics.jsonl, performance.jsonl, TensorBoard, Weights & Biases."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax.processes import coordination
from distill_jax.runs.workdir import Workdir
from distill_jax.storage import GrowingFiles
from distill_jax.training.logging import writers

#: The files of a workdir that grow during a run; those in a bucket are uploaded as a whole.
GROWING = ("metrics.jsonl", "performance.jsonl", "tensorboard", "wandb_run_id")

Log = writers.MetricsLog | writers.Silent
Board = writers.TensorBoard | writers.Wandb


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
        self._boards: list[Board] = []

    def resume(self, config: ConfigDict, step: int) -> None:
        """Drops what was written after `step`, and opens the boards that the config names."""
        self._metrics.truncate(step)
        self._performance.truncate(step)
        if not coordination.is_first():
            return
        if config.logging.tensorboard:
            self._boards.append(writers.TensorBoard(self._local.tensorboard, purge_step=step + 1))
        if config.logging.wandb:
            self._boards.append(
                writers.Wandb(config.logging.wandb, config.to_dict(), self._local.root)
            )

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of a split."""
        self._metrics.write(step, split, metrics)
        for board in self._boards:
            board.write(step, split, metrics)

    def write_performance(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes speed and memory, which differ between equal runs, to a file of their own."""
        self._performance.write(step, "train", values)
        for board in self._boards:
            board.write(step, "performance", values)

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
        for writer in (self._metrics, self._performance, *self._boards):
            writer.close()
        self._files.close()


def _open_log(path: Any) -> Log:
    return writers.MetricsLog(path) if coordination.is_first() else writers.Silent()
