"""The CIFAR table: every row is a config, records are separated by schedule, and the report has them all."""

import json
import pathlib

import numpy as np
import pytest

from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.training import loop
from experiments import markers
from experiments.cifar_table import plan, published, records, report, run
from experiments.cifar_table.benchmark import literature

ROWS = plan.every_row()


def test_every_row_is_a_config_and_no_two_are_one():
    """All methods of the literature on all pairs; the values of a methods section, spelled out."""
    assert len({row.folder for row in ROWS}) == len(ROWS) > 350
    for row in ROWS:
        for epochs in (None, 3.0):
            config = plan.config_of(row, 1, pathlib.Path("runs"), epochs, {})
            assert config.seed == 1
            if epochs:
                assert config.training.epochs == 3.0
                assert all(milestone < 3 for milestone in config.schedule.milestones)
            elif row.method and row.dataset == "cifar100" and row.method != "deit":
                assert config.training.epochs in (240, 480, 960)


def test_every_published_figure_has_its_row():
    rows = {(row.dataset, row.teacher, row.student, row.method) for row in ROWS}
    for dataset, table in (("cifar100", published.CIFAR100), ("cifar10", published.CIFAR10)):
        for teacher, student, method in table:
            assert (dataset, teacher, student, method) in rows
        for network in published.ALONE[dataset]:
            assert (dataset, "", network, "") in rows
    assert {source for _, source in published.CIFAR100.values()} <= set(published.SOURCES)
    assert published.CIFAR100["resnet32x4", "resnet8x4", "dkd"] == (76.32, "DKD")
    assert published.CIFAR100["wrn_40_2", "shufflenet_v1", "crd_kd"] == (76.27, "CRD")


def test_the_values_of_a_pair():
    def config(name: str):
        return plan.config_of(plan.chosen([name])[-1], 0, pathlib.Path("runs"), None, {})

    dkd = config("cifar100:resnet56,resnet20,dkd")
    assert dkd.method.beta == 2.0 and dkd.method.soft_weight == 1.0
    assert dkd.teacher.path == ("runs/cifar100-resnet56-seed0",)
    assert dkd.optimizer.learning_rate == 0.05 and dkd.optimizer.weight_decay == 5e-4
    assert dkd.schedule.milestones == (150.0, 180.0, 210.0)
    assert config("cifar100:vgg13,mobilenet_v2,kd").optimizer.learning_rate == 0.01
    review = config("cifar100:resnet56,resnet20,review")
    assert review.method.soft_weight == 0.6 and review.training.batch_size == 128
    assert config("cifar100:resnet50,vgg8,simkd").student.features == 2048
    assert config("cifar10:resnet110,resnet20,at").method.soft_weight == pytest.approx(1000 / 3)


def test_teachers_come_first_and_patterns_match():
    names = [row.name for row in plan.chosen(["cifar100:resnet56,resnet20,*"])]
    assert names[0] == "cifar100:resnet56"
    assert names[1:] == [
        f"cifar100:resnet56,resnet20,{method}"
        for method in literature.METHODS
        if method not in ("born_again", "mutual", "ema")
    ]
    with pytest.raises(UsageError, match="--rows=cifar100:nothing: no such row"):
        plan.chosen(["cifar100:nothing"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=x"], "expected --workdir=DIR and --rows=PATTERN"),
        (["--workdir=x", "--rows=*", "--seeds=0"], "--seeds=0: expected an integer >= 1"),
        (["--workdir=x", "--rows=*", "--epochs=-1"], "--epochs=-1.0: expected a number > 0"),
        (["--workdir=x", "--rows=cifar100:x"], "no such row"),
        (["--nothing"], "--nothing: unknown argument"),
        (["--workdir=x", "--rows=cifar100:resnet20", "--config.seeds=1"], "seeds: unknown key"),
    ],
)
def test_mistakes_cost_one_line_and_write_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run.main(arguments, tmp_path) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def record(row: str, seed: int, accuracy: float, **changed) -> dict:
    found = next(one for one in ROWS if one.name == row)
    figures = {"accuracy": accuracy, "ece": 0.05}
    if found.method:
        figures["agreement"] = accuracy + 0.05
    return {
        "row": row,
        "dataset": found.dataset,
        "teacher": found.teacher,
        "student": found.student,
        "method": found.method,
        "seed": seed,
        "short": False,
        "epochs": 240.0,
        "last_epoch": figures,
        "best_epoch": {**figures, "accuracy": accuracy + 0.002},
        "validation_chosen": None,
        "training_time_s": 1000.0 + seed,
        "device": "1 x cpu",
        "date": "2026-01-02",
        "command": "python -m experiments.cifar_table.run",
        **changed,
    }


