"""configs/cifar10_hinton.py on the real CIFAR-10, a few hundred steps on a CPU."""

import json
import pathlib
import statistics
import subprocess
import sys

import pytest

from distill_jax import cli, models
from distill_jax import config as configs
from distill_jax.assembly import prepare

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "cifar10_hinton.py"


@pytest.fixture(scope="module")
def cifar10(shared_data, tmp_path_factory) -> pathlib.Path:
    """CIFAR-10 as a prepared TFDS folder."""
    folder = tmp_path_factory.mktemp("tfds")
    script = shared_data / "prepare_tfds.py"
    subprocess.run([sys.executable, script, f"--data_dir={folder}", "--only=cifar10"], check=True)
    return folder


@pytest.mark.slow
def test_the_recipe_trains_resnet20_from_resnet110(cifar10, tmp_path):
    small = {
        "training.batch_size": "32",
        "evaluation.every_epochs": "0",
        "evaluation.batch_size": "500",
        "mesh.data": "1",
        "data.tfds_dir": repr(str(cifar10)),
    }
    # A teacher that has learned nothing costs as much a step, and no hours on a CPU.
    parts = prepare(configs.load(f"{CONFIG}:teacher", small))
    teacher = tmp_path / "teacher"
    models.save(teacher, parts.recipe.spec, parts.initial.params, parts.initial.stats)
    student = tmp_path / "student"
    overrides = {
        **small,
        "teacher.path": repr(str(teacher)),
        "training.steps": "300",
        "optimizer.learning_rate": "0.05",
        "schedule.name": "constant",
        "data.fraction": "0.1",
        "logging.every_steps": "20",
        "logging.progress": "plain",
    }
    changes = [f"--config.{key}={value}" for key, value in overrides.items()]
    assert cli.main(["train", f"--config={CONFIG}", f"--workdir={student}", *changes]) == 0

    result = json.loads((student / "result.json").read_text())
    assert result["parameters"] == 272_474
    assert result["teacher_parameters"] == [1_730_714]
    assert result["selected"] is None  # the recipe holds nothing out
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert len(train) == 15
    for name in ("hard_loss", "soft_loss", "loss"):
        first, last = (
            statistics.fmean(line[name] for line in part) for part in (train[:5], train[-5:])
        )
        assert last < 0.97 * first, name
    assert result["final"]["test"]["accuracy"] > 0.15
    assert {"agreement", "kl", "teacher_accuracy"} <= set(result["final"]["test"])
    assert models.load(student).fingerprint == result["parameters_sha256"]
