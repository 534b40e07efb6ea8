"""The study of Hinton et al. 2015: its plan, its bias correction, and a tiny run of it."""

import json
import pathlib

import numpy as np
import pytest

from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from experiments import markers
from experiments.hinton2015 import analysis, plan, report, run, search

SMALL = (
    "teacher", "hard", "units30-hard", "units30-t1", "units30-t8", "without3", "only78", "few-soft",
)  # fmt: skip


def test_every_run_of_the_plan_has_a_folder_and_a_config_of_its_own():
    runs = plan.runs()
    digests = {plan.digest(plan.config_of(one, pathlib.Path("study"), {})) for one in runs}
    assert len({one.name for one in runs}) == len(digests) == len(runs)
    names = [one.name for one in runs]
    for index, one in enumerate(runs):
        assert one.teacher in names[: index + 1]  # before the students that need it


def test_the_plan_keeps_to_the_paper():
    configs = {
        one.setting.name: plan.config_of(one, pathlib.Path("study"), {})
        for one in plan.runs(most_seeds=1)
    }
    teacher, soft = configs["teacher"], configs["soft"]
    assert teacher.student.widths == (1200, 1200) and teacher.data.augment.crop_padding == 2
    assert teacher.student.dropout > 0 and teacher.optimizer.max_norm > 0
    assert soft.student.widths == configs["hard"].student.widths == (800, 800)
    assert soft.data.augment.crop_padding == 0 and soft.method.temperature == 20
    assert configs["units30-t2.5"].method.temperature == 2.5
    assert configs["without3"].data.exclude_classes == (3,)
    assert configs["only78"].data.only_classes == (7, 8)
    assert {config.data.validation for config in configs.values()} == {0}  # all 60,000 images


def test_a_student_has_the_teacher_of_its_own_seed():
    for one in plan.runs(["soft"]):
        config = plan.config_of(one, pathlib.Path("study"), {})
        if one.setting.role == "student":
            assert config.teacher.path == (f"study/teacher-seed{one.seed}",)
            assert config.teacher.store == f"study/answers-seed{one.seed}"
        else:
            assert config.teacher.path == () and config.teacher.store == ""


def test_the_digest_of_a_config_does_not_depend_on_where_things_lie():
    one = plan.runs(["soft"])[1]
    here = plan.config_of(one, pathlib.Path("/a"), {"data.path": "/a/mnist.npz"})
    there = plan.config_of(one, pathlib.Path("b"), {})
    assert here != there and plan.digest(here) == plan.digest(there)
    longer = plan.config_of(one, pathlib.Path("b"), {}, epochs_scale=2.0)
    assert plan.digest(longer) != plan.digest(there)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts=hrad"], "--parts='hrad': unknown part; did you mean 'hard'"),
        (["--epochs-scale=0"], "--epochs-scale=0.0: expected a number > 0"),
        (["--seeds=0"], "--seeds=0: expected an integer >= 1"),
        (["--config.seeed=1"], "seeed: unknown key; did you mean 'seed'"),
        (["--fast"], "--fast: unknown argument"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, message):
    workdir = tmp_path / "study"
    assert run.main([f"--workdir={workdir}", *arguments], home=tmp_path / "home") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Rows: a 3 whose logit is 2 below the winner's, one 5 below, a 0 that stays right while 3 gains at
# most 4, and a 1 that is wrong whatever the bias of 3.
LOGITS = np.array(
    [[6, 0, 0, 4], [0, 7, 0, 2], [9, 0, 0, 5], [8, 0, 0, 0]],
    np.float32,
)
LABELS = np.array([3, 3, 0, 1])


def test_the_scan_counts_errors_at_every_offset():
    offsets = np.array([-1.0, 0.0, 1.9, 2.1, 3.9, 4.1, 5.1])
    errors = analysis.scan(LOGITS, LABELS, (3,), offsets)
    assert errors.tolist() == [3, 3, 3, 2, 2, 3, 2]
    assert analysis.scan(LOGITS, LABELS, (0, 3), offsets[:2]).tolist() == [3, 3]


def test_the_chosen_offset_is_the_middle_one_of_the_best():
    offsets = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert analysis.best_offset(np.array([5, 2, 2, 2, 9]), offsets) == 2.0
    assert analysis.best_offset(np.array([5, 2, 2, 9, 9]), offsets) == 1.0
    assert analysis.best_offset(np.array([1, 2, 2, 9, 9]), offsets) == 0.0


