"""configs/cifar10_hinton.py on images of the real CIFAR-10, a hundred steps on a CPU."""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import numpy as np
import pytest
from packs import unpacked

from distill_jax import config as configs
from distill_jax import models
from distill_jax.tasks.images.parts import prepare

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "cifar10_hinton.py"


@pytest.fixture(scope="module")
def cifar10(shared_data, tmp_path_factory) -> pathlib.Path:
    """A part of CIFAR-10: all of its test images would take minutes."""
    arrays = {}
    for split, pack, count in (("train", "train_1of2", 5000), ("test", "test", 1000)):
        images, labels = unpacked(shared_data / "vision" / f"cifar10_{pack}.npz")
        arrays |= {f"x_{split}": images[:count], f"y_{split}": labels[:count]}
    file = tmp_path_factory.mktemp("cifar10") / "part.npz"
    np.savez(file, **arrays)
    return file


@pytest.mark.nightly
def test_the_recipe_trains_resnet20_from_resnet110(cifar10, tmp_path):
    small = {
        "training.batch_size": "32",
        "evaluation.every_epochs": "0",
        "evaluation.batch_size": "500",
        "mesh.data": "1",
        "data.name": "npz",
        "data.path": repr(str(cifar10)),
    }
    # A teacher that has learned nothing costs as much a step, and no hours on a CPU.
    parts = prepare(configs.load(f"{CONFIG}:teacher", small))
    teacher = tmp_path / "teacher"
    models.save(teacher, parts.recipe.spec, parts.initial.params, parts.initial.stats)
    student = tmp_path / "student"
    overrides = {
        **small,
        "teacher.path": repr(str(teacher)),
        "training.steps": "100",
        "optimizer.learning_rate": "0.05",
        "schedule.name": "constant",
        "logging.every_steps": "10",
        "logging.progress": "plain",
    }
    # Computes longer than it compiles: a process of its own has all of XLA's optimisations.
    command = [sys.executable, "-m", "distill_jax.cli", "train", f"--config={CONFIG}"]
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    environment = os.environ | {"XLA_FLAGS": ""}
    subprocess.run([*command, f"--workdir={student}"], check=True, env=environment)

    result = json.loads((student / "result.json").read_text())
    assert result["parameters"] == 272_474
    assert result["teacher_parameters"] == [1_730_714]
    assert result["selected"] is None  # the recipe holds nothing out
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert len(train) == 10
    for name in ("hard_loss", "soft_loss", "loss"):
        first, last = (
            statistics.fmean(line[name] for line in part) for part in (train[:3], train[-3:])
        )
        assert last < 0.97 * first, name
    assert result["final"]["test"]["accuracy"] > 0.15
    assert {"agreement", "kl", "teacher_accuracy"} <= set(result["final"]["test"])
    assert models.load(student).fingerprint == result["parameters_sha256"]
