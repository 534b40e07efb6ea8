"""Trackers: the metrics, figures and texts of a run in TensorBoard, Weights & Biases and trackio.

Each shows the same numbers under the same names as metrics.jsonl, which is the record of the run.
TensorBoard and trackio write to this machine alone; Weights & Biases does with WANDB_MODE=offline
(`wandb sync` uploads later). Left out on purpose: any dependence on TensorFlow.
"""

import contextlib
import importlib.util
import operator
import os
import pathlib
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from distill_jax.errors import UsageError
from distill_jax.storage import write_atomically


class Tracker(Protocol):
    """What shows a run in another tool."""

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Adds each number among the values to the curve "<split>/<name>"."""

    def show_figure(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""

    def show_texts(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Adds texts; each row has the same names, such as "prompt" and "student"."""

    def close(self) -> None:
        """Writes or sends what is queued."""


class TensorBoard:
    """Writes TensorBoard event files, without TensorFlow; of metrics, lists and text are left out.

    Args:
      folder: where the event files go; each opening adds a file.
      purge_step: the first step that this process writes again after a restart: TensorBoard drops
        this step and later ones of earlier files from the curves. A run that resumes from a
        checkpoint of step n passes n + 1.
    """

    def __init__(self, folder: str | os.PathLike, *, purge_step: int | None = None):
        from tensorboardX import SummaryWriter

        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX names a file by the second and overwrites one of the same name.
        suffix = f".{sum(1 for _ in folder.glob('*tfevents*')):05d}"
        self._writer = SummaryWriter(
            str(folder),
            purge_step=purge_step,
            max_queue=1000,
            flush_secs=30,
            filename_suffix=suffix,
        )

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Adds each number among the values to the curve "<split>/<name>"."""
        for tag, value in _scalars(split, values).items():
            self._writer.add_scalar(tag, value, operator.index(step))

    def show_figure(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._writer.add_image(name, pixels, operator.index(step), dataformats="HWC")

    def show_texts(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Adds texts; each row has the same names, such as "prompt" and "student"."""
        self._writer.add_text(name, _as_markdown(rows), operator.index(step))

    def close(self) -> None:
        """Writes what is queued and closes the file; a second call does nothing."""
        self._writer.close()


def require_package(package: str, project: str) -> None:
    """UsageError where the package of a tracker is not installed.

    Args:
      package: "wandb" or "trackio", which is also the key in the section logging.
      project: the value of that key.
    """
    try:
        installed = importlib.util.find_spec(package) is not None
    except ValueError:  # it is imported and has no spec
        installed = True
    if not installed:
        raise UsageError(
            f"logging.{package}={project!r}: the package {package} is not installed; "
            f"expected it (pip install {package}), or an empty text"
        )


def _own_id(folder: pathlib.Path, name: str) -> str:
    """What identifies the run in a tracker; kept in a file, so that a resumed run goes on there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex[:12].encode())
    return path.read_text().strip()


class Wandb:
    """Sends metrics to Weights & Biases; `wandb` is an optional dependency.

    The x-axis is our own step, so that a resumed run may write the steps after its checkpoint again
    (wandb drops steps that go backwards). A file in the folder stores the run's id, so that a
    resumed run continues the same wandb run.

    Args:
      project: name of the project.
      config: the run's settings, shown with it.
      folder: where wandb keeps its local files.

    Raises:
      UsageError: the package wandb is not installed.
    """

    def __init__(self, project: str, config: Mapping[str, Any], folder: str | os.PathLike):
        require_package("wandb", project)
        import wandb

        folder = pathlib.Path(folder)
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            config=dict(config),
            dir=str(folder),
            id=_own_id(folder, "wandb_run_id"),
            resume="allow",
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Adds each number among the values to the curve "<split>/<name>"."""
        self._run.log({**_scalars(split, values), "step": operator.index(step)})

    def show_figure(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._run.log({name: self._wandb.Image(pixels), "step": operator.index(step)})

    def show_texts(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Adds texts; each row has the same names, such as "prompt" and "student"."""
        columns = list(rows[0])
        table = self._wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
        self._run.log({name: table, "step": operator.index(step)})

    def close(self) -> None:
        """Sends what is queued and ends the run."""
        self._run.finish()


class Trackio:
    """Writes metrics to trackio's local database; `trackio` is an optional dependency.

    `trackio show --project NAME` opens them. trackio keeps them in its own folder (TRACKIO_DIR). A
    file in the workdir stores the run's name, so that a resumed run continues the same one.

    Args:
      project: name of the project.
      config: the run's settings, shown with it.
      folder: where the run's name is kept.

    Raises:
      UsageError: the package trackio is not installed.
    """

    def __init__(self, project: str, config: Mapping[str, Any], folder: str | os.PathLike):
        require_package("trackio", project)
        with contextlib.redirect_stdout(sys.stderr):  # a command prints its result alone
            import trackio

            self._trackio = trackio
            self._run = trackio.init(
                project=project,
                name=_own_id(pathlib.Path(folder), "trackio_run_id"),
                config=dict(config),
                resume="allow",
                embed=False,
            )

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Adds each number among the values to the curve "<split>/<name>"."""
        self._run.log(_scalars(split, values), step=operator.index(step))

    def show_figure(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._run.log({name: self._trackio.Image(pixels)}, step=operator.index(step))

    def show_texts(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Adds texts; each row has the same names, such as "prompt" and "student"."""
        text = self._trackio.Markdown(_as_markdown(rows))
        self._run.log({name: text}, step=operator.index(step))

    def close(self) -> None:
        """Writes what is queued and ends the run."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def _as_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Texts under their names; indented, so that nothing in them is taken for markup."""
    return "\n\n".join(
        f"**{name}**\n\n" + "\n".join(f"    {line}" for line in text.splitlines() or [""])
        for row in rows
        for name, text in row.items()
    )


def _scalars(split: str, values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in values.items():
        if isinstance(value, str | Mapping | list | tuple) or value is None or np.ndim(value):
            continue
        numbers[f"{split}/{name}"] = float(value)
    return numbers
