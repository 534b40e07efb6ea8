"""The runs below a folder as one table: state, settings, main figure."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from distill_jax.reports.tables import Column, Table, listing
from distill_jax.runs.records import RunRecord, section

COLUMNS = (
    Column("run", "Run"),
    Column("progress", "State"),
    Column("kind", "Data"),
    Column("student", "Student"),
    Column("method", "Method"),
    Column("seed", "Seed"),
    Column("main", "Figure"),
    Column("started", "Started (UTC)"),
    Column("detail", "Note"),
)

#: What `describe` gives, in order.
FIELDS = (
    *("run", "path", "state", "detail", "step", "total_steps", "kind", "data", "student"),
    *("method", "seed", "metric", "split", "value", "started", "progress"),
)


def describe(record: RunRecord, folder: str | os.PathLike = "") -> dict[str, Any]:
    """A run as plain values, for JSON and CSV.

    Args:
      record: of the run.
      folder: in which it was found; its name is given from there.

    Returns:
      "run", "path", "state", "detail", "step", "total_steps", "kind", "data", "student", "method",
      "seed", "metric", "split" and "value" of the main figure, "started" (UTC, ISO 8601), and
      "progress" as words. None where a value is not known.
    """
    config = record.config
    metric, split, value = main_figure(record)
    return {
        "run": _name(record.path, folder),
        "path": str(record.path),
        "state": record.state,
        "detail": record.detail,
        "step": record.step,
        "total_steps": record.total_steps,
        "kind": record.kind or None,
        "data": section(config, "data").get("name"),
        "student": section(config, "student").get("name"),
        "method": section(config, "method").get("name"),
        "seed": config.get("seed"),
        "metric": metric,
        "split": split,
        "value": value,
        "started": record.manifest.get("started"),
        "progress": record.progress,
    }


def main_figure(record: RunRecord) -> tuple[str | None, str | None, float | None]:
    """Name, split and value of accuracy (images) or perplexity (text); None where not measured.

    That of the test split for a finished run, else of the last evaluation on the validation split.
    """
    metric = "perplexity" if record.kind == "text" else "accuracy"
    for split, values in (("test", record.test), ("validation", record.validation)):
        value = values.get(metric)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return metric, split, float(value)
    return None, None, None


def table(runs: Iterable[dict[str, Any]]) -> Table:
    """The runs of `describe` as cells of text."""
    return listing([{**run, "main": _figure(run), "started": _time(run)} for run in runs], COLUMNS)


def _figure(run: dict[str, Any]) -> str | None:
    if run["value"] is None:
        return None
    text = f"{run['value']:.2%}" if run["metric"] == "accuracy" else f"{run['value']:.4g}"
    return f"{run['metric']} {text}" + (" (validation)" if run["split"] == "validation" else "")


def _time(run: dict[str, Any]) -> str | None:
    started = run["started"]
    return started[:16].replace("T", " ") if isinstance(started, str) else None


def _name(path: pathlib.Path, folder: str | os.PathLike) -> str:
    """The path below the folder that was searched, as a reader tells runs apart."""
    text, around = os.fspath(path), os.fspath(folder).rstrip("/")
    inside = around and text.startswith(around + "/")
    return text[len(around) + 1 :] if inside else text
