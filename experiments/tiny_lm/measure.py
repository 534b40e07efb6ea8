"""Collects the results of finished runs in one summary, from which the tables are made."""

import dataclasses
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.runs import workdir
from distill_jax.training.logging import writers
from experiments.tiny_lm import corpus, plan

KEPT = ("nll", "perplexity", "accuracy", "kl", "agreement", "rouge_l")  # of the test metrics
OF_TEACHER = ("teacher_nll", "teacher_perplexity", "teacher_rouge_l")
VERSIONS = ("jax", "flax", "optax", "numpy")
SAMPLES = 2  # prompts whose answers are shown


@dataclasses.dataclass(frozen=True)
class Run:
    """One student: an arm and a seed."""

    arm: plan.Arm
    seed: int

    @property
    def name(self) -> str:
        """The folder of the run in the study's workdir."""
        return f"{self.arm.name}-seed{self.seed}"


def row(run: Run, folder: pathlib.Path) -> dict[str, Any]:
    """The summary of one finished student.

    Args:
      run: the run.
      folder: its workdir.
    """
    values = workdir.read_json(folder / "result.json")
    data = workdir.read_json(folder / "manifest.json")["data"]
    test = values["final"]["test"]
    read = values["steps"] * plan.ROWS
    records = writers.read(folder / "metrics.jsonl")
    return {
        "arm": run.arm.name,
        "seed": run.seed,
        "parameters": values["parameters"],
        "parameters_sha256": values["parameters_sha256"],
        "steps": values["steps"],
        "documents": data["train"]["documents"],
        "epochs": values["epochs"],
        # Of the text; on-policy students replace some of these batches by their own.
        "learned_tokens": round(read / data["train"]["rows"] * data["train"]["learned_tokens"]),
        "training_time_s": round(values["training_time_s"], 1),
        "wall_time_s": round(values["wall_time_s"], 1),
        "test": {name: test[name] for name in KEPT},
        "curve": [
            {name: record[name] for name in ("step", "nll", "kl")}
            for record in records
            if record["split"] == "test"
        ],
    }


def _hardware(devices: Sequence[str]) -> str:
    if all(device.startswith("cpu") for device in devices):
        return f"{os.cpu_count()} {platform.machine().replace('_', '-')} cores"
    return ", ".join(devices)


def _samples(runs: Sequence[Run], root: pathlib.Path) -> list[dict[str, str]]:
    """The greedy answers of the first seed's students, and the teacher's, to the first prompts."""
    first = [run for run in runs if run.seed == runs[0].seed]
    answers = {
        run.arm.name: workdir.read_json(root / run.name / "result.json")["final"]["test"]["samples"]
        for run in first
    }
    shown = []
    for number in range(SAMPLES):
        own = {name: found[number] for name, found in answers.items()}
        any_of = next(iter(own.values()))
        shared = {name: any_of[name] for name in ("prompt", "reference", "teacher")}
        shown.append(shared | {name: found["student"] for name, found in own.items()})
    return shown


def summary(
    runs: Sequence[Run],
    root: pathlib.Path,
    written: Mapping[str, Any],
    text: corpus.Corpus,
    *,
    command: str,
    label: str,
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
      runs: the finished runs.
      root: the study's workdir.
      written: the record of the teacher's answers, from `run.write_responses`.
      text: the prepared text.
      command: the command line for the record.
      label: the warning to readers of a trial; empty for the whole study.
    """
    rows = [row(run, root / run.name) for run in runs]
    teacher = workdir.read_json(root / "teacher" / "result.json")
    folders = [root / "teacher", *(root / run.name for run in runs)]
    manifests = [workdir.read_json(folder / "manifest.json") for folder in folders]
    sessions = [session for manifest in manifests for session in (manifest, *manifest["resumed"])]
    last = manifests[-1]
    test = workdir.read_json(folders[-1] / "result.json")["final"]["test"]
    read = teacher["steps"] * plan.ROWS
    seen = manifests[0]["data"]["train"]
    seconds = teacher["wall_time_s"] + written["seconds"] + sum(one["wall_time_s"] for one in rows)
    return {
        "study": "tiny_lm",
        "label": label,
        "command": command,
        "date": max(session["started"] for session in sessions)[:10],
        "hardware": _hardware(last["devices"]),
        "versions": {
            "distill_jax": last["distill_jax"],
            "python": last["python"],
            **{name: last["libraries"][name] for name in VERSIONS},
        },
        "git_revision": last["git_revision"],
        "data": {
            "documents": dict(text.documents),
            "sha256": text.fingerprint,
            "test_tokens": test["count"],
            "answered_prompts": test["prompts"],
        },
        "wall_time_s": round(seconds, 1),
        "teacher": {
            "parameters": teacher["parameters"],
            "parameters_sha256": teacher["parameters_sha256"],
            "steps": teacher["steps"],
            "learned_tokens": round(read / seen["rows"] * seen["learned_tokens"]),
            "training_time_s": round(teacher["training_time_s"], 1),
            "test": {name.removeprefix("teacher_"): test[name] for name in OF_TEACHER},
        },
        "written": dict(written),
        "runs": rows,
        "samples": _samples(runs, root),
    }
