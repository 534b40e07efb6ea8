"""One JSON for each run: metrics, device, command and revision."""

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax.config.schema import SCHEMA
from distill_jax.runs import workdir
from distill_jax.runs.experiment import Result
from experiments.cifar_table.plan import Row


def is_short(epochs: float | None, overrides: Mapping[str, str]) -> bool:
    """Whether runs differ from the published ones, by a short schedule or by lasting keys."""
    changed = [
        key
        for key in overrides
        if key not in SCHEMA or (SCHEMA[key].lasting and key != "data.validation")
    ]
    return epochs is not None or bool(changed)


def record(
    row: Row, seed: int, config: ConfigDict, result: Result, *, command: str, short: bool
) -> dict[str, Any]:
    """The record of a finished run.

    Args:
      row: the row.
      seed: the run's seed.
      config: the resolved config.
      result: the run's result.
      command: the command line of the whole table.
      short: whether the runs differ from the published ones, see `is_short`.
    """
    values = result.values
    manifest = workdir.read_json(result.workdir / "manifest.json")
    final, best, selected = values["final"], values["best_test"], values["selected"]
    return {
        "row": row.name,
        "dataset": row.dataset,
        "teacher": row.teacher,
        "student": row.student,
        "method": row.method,
        "seed": seed,
        "short": short,
        "epochs": values["epochs"],
        "last_epoch": _figures(final["test"]),
        "best_epoch": _figures(best) if best else None,
        "validation_chosen": _figures(selected["test"]) if selected else None,
        "training_time_s": values["training_time_s"],
        "wall_time_s": values["wall_time_s"],
        "examples_per_second": values["examples_per_second"],
        "parameters": values["parameters"],
        "parameters_sha256": values["parameters_sha256"],
        "device": values["device"],
        "teachers": [entry["fingerprint"] for entry in manifest["teachers"]],
        "versions": {
            "distill_jax": manifest["distill_jax"],
            "python": manifest["python"],
            **manifest["libraries"],
        },
        "git_revision": manifest["git_revision"],
        "command": command,
        "date": datetime.date.today().isoformat(),
        "config": _without_paths(config),
    }


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    wanted = ("accuracy", "top5", "nll", "ece", "agreement", "teacher_accuracy")
    return {name: values[name] for name in wanted if name in values}


def _without_paths(config: ConfigDict) -> dict[str, Any]:
    flat = configs.flatten(config)
    flat["data.path"] = flat["data.tfds_dir"] = ""
    flat["teacher.path"] = [pathlib.Path(path).name for path in flat["teacher.path"]]
    return flat


def line(found: Mapping[str, Any]) -> str:
    """The accuracies of a run on one line."""
    shown = [f"last {100 * found['last_epoch']['accuracy']:.2f} %"]
    for name in ("best_epoch", "validation_chosen"):
        if found[name]:
            shown.append(f"{name.replace('_', ' ')} {100 * found[name]['accuracy']:.2f} %")
    return f"{', '.join(shown)}; {found['wall_time_s']:.0f} s on {found['device']}"


def write(found: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a record; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, dict(found))


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """All records of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