def test_the_offset_is_chosen_on_validation_and_counted_on_test():
    images = np.zeros((4, 1, 1, 1), np.uint8)
    # On the test split 5.1 or more would be best; validation decides for the middle of 2.1 to 4.
    validation = analysis.Answers(images, LOGITS[[0, 1, 2, 2]], LABELS[[0, 1, 2, 2]])
    test = analysis.Answers(images, LOGITS[[1, 1, 1, 0]], LABELS[[1, 1, 1, 0]])
    chosen = analysis.choose_offset(validation, (3,))
    assert chosen == {"offset": 3.0, "errors": [2, 1]}
    found = analysis.correct_biases(test, (3,), chosen["offset"])
    assert found["classes"] == [3] and found["offset"] == 3.0
    assert found["before"] == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 3, 0, 0]]
    assert found["after"] == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 3, 0, 1]]


def test_an_ambiguous_digit_is_a_right_answer_and_stands_for_one_pair():
    logits = np.array([[5, 4, 0], [5, 1, 4.5], [4, 6, 0], [9, 8.9, 8.8]], np.float32)
    labels = np.array([0, 0, 0, 1])  # the third and fourth are mistaken
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    answers = analysis.Answers(images, logits, labels)
    found = analysis.ambiguous(answers, pairs=((0, 1), (0, 2), (0, 2), (1, 0)))
    assert found["images"].ravel().tolist() == [0, 1]
    assert found["labels"].tolist() == [0, 0]


def test_the_readme_says_what_the_results_say():
    """The committed table is the one that the committed results give."""
    results = run.HERE / "results"
    summary = json.loads((results / report.SUMMARY).read_text())
    drawn = [name for name in report.FIGURES if (results / name).exists()]
    readme = (run.HERE / "README.md").read_text()
    assert f"{markers.BEGIN}\n{report.block(summary, drawn)}{markers.END}" in readme
    assert drawn == list(report.FIGURES) and not summary["label"]


def test_a_readme_without_markers_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("Prose that somebody wrote.\n")
    with pytest.raises(UsageError, match="expected the markers"):
        report.write_readme({}, readme, tmp_path)
    assert readme.read_text() == "Prose that somebody wrote.\n"


@pytest.fixture
def small_data(shared_data, tmp_path):
    """A few thousand images of MNIST in a file of their own."""
    source = shared_data / "vision" / "mnist.npz"
    if not source.exists():
        pytest.skip(f"no MNIST at {source}")
    with np.load(source) as whole:
        parts = {
            name: whole[name][: 2500 if name.endswith("train") else 400] for name in whole.files
        }
    path = tmp_path / "small.npz"
    np.savez(path, **parts)
    return path


