"""The demo: a tiny run of it from end to end, its rule for pictures, and what its folder claims."""

import contextlib
import html
import io
import json
import pathlib

import numpy as np
import pytest

from distill_jax import config as configs
from distill_jax.reports import tables
from distill_jax.runs import experiment
from experiments.demo import report, run, tune

HERE = pathlib.Path(run.__file__).parent
TINY = ["--seeds=1", "--epochs-scale=0.03"]


def _said(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the demo."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run.main(arguments)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[pathlib.Path, str, str]:
    """The folder of a tiny demo, and what it wrote to standard output and standard error."""
    root = tmp_path_factory.mktemp("demo") / "runs"
    code, out, err = _said(f"--workdir={root}", *TINY)
    assert code == 0, err
    return root, out, err


def _cells(out: str) -> dict[str, list[str]]:
    """The rows of the printed table, by model."""
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("Model"))
    rows = [line.split("  ") for line in lines[head + 2 : head + 2 + len(report.LABELS)]]
    return {row[0].strip(): [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}


def test_the_table_has_a_row_a_model_and_its_figures(demo):
    root, out, _ = demo
    rows = _cells(out)
    assert list(rows) == list(report.LABELS.values())
    assert [row[0] for row in rows.values()] == ["1,097", "110", "110", "110"]
    for role, label in report.LABELS.items():
        values = json.loads((root / f"{role}_0" / "result.json").read_text())
        test = values["final"]["test"]
        assert rows[label][1] == f"{values['parameters']:,}"
        assert rows[label][2] == f"{100 * test['accuracy']:.2f} (1)"
        assert rows[label][3] == f"{test['nll']:.4f} (1)"
        assert rows[label][4] == f"{100 * test['ece']:.2f} (1)"
        expected = "–" if role == "teacher" else f"{100 * test['agreement']:.2f} (1)"
        assert rows[label][5] == expected


def test_it_says_where_it_computes_how_far_it_is_and_what_to_do_next(demo):
    root, out, err = demo
    assert out.splitlines()[1].startswith("DEVICE: 1 x cpu")
    assert "demo: run 4/4 (100%)" in err
    assert f"Report: {root / 'report.html'}" in out
    commands = out[out.index("Next:") :].splitlines()[1:]
    assert any(f"eval --workdir={root / 'student_0'}" in command for command in commands)


def test_the_page_holds_the_table_the_curves_and_the_soft_targets(demo):
    root, _, _ = demo
    page = (root / "report.html").read_text()
    cells = report.table(json.loads((root / "results.json").read_text()))
    for row in cells.rows:
        assert "".join(f">{html.escape(cell)}</t" for cell in row[:1]) in page
        assert all(f">{html.escape(cell)}</td>" in page for cell in row[1:])
    assert page.count("<svg") == 2
    for words in ("T = 1", "T = 4", "Validation accuracy (%)", "Every run"):
        assert words in page


def test_a_second_run_trains_nothing(demo):
    root, out, _ = demo
    before = {path: path.stat().st_mtime_ns for path in root.glob("*_0/**/*")}
    code, again, err = _said(f"--workdir={root}", *TINY)
    assert code == 0 and err.count("reused") == len(report.LABELS)
    assert _cells(again) == _cells(out)
    assert {path: path.stat().st_mtime_ns for path in root.glob("*_0/**/*")} == before


def test_a_folder_of_another_demo_is_refused(demo):
    root, _, _ = demo
    code, _, err = _said(f"--workdir={root}", "--seeds=1", "--epochs-scale=0.02")
    assert code == 2
    assert "training.epochs" in err.splitlines()[-1] and err.startswith("demo: error: ")


@pytest.mark.parametrize("argument", ["--seeds=0", "--epochs-scale=0"])
def test_a_wrong_argument_is_refused(tmp_path, argument):
    code, _, err = _said(f"--workdir={tmp_path / 'runs'}", argument)
    assert code == 2 and err.count("\n") == 1 and argument in err
    assert not (tmp_path / "runs").exists()


def test_the_teacher_does_not_enter_the_training_of_a_student_without_it(demo, tmp_path):
    root, _, _ = demo
    with_it = json.loads((root / "baseline_0" / "result.json").read_text())
    config = run.config_of("baseline", 0, root, 0.03)
    assert config.teacher.path == (str(root / "teacher_0"),)
    with config.unlocked():
        config.teacher.path = ()
    without = experiment.run(config, tmp_path / "run").values
    assert without["parameters_sha256"] == with_it["parameters_sha256"]


def test_the_students_differ_in_nothing_but_the_loss():
    flat = {
        role: configs.flatten(run.config_of(role, 3, pathlib.Path("runs")))
        for role in report.LABELS
    }
    for role in ("smoothed", "student"):
        changed = {key for key in flat[role] if flat[role][key] != flat["baseline"].get(key)}
        assert changed and all(key.startswith("method.") for key in changed)
    assert flat["student"]["method.hard_weight"] == 0
    assert {each["seed"] for each in flat.values()} == {3}
    assert {each["data.split_seed"] for each in flat.values()} == {3}


def _logits(**classes: float) -> np.ndarray:
    """A row of logits: class0=.. and so on, the rest at -9."""
    row = np.full(10, -9.0)
    for name, value in classes.items():
        row[int(name.removeprefix("class"))] = value
    return row


def test_the_pictures_are_chosen_by_the_rule():
    logits = np.stack(
        [
            _logits(class7=5, class1=4.9, class2=4.8),  # uncertain, but a 2 comes before the 9
            _logits(class7=9, class1=3, class9=1),
            _logits(class7=9, class1=2, class9=2),  # the less likely of 1 and 9 is likeliest here
            _logits(class7=1, class1=2, class9=2),  # not recognised
            _logits(class3=5, class5=1),
            _logits(class3=5, class5=4),  # the least certain 3
            _logits(class3=4, class5=5),  # not recognised
            _logits(class8=5, class9=4.9),  # less certain than every 3
            _logits(class0=9),
        ]
    )
    labels = np.array([7, 7, 7, 7, 3, 3, 3, 8, 0])
    assert report.chosen_examples(logits, labels, more=2) == [2, 7, 5]
    assert report.chosen_examples(logits, labels) == [2, 7, 5, 8]
    assert report.chosen_examples(logits[3:], labels[3:], more=1) == [4]
    assert report.chosen_examples(logits[:1], labels[:1]) == [0]


def test_the_gain_is_taken_seed_by_seed():
    def result(role: str, seed: int, accuracy: float, nll: float) -> dict:
        figures = {"count": 500, "accuracy": accuracy, "nll": nll, "ece": 0.02}
        return {"role": role, "seed": seed, "final": {"test": figures}}

    results = [
        *(result("baseline", seed, 0.90 + 0.04 * seed, 0.3) for seed in (0, 1)),
        *(result("smoothed", seed, 0.95, 0.1) for seed in (0, 1)),
        *(result("student", seed, 0.92 + 0.05 * seed, 0.2) for seed in (0, 1)),
    ]
    _, alone, smoothed = report.conclusions(results)
    assert "accuracy +2.50 ± 0.71 points, NLL −0.100 ± 0.000" in alone
    assert alone.endswith("the lower NLL in 2 of 2 seeds.")
    assert "NLL +0.100" in smoothed and smoothed.endswith("the lower NLL in 0 of 2 seeds.")


def test_the_readme_shows_the_recorded_results():
    readme = (HERE / "README.md").read_text()
    ten = json.loads((HERE / "results" / "ten_seeds.json").read_text())
    tuning = json.loads((HERE / "results" / "tuning.json").read_text())
    for recorded in [report.table(ten), *(tune.table(tuning, part) for part in tune.TITLES)]:
        assert tables.markdown(recorded) in readme
    for line in report.conclusions(ten)[1:]:
        for figure in ("accuracy", "NLL", "ECE"):
            value = line.split(f"{figure} ")[1].split(" points")[0].split(",")[0].rstrip(";")
            assert value in " ".join(readme.split())


def test_the_config_holds_the_values_that_validation_chose():
    rows = [
        row
        for row in json.loads((HERE / "results" / "tuning.json").read_text())
        if row["part"] == "alone" and row["method.label_smoothing"] == 0
    ]
    values = {tuple(row[key] for key in tune.TITLES["alone"]) for row in rows}
    nll = {
        value: np.mean(
            [r["nll"] for r in rows if tuple(r[key] for key in tune.TITLES["alone"]) == value]
        )
        for value in values
    }
    config = configs.flatten(run.config_of("baseline", 0, pathlib.Path("runs")))
    assert min(nll, key=nll.get) == tuple(config[key] for key in tune.TITLES["alone"])


def test_every_setting_of_the_tuning_is_a_config_with_a_folder_of_its_own():
    found = [
        configs.resolve(
            configs.unflatten(
                configs.flatten(run.config_of(role, 100, pathlib.Path("runs"))) | changes
            )
        )
        for _, role, changes in tune.settings()
    ]
    names = {(part, role, *changes.values()) for part, role, changes in tune.settings()}
    assert len(names) == len(found) == 45


@pytest.mark.slow
def test_the_student_learns_more_with_its_teacher(tmp_path):
    code, _, err = _said(f"--workdir={tmp_path / 'runs'}", "--seeds=1")
    assert code == 0, err
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    nll = {row["role"]: row["final"]["test"]["nll"] for row in results}
    # Ten seeds on record: 0.22 to 0.31 alone, 0.13 to 0.17 with the teacher.
    assert nll["student"] < 0.8 * nll["baseline"]
    assert nll["teacher"] < nll["student"]
