"""The figures of a run from the files of its workdir: for papers, and for trackers."""

import io
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_jax import storage
from distill_jax.errors import UsageError
from distill_jax.runs import records
from distill_jax.runs.workdir import Workdir
from distill_jax.training.logging import writers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: The record of the predictions of a run, in its workdir.
RECORD = "evaluation/test.npz"


def write(workdir: str | os.PathLike, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the figures of a run, finished or not, each as .svg and .pdf.

    Args:
      workdir: of the run.
      folder: local; made when it does not exist.

    Returns:
      The files.

    Raises:
      UsageError: a file of the run is damaged.
    """
    from distill_jax.reports import run_figures

    root = storage.resolve_path(workdir, "--workdir")
    run = records.read(root)
    if run is None or run.state == "damaged":
        raise UsageError(f"--workdir={root}: {run.detail if run else 'no run there'}")
    log = root / "metrics.jsonl"
    metrics = writers.read(log) if log.exists() else []
    names = _class_names(run.manifest)
    shown = run.test or run.validation
    found = run_figures.all_figures(metrics, shown, names, read_record(root))
    storage.make_folder(folder)
    return list(run_figures.write_all(found, folder))


def of_evaluation(
    paths: Workdir, description: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, "Figure"]:
    """The figures of the last evaluation of a run that is about to end.

    Args:
      paths: its workdir.
      description: as in the manifest.
      metrics: of the test split.
    """
    from distill_jax.reports import run_figures

    names = _class_names(description)
    return run_figures.evaluation_figures(metrics, names, read_record(paths.root))


def read_record(root: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of evaluation/test.npz; {} where there is none.

    Raises:
      UsageError: it is damaged.
    """
    path = root / RECORD
    if not path.exists():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _class_names(described: Mapping[str, Any]) -> list[Any]:
    return list(records.section(described, "data").get("class_names") or ())