@pytest.mark.slow
def test_a_tiny_study_runs_resumes_and_reports(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SETTINGS", tuple(one for one in plan.SETTINGS if one.name in SMALL))
    root, home = tmp_path / "study", tmp_path / "home"
    command = [
        f"--workdir={root}",
        "--seeds=1",
        "--epochs-scale=0.05",
        "--config.data.name=npz",
        f"--config.data.path={small_data}",
        "--config.mesh.data=1",
        "--config.logging.progress=off",
        "--config.logging.tensorboard=false",
    ]
    assert run.main(command, home=home) == 0
    assert not home.exists()  # a trial does not touch the study's own folder
    folder = root / "report"
    summary = json.loads((folder / "results" / report.SUMMARY).read_text())
    readme = (folder / "README.md").read_text()
    assert {one["setting"] for one in summary["runs"]} == set(SMALL)
    assert "A trial, not a result: epochs times 0.05" in readme
    assert str(tmp_path) not in readme and str(tmp_path) not in json.dumps(summary)
    for setting in plan.SETTINGS:
        assert setting.title in readme
    for name in ("temperature_30", "without3_before", "without3_after", "soft_targets"):
        assert f"results/{name}.svg" in readme
        assert 1000 < (folder / "results" / f"{name}.svg").stat().st_size < 300_000

    by_setting = {one["setting"]: one for one in summary["runs"]}
    assert by_setting["teacher"]["test"]["errors"] < 200  # of 400: it has learnt something
    without3 = by_setting["without3"]
    assert without3["train_examples"] < by_setting["hard"]["train_examples"] == 2500
    before, after = (np.array(without3["biases"][when]) for when in ("before", "after"))
    assert before.sum() == after.sum() == 400
    assert before.sum() - np.trace(before) == without3["test"]["errors"]
    assert after[:, 3].sum() > before[:, 3].sum() and without3["biases"]["offset"] > 0
    assert len(without3["teacher_sha256"]) == 1 and by_setting["teacher"]["teacher_sha256"] == []

    # A run that lost its result resumes from its checkpoint; no other run is changed.
    lost = root / "hard-seed0"
    (lost / "result.json").unlink()
    prepared = []
    prepare = experiment.prepare
    monkeypatch.setattr(
        experiment, "prepare", lambda config: prepared.append(config) or prepare(config)
    )
    assert run.main(command, home=home) == 0
    assert [config.student.widths for config in prepared] == [(800, 800)]
    again = json.loads((folder / "results" / report.SUMMARY).read_text())
    for old, new in zip(summary["runs"], again["runs"], strict=True):
        assert old["parameters_sha256"] == new["parameters_sha256"]
        assert old["test"] == new["test"]

    # The report alone is made again from the summary, around the prose that stands there.
    (home / "results").mkdir(parents=True)
    (home / "results" / report.SUMMARY).write_text(json.dumps(again))
    (home / "README.md").write_text(f"Before\n{markers.BEGIN}\nold\n{markers.END}\nAfter\n")
    assert run.main(["--report-only"], home=home) == 0
    text = (home / "README.md").read_text()
    assert text.startswith("Before\n") and text.endswith("\nAfter\n") and "\nold\n" not in text
    assert (
        report.block(again, ["temperature_30.svg", "without3_before.svg", "without3_after.svg"])
        in text
    )


def test_a_student_of_the_search_comes_after_its_teacher_and_reads_its_answers():
    root = pathlib.Path("search")
    names = search.chosen([])
    assert names == list(search.TRIALS)
    for index, name in enumerate(names):
        trial = search.TRIALS[name]
        config = search.config_of(trial, root, {})
        assert config.data.validation == 5000 and config.data.split_seed == 0
        if trial.teacher:
            assert trial.teacher in names[:index]
            assert config.teacher.path == (str(root / trial.teacher),)
    assert search.chosen(["without3"]) == ["teacher", "without3"]


def test_an_unknown_trial_is_one_line_and_writes_nothing(tmp_path, capsys):
    assert search.main([f"--workdir={tmp_path / 'search'}", "--trials=witout3"], home=tmp_path) == 2
    error = capsys.readouterr().err
    assert "--trials='witout3': unknown trial; did you mean 'without3'" in error
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_tiny_search_records_validation_figures_alone(small_data, tmp_path, monkeypatch):
    tiny = {"training.epochs": "2", "data.validation": "500", "training.batch_size": "250"}
    trials = {
        "teacher": search.Trial("teacher", {**search.TEACHER, **tiny}),
        "without3": search.Trial(
            "student", {**search.STUDENT, **tiny, "data.exclude_classes": "(3,)"}, "teacher", (3,)
        ),
    }
    monkeypatch.setattr(search, "TRIALS", trials)
    command = [
        f"--workdir={tmp_path / 'search'}",
        "--config.data.name=npz",
        f"--config.data.path={small_data}",
        "--config.mesh.data=1",
        "--config.logging.progress=off",
        "--config.logging.tensorboard=false",
    ]
    assert search.main(command, home=tmp_path / "home") == 0
    found = json.loads((tmp_path / "home" / "results" / search.RECORD).read_text())
    assert str(tmp_path) not in json.dumps(found)
    teacher, student = found["trials"]
    assert "test" not in json.dumps(found) and set(teacher["validation"]) == {"errors", "nll"}
    assert set(student["validation"]) == set(search.KEPT)
    assert student["biases"]["errors"][0] == student["validation"]["errors"]
    assert student["biases"]["errors"][1] < student["biases"]["errors"][0]  # threes come back
    assert student["overrides"]["data.exclude_classes"] == "(3,)"