def test_the_table_has_published_ours_and_the_difference(tmp_path):
    row = "cifar100:resnet56,resnet20,kd"
    found = [record(row, seed, accuracy) for seed, accuracy in ((0, 0.71), (1, 0.72))]
    found.append(record("cifar100:resnet20", 0, 0.69))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{markers.BEGIN}\nold\n{markers.END}\nafter\n")
    for one in found:
        records.write(
            one, tmp_path / "results" / f"{one['student']}{one['seed']}{one['method']}.json"
        )
    report.write(tmp_path)
    lines = readme.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    (alone,), (taught,) = (
        [line for line in lines if line.startswith("| cifar100") and name in line]
        for name in ("|  | resnet20", "| kd |")
    )
    cells = [cell.strip() for cell in taught.strip("|").split("|")]
    assert cells[:6] == ["cifar100", "resnet56", "resnet20", "kd", "70.66", "RepDistiller"]
    assert cells[6:9] == ["71.50 ± 0.71 (2)", "0.84 ± 0.71 (2)", "71.70 ± 0.71 (2)"]
    assert "69.06" in alone and "-0.06 (1)" in alone
    assert (tmp_path / "results" / report.TIME).exists()
    assert (tmp_path / "results" / report.AGREEMENT).exists()


def test_short_schedules_never_stand_beside_full_ones(tmp_path):
    row = "cifar100:resnet20"
    records.write(record(row, 0, 0.3, short=True), tmp_path / "results" / "a.json")
    readme = report.write(tmp_path)
    assert "Short schedules: these figures show that everything runs" in readme.read_text()
    records.write(record(row, 1, 0.7), tmp_path / "results" / "b.json")
    with pytest.raises(UsageError, match="runs of full and of short schedules"):
        report.write(tmp_path)
    assert records.is_short(3.0, {}) and records.is_short(None, {"training.batch_size": "8"})
    assert not records.is_short(None, {"data.tfds_dir": "x", "data.validation": "0"})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (loop.Diverged("loss or gradient is not finite in step 5"), 1),
        (UsageError("method.negatives=16384: crd expects at most 1980"), 2),
    ],
)
def test_a_run_that_fails_stops_no_other(tmp_path, monkeypatch, capsys, error, code):
    begun = []

    def diverges(config, folder):
        begun.append(folder.name)
        if config.method.name == "at":
            raise error
        return {}

    monkeypatch.setattr(run.experiment, "run", diverges)
    monkeypatch.setattr(run.records, "record", lambda row, *rest, **names: {"row": row.name})
    monkeypatch.setattr(run.records, "line", str)
    monkeypatch.setattr(run.report, "write", lambda folder: folder / "README.md")
    rows = [f"--rows=cifar100:resnet56,resnet20,{method}" for method in ("at", "sp")]
    assert run.main([f"--workdir={tmp_path}", "--epochs=1", *rows]) == code
    assert [name.split("-")[-2] for name in begun] == ["resnet56", "at", "sp"]
    line = f"cifar_table: cifar100-resnet56-resnet20-at-seed0 is in no table: {error}"
    assert line in capsys.readouterr().err
    written = {path.stem for path in (tmp_path / "report" / "results").iterdir()}
    assert written == {name for name in begun if "-at-" not in name}


def test_the_readme_is_that_of_the_records():
    text = (plan.CONFIGS.parent / "experiments" / "cifar_table" / "README.md").read_text()
    stored = records.read(plan.CONFIGS.parent / "experiments" / "cifar_table" / "results")
    assert all(not one["short"] for one in stored)
    body = text.split(markers.BEGIN)[1].split(markers.END)[0].strip()
    assert (report.NOTHING.strip() in body) == (not stored)


@pytest.mark.slow
def test_rows_run_to_their_end_and_resume(tmp_path, capsys):
    """The pair that compiles fastest, on a few images like CIFAR-100's: it would take minutes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 356), ("test", 200)):
        labels = np.arange(count) % 100
        noise = rng.integers(0, 64, (count, 32, 32, 3))
        arrays[f"x_{split}"] = (noise + labels[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(tmp_path / "images.npz", **arrays)
    arguments = [
        f"--workdir={tmp_path / 'runs'}",
        "--rows=cifar100:vgg13,vgg8,at",
        "--epochs=0.5",
        "--config.data.name=npz",
        f"--config.data.path={tmp_path / 'images.npz'}",
        "--config.data.validation=100",
        "--config.evaluation.batch_size=100",
        "--config.evaluation.every_epochs=0",
        "--config.logging.progress=off",
        "--config.logging.tensorboard=false",
        "--config.mesh.data=1",
    ]
    for _ in range(2):  # the second time nothing is left to do
        assert run.main(arguments, tmp_path / "home") == 0
    out = capsys.readouterr().out
    assert out.count("[2/2] cifar100:vgg13,vgg8,at, seed 0") == 2
    found = records.read(tmp_path / "runs" / "report" / "results")
    by_row = {one["row"]: one for one in found}
    assert set(by_row) == {"cifar100:vgg13", "cifar100:vgg13,vgg8,at"}
    student = by_row["cifar100:vgg13,vgg8,at"]
    assert student["short"] and student["method"] == "at"
    assert student["parameters"] == 3_965_028 and len(student["teachers"][0]) == 64
    assert student["last_epoch"]["accuracy"] <= student["best_epoch"]["accuracy"]
    assert 0 <= student["last_epoch"]["agreement"] <= 1 and student["validation_chosen"]
    assert str(tmp_path) not in json.dumps(found)
    assert not (tmp_path / "home").exists()
    assert configs.resolve(configs.unflatten(student["config"] | {"teacher.path": ("t",)}))
