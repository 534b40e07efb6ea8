"""One JSON for each run: published and measured figures, time, hardware, command and revision."""

import datetime
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax.config.schema import SCHEMA
from distill_jax.runs import workdir
from distill_jax.runs.experiment import Result
from experiments.cifar_table import answers
from experiments.cifar_table.plan import Row

# Lasting keys with which a row still is the published one: records and the README name them.
NEUTRAL = ("data.validation", "teacher.compute_dtype", "teacher.look_ahead")


def is_changed(overrides: Mapping[str, str]) -> bool:
    """Whether keys of the command line make runs others than the table's."""
    return any(
        key not in SCHEMA or (SCHEMA[key].lasting and key not in NEUTRAL) for key in overrides
    )


def record(
    row: Row,
    seed: int,
    config: ConfigDict,
    result: Result,
    *,
    command: str,
    short: bool,
    ranking: bool,
    spent: Mapping[str, Any],
    taught_by: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The record of a finished run.

    Args:
      row: the row.
      seed: the run's seed.
      config: the resolved config.
      result: the run's result.
      command: the command line of the whole table.
      short: whether the run is shorter than the published one, or another one by `is_changed`.
      ranking: whether it has the one schedule of a ranking.
      spent: over all starts of the run, as of `clock.read`.
      taught_by: who trained its teacher, and the accuracy that was measured; None without one.
    """
    values = result.values
    manifest = workdir.read_json(result.workdir / "manifest.json")
    final, best, selected = values["final"], values["best_test"], values["selected"]
    published = row.published
    return {
        "row": row.name,
        "dataset": row.dataset,
        "teacher": row.teacher,
        "student": row.student,
        "method": row.method,
        "seed": seed,
        "short": short,
        "ranking": ranking,
        "published": {
            "accuracy": published[0] / 100,
            "source": published[1],
            "teacher_accuracy": row.published_teacher and row.published_teacher / 100,
            "note": row.note,
        }
        if published and not short
        else None,
        "difference": 100 * final["test"]["accuracy"] - published[0]
        if published and not short
        else None,
        "epochs": values["epochs"],
        "last_epoch": _figures(final["test"]),
        "best_epoch": _figures(best) if best else None,
        "validation_chosen": _figures(selected["test"]) if selected else None,
        "hours": spent["wall_s"] / 3600,
        "cpu_hours": spent["cpu_s"] / 3600,
        "hardware": hardware(values["device"]),
        "cpu_kernels": _starts(manifest, "cpu_kernels"),
        "resumes": len(manifest["resumed"]),
        "step": _step(result.workdir / "performance.jsonl"),
        "training_time_s": values["training_time_s"],
        "wall_time_s": values["wall_time_s"],
        "examples_per_second": values["examples_per_second"],
        "parameters": values["parameters"],
        "parameters_sha256": values["parameters_sha256"],
        "device": values["device"],
        "teachers": [entry["fingerprint"] for entry in manifest["teachers"]],
        "taught_by": dict(taught_by) if taught_by else None,
        "answers": answers.facts(pathlib.Path(config.teacher.store))
        if config.teacher.store
        else None,
        "versions": {
            "distill_jax": manifest["distill_jax"],
            "python": manifest["python"],
            **manifest["libraries"],
        },
        "git_revision": manifest["git_revision"],
        "other_revisions": _starts(manifest, "git_revision")[1:],
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
    flat["teacher.store"] = pathlib.Path(flat["teacher.store"]).name
    return flat


def _starts(manifest: Mapping[str, Any], key: str) -> list[str]:
    """What a run's starts have under a key, each once, the first start's first."""
    found = (start.get(key) for start in (manifest, *manifest["resumed"]))
    return list(dict.fromkeys(one for one in found if one))


def hardware(device: str) -> str:
    """The device of a run; a CPU with its cores and its name."""
    if not device.endswith("cpu"):
        return device
    name = platform.machine()
    with open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else open(os.devnull) as lines:
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {named[0] if named else name}"


def _step(log: pathlib.Path) -> dict[str, float]:
    """Wall and processor time of a step, in s: means over the log, without compiling.

    A line whose steps took three times the median holds a compilation.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = {}
    for key in ("step_time_s", "step_cpu_time_s"):
        taken = [line[key] for line in lines if key in line]
        most = 3 * statistics.median(taken) if taken else 0.0
        found[key] = statistics.fmean(one for one in taken if one <= most) if taken else 0.0
    return found


def line(found: Mapping[str, Any]) -> str:
    """The accuracies of a run on one line."""
    shown = [f"last {100 * found['last_epoch']['accuracy']:.2f} %"]
    for name in ("best_epoch", "validation_chosen"):
        if found[name]:
            shown.append(f"{name.replace('_', ' ')} {100 * found[name]['accuracy']:.2f} %")
    if found["published"]:
        shown.append(f"published {100 * found['published']['accuracy']:.2f} %")
    took = f"{found['hours']:.2f} h on {found['hardware']}, {found['resumes']} resumes"
    return f"{', '.join(shown)}; {took}"


def write(found: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a record; makes its folder. A record of the same run there is left as it is."""
    if path.exists() and _same_run(workdir.read_json(path), found):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, dict(found))


def _same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of one run, and differ by the day of the command at most."""
    return set(one) == set(other) and all(
        one[key] == other[key] for key in ("parameters_sha256", "resumes", "git_revision")
    )


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """All records of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
