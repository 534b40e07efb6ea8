"""Collects the results of finished runs in one summary, from which the tables are made."""

import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from distill_jax.runs import workdir
from experiments.hinton2015 import analysis, plan

KEPT = ("count", "errors", "accuracy", "nll", "ece", "brier", "agreement", "kl")  # of an evaluation
VERSIONS = ("jax", "flax", "optax", "numpy")


def row(run: plan.Run, config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """The summary of one finished run.

    Args:
      run: the run.
      config: its config.
      folder: its workdir.
    """
    values = workdir.read_json(folder / "result.json")
    manifest = workdir.read_json(folder / "manifest.json")
    test = values["final"]["test"]
    found = {
        "setting": run.setting.name,
        "seed": run.seed,
        "role": run.setting.role,
        "overrides": dict(run.setting.overrides),
        "config_digest": plan.digest(config),
        "parameters_sha256": values["parameters_sha256"],
        "teacher_sha256": [teacher["fingerprint"] for teacher in manifest["teachers"]],
        "train_examples": manifest["data"]["train"],
        "epochs": values["epochs"],
        "steps": values["steps"],
        "wall_time_s": round(values["wall_time_s"], 1),
        "test": {key: test[key] for key in KEPT if key in test},
    }
    if run.setting.biases:
        found["biases"] = analysis.correct_biases(
            analysis.answers(config, folder)["test"], run.setting.biases, run.setting.offset
        )
    return found


def _hardware(devices: Sequence[str]) -> str:
    if all(device.startswith("cpu") for device in devices):
        return f"{os.cpu_count()} {platform.machine().replace('_', '-')} cores"
    return ", ".join(devices)


def summary(
    runs: Sequence[plan.Run],
    configs_by_name: Mapping[str, ConfigDict],
    root: pathlib.Path,
    *,
    command: str,
    label: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The content of summary.json, and the digits that are ambiguous to the teacher.

    Args:
      runs: the finished runs, the teacher's first.
      configs_by_name: the config of each run.
      root: the study's workdir.
      command: the command line for the record.
      label: the warning to readers of a trial; empty for the whole study.
    """
    rows = [row(run, configs_by_name[run.name], root / run.name) for run in runs]
    manifests = [workdir.read_json(root / run.name / "manifest.json") for run in runs]
    first = manifests[0]
    sessions = [session for manifest in manifests for session in (manifest, *manifest["resumed"])]
    teacher = runs[0].teacher
    digits = analysis.answers(configs_by_name[teacher], root / teacher)["test"]
    return {
        "study": "hinton2015",
        "label": label,
        "command": command,
        "date": max(session["started"] for session in sessions)[:10],
        "hardware": _hardware(first["devices"]),
        "versions": {
            "distill_jax": first["distill_jax"],
            "python": first["python"],
            **{name: first["libraries"][name] for name in VERSIONS},
        },
        "git_revision": first["git_revision"],
        "data": first["data"],
        "wall_time_s": round(sum(found["wall_time_s"] for found in rows), 1),
        "runs": rows,
    }, analysis.ambiguous(digits)
