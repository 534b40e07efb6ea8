"""configs/cifar10_hinton.py on the real CIFAR-10, a few hundred steps on a CPU."""

import json
import pathlib
import subprocess
import sys

import pytest

from distill_jax import cli, models

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
    small = [
        "--config.training.batch_size=32",
        "--config.data.validation=500",
        "--config.evaluation.every_epochs=0",
        "--config.evaluation.batch_size=500",
        "--config.logging.every_steps=20",
        "--config.logging.progress=plain",
        "--config.mesh.data=1",
        f"--config.data.tfds_dir={cifar10}",
    ]

    def train(role: str, workdir: pathlib.Path, *changes: str) -> dict:
        command = ["train", f"--config={CONFIG}:{role}", f"--workdir={workdir}", *small, *changes]
        assert cli.main(command) == 0
        return json.loads((workdir / "result.json").read_text())

    teacher = train("teacher", tmp_path / "teacher", "--config.training.steps=20")
    assert teacher["parameters"] == 1_730_714
    changes = (
        f"--config.teacher.path={tmp_path / 'teacher'}",
        "--config.training.steps=300",
        "--config.optimizer.learning_rate=0.05",
        "--config.schedule.name=constant",
        "--config.data.fraction=0.1",
    )
    student = train("student", tmp_path / "student", *changes)
    assert student["parameters"] == 272_474
    assert student["teacher_parameters"] == [1_730_714]
    lines = [
        json.loads(x) for x in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["hard_loss"] for line in lines if line["split"] == "train"]
    assert len(losses) == 15
    assert losses[-1] < 1.9 < losses[0]  # ln 10 = 2.30 is chance
    assert student["final"]["test"]["accuracy"] > 0.25
    assert {"agreement", "kl", "teacher_accuracy"} <= set(student["final"]["test"])
    assert models.load(tmp_path / "student").fingerprint == student["parameters_sha256"]
