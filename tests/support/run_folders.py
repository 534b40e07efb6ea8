"""Folders of runs that were never trained: the files that readers of runs look at."""

import json
import pathlib
from typing import Any

import numpy as np

from distill_jax.storage import sealed

CONFIG = {
    "data": {"name": "digits", "path": ""},
    "student": {"name": "mlp", "widths": [64]},
    "method": {"name": "soft_target", "temperature": 4.0},
    "teacher": {"path": ["teachers/a"]},
    "training": {"steps": 100, "epochs": 0.0, "batch_size": 8},
    "seed": 0,
}
TEST = {"count": 500, "errors": 50, "accuracy": 0.9, "nll": 0.4, "ece": 0.02, "brier": 0.15}


def make_run(
    folder: pathlib.Path,
    *,
    config: dict[str, Any] | None = None,
    test: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    teacher: str = "t" * 64,
    finished: bool = True,
    step: int = 100,
) -> pathlib.Path:
    """Writes the folder of a run.

    Args:
      folder: to make.
      config: sections that replace those of `CONFIG`.
      test: figures of the test split that are put into `TEST`; "accuracy" alone sets "errors" too.
      result: values that are put into result.json.
      data: values that are put into the manifest's description of the data.
      teacher: the fingerprint of the teacher.
      record: the arrays of evaluation/test.npz.
      finished: whether there is a result.json.
      step: the last one in the log.
    """
    folder.mkdir(parents=True)
    chosen = {**CONFIG, **(config or {})}
    (folder / "config.json").write_text(json.dumps(chosen))
    about = {"name": chosen["data"]["name"], "fingerprint": "d" * 64, "train": 800, "test": 500}
    manifest = {
        "run": folder.name.ljust(32, "0"),
        "started": "2026-11-28T18:43:38+00:00",
        "devices": ["cpu:cpu"],
        "cpu": "a processor",
        "processes": 1,
        "teachers": [{"path": "teachers/a", "fingerprint": teacher, "parameters": 53098}],
        "data": {**about, **(data or {})},
        "resumed": [],
        "total_steps": 100,
        "config": chosen,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    validation = {"accuracy": 0.8, "nll": 0.5, "count": 200, "split": "validation", "step": step}
    (folder / "metrics.jsonl").write_text(json.dumps(validation) + "\n")
    if finished:
        figures = {**TEST, **(test or {})}
        if "accuracy" in (test or {}) and "errors" not in (test or {}):
            figures["errors"] = round(figures["count"] * (1 - figures["accuracy"]))
        values = {
            "final": {"step": step, "parameters_sha256": "a" * 64, "test": figures},
            "selected": None,
            "parameters": 4810,
            "steps": step,
            "training_time_s": 1.5,
            "wall_time_s": 2.5,
            "device": "1 x cpu",
            "method": chosen["method"]["name"],
            "student": chosen["student"]["name"],
            "seed": chosen["seed"],
            **(result or {}),
        }
        logs = {"metrics.jsonl": (folder / "metrics.jsonl").read_bytes()}
        if record:
            (folder / "evaluation").mkdir()
            np.savez(folder / "evaluation" / "test.npz", **record)
            logs["evaluation/test.npz"] = (folder / "evaluation" / "test.npz").read_bytes()
        sealing = sealed.seal(values, run=str(manifest["run"]), files=logs)
        (folder / "result.json").write_text(json.dumps(sealing))
    return folder
