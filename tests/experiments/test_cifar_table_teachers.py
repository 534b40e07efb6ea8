"""Rows of the CIFAR table whose teacher is not trained here: known by its numbers, measured, stored once."""

import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest
from packs import unpacked
from small_tables import small_runs

from distill_jax import data, models
from distill_jax.data.images.sources.base import ArrayExamples
from distill_jax.errors import UsageError
from distill_jax.runs.session import Session
from experiments.cifar_table import answers, clock, plan, records, run, teachers

RUNS = pathlib.Path("runs")


def config_of(name: str):
    """The config of a row, which the pattern of its own name finds."""
    return plan.config_of(plan.chosen([name], {})[-1], 0, RUNS, plan.Schedule(), {}, {})


def test_a_clock_counts_over_starts_and_what_a_kill_leaves(tmp_path, monkeypatch):
    path = tmp_path / "clocks" / "a.json"
    assert clock.read(path) == {"starts": 0, "wall_s": 0.0, "cpu_s": 0.0}
    monkeypatch.setattr(clock, "INTERVAL", 0.01)
    with clock.running(path):
        deadline = time.monotonic() + 20
        while clock.read(path)["wall_s"] < 0.05:  # written before the end, for a kill to leave
            assert time.monotonic() < deadline
    first = clock.read(path)
    with pytest.raises(RuntimeError), clock.running(path):
        raise RuntimeError
    second = clock.read(path)
    assert (first["starts"], second["starts"]) == (1, 2)
    assert second["wall_s"] > first["wall_s"] >= 0.05 and second["cpu_s"] >= first["cpu_s"]


def published_file(shared_data) -> str:
    return str(shared_data / "teachers" / "cifar100_resnet56.npz")


def test_a_published_teacher_is_known_by_its_numbers(shared_data, tmp_path):
    """In any file, with its own normalisation; a change of one number is not the published one."""
    given = teachers.open_all([published_file(shared_data)])
    teacher = given["cifar100", "resnet56"]
    assert teacher.published.accuracy == 72.63 and teacher.saved.spec.mean == (
        0.5070,
        0.4865,
        0.4409,
    )
    assert teachers.open_all([str(shared_data / "teachers" / "cifar10_resnet56.npz")])[
        "cifar10", "resnet56"
    ].saved.spec.options == {"shortcut": "pad"}
    with np.load(published_file(shared_data)) as arrays:
        weights = dict(arrays)
    name = next(iter(weights))
    weights[name] = weights[name] + np.float32(1e-3)
    np.savez(tmp_path / "changed.npz", **weights)
    with pytest.raises(UsageError, match=r"^--teacher=.*changed.npz: weights that this study does"):
        teachers.open_all([str(tmp_path / "changed.npz")])
    (tmp_path / "torn.npz").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"^--teacher=.*torn.npz"):
        teachers.open_all([str(tmp_path / "torn.npz")])
    with pytest.raises(UsageError, match="a second resnet56 for cifar100"):
        teachers.open_all([published_file(shared_data)] * 2)


def test_a_given_teacher_is_not_trained_and_teaches_something(shared_data):
    given = teachers.open_all([published_file(shared_data)])
    rows = plan.chosen(["cifar100:resnet56,resnet20,kd"], given)
    assert [row.name for row in rows] == ["cifar100:resnet56,resnet20,kd"]
    config = plan.config_of(rows[0], 0, RUNS, plan.Schedule(), {}, given)
    assert config.teacher.path == ("runs/teachers/cifar100-resnet56-9fa373e7",)
    name = plan.run_name(rows[0], 0, given)
    assert name == "cifar100-resnet56-resnet20-kd-teacher9fa373e7-seed0"
    with pytest.raises(UsageError, match="resnet56 on cifar100 teaches none of the chosen rows"):
        plan.chosen(["cifar100:resnet20"], given)


def test_a_published_teacher_that_does_not_reach_its_figure_is_refused(
    shared_data, tmp_path, monkeypatch
):
    """Labels in another order, as a wrong set or a wrong import would give: nothing is written."""
    images, labels = unpacked(shared_data / "vision" / "cifar100_test.npz")
    info = data.Info("cifar100", 100, (32, 32, 3), tuple(map(str, range(100))))
    splits = dict.fromkeys(("train", "test"), ArrayExamples(info, images[:500], labels[:500][::-1]))
    monkeypatch.setattr(teachers, "load_splits", lambda config: splits)
    teacher = teachers.open_all([published_file(shared_data)])["cifar100", "resnet56"]
    config = config_of("cifar100:resnet56,resnet20,kd")
    with pytest.raises(UsageError, match=r"% on the test set .*; expected the published 72.63 %"):
        teachers.prepare(teacher, config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "possible"),
    [
        ("kd", True),
        ("dkd_ls", True),
        ("ctkd", True),
        ("at", False),
        ("mlkd", False),
        ("patient", False),
    ],
)
def test_answers_are_stored_where_the_logits_of_finitely_many_views_are_read(method, possible):
    assert answers.can_be_stored(config_of(f"cifar100:resnet56,resnet20,{method}")) == possible


@pytest.mark.slow
def test_a_row_with_stored_answers_of_a_given_teacher_resumes_to_the_same_parameters(
    tmp_path, monkeypatch
):
    vgg13 = models.create("vgg13", input_shape=(32, 32, 3), num_classes=100, seed=1)
    spec = models.Spec(
        name="vgg13",
        options={},
        input_shape=(32, 32, 3),
        num_classes=100,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    models.save(tmp_path / "vgg13", spec, *models.split(vgg13)[1:])
    arguments = small_runs(tmp_path, epochs=1)
    arguments += [
        "--rows=cifar100:vgg13,vgg8,kd",
        f"--teacher={tmp_path / 'vgg13'}",
        "--store-answers",
        "--config.data.augment.crop_padding=0",  # 2 views of an image
        "--config.logging.every_steps=1",
    ]
    log, results = Session.log, []
    for name in ("killed", "undisturbed"):
        stops = [2] if name == "killed" else []

        def log_and_stop(self, at, sums, stops=stops):
            log(self, at, sums)
            if stops and at == stops[0]:
                stops.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Session, "log", log_and_stop)
        for _ in range(len(stops) + 1):
            assert run.main([f"--workdir={tmp_path / name}", *arguments], tmp_path / "home") == 0
        results += records.read(tmp_path / name / "report" / "results")
    killed, undisturbed = results
    assert killed["parameters_sha256"] == undisturbed["parameters_sha256"]
    assert (killed["resumes"], undisturbed["resumes"]) == (1, 0)
    assert killed["taught_by"]["source"] == "a model folder" and killed["hours"] > 0
    assert killed["answers"]["answers"] == 356 * 2 and killed["answers"]["resumes"] == 0
    assert killed["answers"]["bytes"] == 356 * 2 * 100 * 2
    assert killed["step"]["step_cpu_time_s"] > 0
    assert len(killed["cpu_kernels"]) == 1 and killed["other_revisions"] == []
    (folder,) = (tmp_path / "killed").glob("cifar100-vgg13-vgg8-kd-teacher*-seed0")
    entry = json.loads((folder / "manifest.json").read_text())["teachers"][0]
    assert entry["stored"] == "float16"
    assert not (tmp_path / "killed" / "cifar100-vgg13-seed0").exists()
