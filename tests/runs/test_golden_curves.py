"""The losses of two tiny runs are those on file: no change moves a number unseen.

On the CPU and the jaxlib that wrote the file the losses are equal; elsewhere they are near, since
another compiler may round otherwise. After a change that is meant to move them:

    DISTILL_JAX_WRITE_GOLDEN=1 python -m pytest tests/runs/test_golden_curves.py
"""

import hashlib
import json
import os
import pathlib
import platform
import re
from importlib.metadata import version

import pytest
import small_texts
from small_runs import STUDENT, TEACHER, changed

from distill_jax.runs import experiment

CURVES = pathlib.Path(__file__).resolve().parents[1] / "golden" / "curves"
EVERY_STEP = {"logging__every_steps": 1, "evaluation__every_epochs": 0.0}
NAMES = ("loss", "hard_loss", "soft_loss", "gradient_norm")


def machine() -> str:
    """What the rounding depends on: the CPU, which the compiler writes for, and jaxlib."""
    info = pathlib.Path("/proc/cpuinfo")
    fields = re.findall(r"^(.*?)\s*: (.*)$", info.read_text() if info.exists() else "", re.M)
    about = dict(reversed(fields))  # of the first core
    flags = hashlib.sha256(about.get("flags", "").encode()).hexdigest()[:8]
    cpu = f"{platform.machine()} {about.get('model name', '')} with flags {flags}"
    return f"{cpu}, jaxlib {version('jaxlib')}"


def losses(config: dict, folder: pathlib.Path) -> dict[str, list[float]]:
    experiment.run(changed(config, **EVERY_STEP), folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    return {name: [line[name] for line in train] for name in NAMES}


def images(tmp_path: pathlib.Path) -> dict:
    """Twelve steps: crops, mixup, dropout, batch statistics, an adapter, momentum, an average."""
    experiment.run(changed(TEACHER, training__steps=4), tmp_path / "teacher")
    teacher = str(tmp_path / "teacher")
    own = {"training__steps": 12, "method__label_smoothing": 0.1}
    return changed(STUDENT, teacher__path=teacher, **own)


def text(tmp_path: pathlib.Path) -> dict:
    """Eight steps: packed rows, a mask, a divergence over a vocabulary in chunks, AdamW."""
    small_texts.write_records(tmp_path / "records.jsonl")
    teacher = small_texts.make_teacher(tmp_path / "teacher")
    return changed(small_texts.config(teacher, tmp_path / "records.jsonl"), training__steps=8)


@pytest.mark.parametrize("make", [images, text])
def test_the_losses_of_a_tiny_run_are_those_on_file(make, tmp_path):
    found, file = losses(make(tmp_path), tmp_path / "run"), CURVES / f"{make.__name__}.json"
    if os.environ.get("DISTILL_JAX_WRITE_GOLDEN"):
        file.write_text(json.dumps({"machine": machine(), "losses": found}, indent=1) + "\n")
    stored = json.loads(file.read_text())
    if stored["machine"] == machine():
        assert found == stored["losses"]
    for name, values in stored["losses"].items():
        assert found[name] == pytest.approx(values, rel=5e-3, abs=1e-5), name
