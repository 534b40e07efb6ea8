"""The CIFAR table: every row is a config, records are separated by schedule, and the report has them all."""

import json
import pathlib

import pytest
from small_tables import small_runs

from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.training import loop
from experiments import markers
from experiments.cifar_table import plan, published, records, report, run
from experiments.cifar_table.benchmark import literature

ROWS = plan.every_row()
RUNS = pathlib.Path("runs")


def config_of(name: str):
    """The config of a row, which the pattern of its own name finds."""
    return plan.config_of(plan.chosen([name], {})[-1], 0, RUNS, plan.Schedule(), {}, {})


def test_every_row_is_a_config_and_no_two_are_one():
    """All methods of the literature on all pairs; the values of a methods section, spelled out."""
    assert len({row.folder for row in ROWS}) == len(ROWS) > 350
    for row in ROWS:
        for epochs in (None, 3.0):
            config = plan.config_of(row, 1, RUNS, plan.Schedule(epochs), {}, {})
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
    dkd = config_of("cifar100:resnet56,resnet20,dkd")
    assert dkd.method.beta == 2.0 and dkd.method.soft_weight == 1.0
    assert dkd.teacher.path == ("runs/cifar100-resnet56-seed0",)
    assert dkd.optimizer.learning_rate == 0.05 and dkd.optimizer.weight_decay == 5e-4
    assert dkd.schedule.milestones == (150.0, 180.0, 210.0)
    assert config_of("cifar100:vgg13,mobilenet_v2,kd").optimizer.learning_rate == 0.01
    review = config_of("cifar100:resnet56,resnet20,review")
    assert review.method.soft_weight == 0.6 and review.training.batch_size == 128
    assert config_of("cifar100:resnet50,vgg8,simkd").student.features == 2048
    assert config_of("cifar10:resnet110,resnet20,at").method.soft_weight == pytest.approx(1000 / 3)


def test_the_teacher_assistant_rows_have_its_recipe_and_name_what_differs():
    """Mirzadeh et al. 2020: (1 - lambda) CE + lambda T^2 KL; the code's mean is over classes too."""
    alone, code, paper = (
        config_of(f"cifar10:{name}")
        for name in ("resnet8", "resnet56,resnet8,kd", "resnet56,resnet8,kd_sum")
    )
    for config in (alone, code, paper):
        assert config.training.epochs == 160.0 and config.training.batch_size == 128
        assert config.optimizer.learning_rate == 0.1 and config.optimizer.weight_decay == 1e-4
        assert config.schedule.milestones == (80.0, 120.0) and config.optimizer.nesterov
        assert config.data.augment.crop_padding == 4 and config.data.augment.flip
    assert alone.method.name == "supervised" and not alone.teacher.path
    assert code.method.hard_weight == paper.method.hard_weight == 0.6
    assert paper.method.soft_weight == 0.4 and code.method.soft_weight == pytest.approx(0.04)
    row = plan.Row("cifar10", "resnet8", "resnet56", "kd")
    assert row.published == (88.65, "TAKD") and row.published_teacher is None
    assert "resnet110 as the teacher, here resnet56" in row.note


def test_a_ranking_has_one_schedule_for_all_methods():
    ranked = plan.Schedule(plan.RANKING_EPOCHS, ranking=True)
    rows = plan.chosen(["cifar100:resnet56,resnet20,*"], {})
    found = [plan.config_of(row, 0, RUNS, ranked, {}, {}) for row in rows]
    assert len(found) > 25
    for section in ("optimizer", "schedule", "training"):
        assert len({repr(sorted(config[section].items())) for config in found}) == 1
    (schedule,) = {config.schedule.milestones for config in found}
    assert schedule == (3.125, 3.75, 4.375)
    assert all(config.data.validation == 0 for config in found)
    assert config_of("cifar100:resnet56,resnet20,review").training.batch_size == 128


def test_teachers_come_first_and_patterns_match():
    names = [row.name for row in plan.chosen(["cifar100:resnet56,resnet20,*"], {})]
    assert names[0] == "cifar100:resnet56"
    assert names[1:] == [
        f"cifar100:resnet56,resnet20,{method}"
        for method in literature.METHODS
        if method not in ("born_again", "mutual", "ema")
    ]
    with pytest.raises(UsageError, match="--rows=cifar100:nothing: no such row"):
        plan.chosen(["cifar100:nothing"], {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=x"], "expected --workdir=DIR and --rows=PATTERN"),
        (["--workdir=x", "--rows=*", "--seeds=0"], "--seeds=0: expected an integer >= 1"),
        (["--workdir=x", "--rows=*", "--epochs=-1"], "--epochs=-1.0: expected a number > 0"),
        (["--workdir=x", "--rows=cifar100:x"], "no such row"),
        (["--nothing"], "--nothing: unknown argument"),
        (["--workdir=x", "--rows=cifar100:resnet20", "--teacher=no.npz"], "--teacher='no.npz'"),
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
        "ranking": False,
        "published": found.published
        and {
            "accuracy": found.published[0] / 100,
            "source": found.published[1],
            "teacher_accuracy": found.published_teacher and found.published_teacher / 100,
            "note": found.note,
        },
        "difference": found.published and 100 * accuracy - found.published[0],
        "taught_by": found.method and {"source": "trained here", "accuracy": 0.7263} or None,
        "epochs": 240.0,
        "last_epoch": figures,
        "best_epoch": {**figures, "accuracy": accuracy + 0.002},
        "validation_chosen": None,
        "training_time_s": 1000.0 + seed,
        "step": {"step_time_s": 0.2, "step_cpu_time_s": 0.3},
        "hours": 2.5,
        "cpu_hours": 1.5,
        "hardware": "2 cores, CPU",
        "resumes": 11,
        "parameters_sha256": f"{row}{seed}",
        "git_revision": "0123456789",
        "other_revisions": [],
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
    assert cells[6:8] == ["72.34 / 72.63 (trained here)", "2 cores, CPU"]
    assert cells[8:11] == ["71.50 ± 0.71 (2)", "0.84 ± 0.71 (2)", "71.70 ± 0.71 (2)"]
    assert "2.5 ± 0.0 (2)" in cells and "11 ± 0 (2)" in cells
    assert "- RepDistiller: HobbitLong/RepDistiller, README; last epoch." in lines
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
    assert records.is_changed({"training.batch_size": "8"})
    assert not records.is_changed({"data.tfds_dir": "x", "data.validation": "0"})
    assert not records.is_changed({"teacher.compute_dtype": "bfloat16"})


def test_a_ranking_is_by_accuracy_and_compares_the_cost_of_a_step(tmp_path):
    def ranked(row: str, accuracy: float, step_ms: float) -> dict:
        step = {"step_time_s": 1.0, "step_cpu_time_s": step_ms / 1000}
        config = {"training.epochs": 5.0}
        changed = {"published": None, "difference": None, "config": config, "step": step}
        return record(row, 0, accuracy, short=True, ranking=True, **changed)

    pair = "cifar100:resnet56,resnet20,"
    found = [
        ranked("cifar100:resnet20", 0.30, 50.0),
        *(
            ranked(pair + name, *values)
            for name, *values in (("kd", 0.34, 120.0), ("at", 0.36, 125.0))
        ),
    ]
    for index, one in enumerate(found):
        records.write(one, tmp_path / "results" / f"{index}.json")
    text = report.write(tmp_path).read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [line.split("|")[1].strip() for line in lines] == ["at", "kd", "labels alone"]
    cells = [cell.strip() for cell in lines[1].strip("|").split("|")]
    assert cells[2:4] == ["34.00", "4.00"] and cells[5:7] == ["120", "2.40"]
    assert "**5 epochs: figures to compare with each other" in text and "70.66" not in text


def test_the_front_page_has_what_was_published_ours_command_hours_and_hardware():
    assert report.front_page([]).startswith(report.NOTHING)
    text = report.front_page([record("cifar100:resnet56,resnet20,kd", 0, 0.71)])
    (line,) = [line for line in text.splitlines() if "seed 0" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "cifar100, resnet20, kd from resnet56, seed 0",
        *("70.66", "71.00", "`--rows=cifar100:resnet56,resnet20,kd`", "2.5 (1.5)", "2 cores, CPU"),
        "012345678",
    ]


def test_a_record_of_the_same_run_is_not_written_again(tmp_path):
    path = tmp_path / "a.json"
    first = record("cifar100:resnet20", 0, 0.7)
    records.write(first, path)
    records.write({**first, "date": "2027-01-01"}, path)
    assert json.loads(path.read_text()) == first
    other = {**first, "parameters_sha256": "other"}
    records.write(other, path)
    assert json.loads(path.read_text()) == other


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
    monkeypatch.setattr(run.Table, "_taught_by", lambda table, row: None)
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
    front = (plan.CONFIGS.parent / "README.md").read_text()
    assert report.front_page(stored) in front
    ranked = records.read(
        plan.CONFIGS.parent / "experiments" / "cifar_table" / "ranking" / "results"
    )
    assert all(one["ranking"] and one["config"]["training.epochs"] == 5.0 for one in ranked)


@pytest.mark.slow
def test_rows_run_to_their_end_and_resume(tmp_path, capsys):
    """The pair that compiles fastest."""
    arguments = small_runs(tmp_path, epochs=0.5)
    arguments += [f"--workdir={tmp_path / 'runs'}", "--rows=cifar100:vgg13,vgg8,at"]
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
