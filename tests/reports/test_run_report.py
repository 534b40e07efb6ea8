"""The report of a run: everything that its files say, at any moment of its life."""

import itertools
import json
import subprocess
import sys

import pytest
import recorded_runs
from page_parser import Page

from distill_jax import reports
from distill_jax.errors import UsageError
from distill_jax.reports import curves
from distill_jax.reports.tables import evaluation, text
from distill_jax.training.logging.writers import MetricsLog

CONFIG = {
    "seed": 3,
    "data": {"name": "digits", "only_classes": []},
    "student": {"name": "mlp", "widths": [30]},
    "method": {"name": "soft_target", "temperature": 4.0},
    "teacher": {"path": ["runs/<teacher>"]},
}
MANIFEST = {
    "libraries": {"jax": "0.10.2"},
    "teachers": [{"path": "runs/<teacher>", "model": "resnet8", "fingerprint": "abc"}],
    "data": {"name": "digits", "class_names": ["cat", "<dog>"]},
}
BINS = {"count": [0, 4, 6], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.5, 1.0]}
TEST = {
    "count": 500,
    "errors": 22,
    "accuracy": 0.956,
    "nll": 0.14984,
    "ece": 0.05,
    "brier": 0.06,
    "per_class": [0.9, 0.99],
    "agreement": 0.9612,
    "kl": 0.0812,
    "teacher_errors": 14,
    "teacher_accuracy": 0.972,
    "teacher_nll": 0.0962,
    "teacher_per_class": [0.95, None],
    "reliability": BINS,
    "teacher_reliability": BINS,
    "confusion": [[9, 1], [0, 10]],
}
RESULT = {
    "final": {"step": 200, "validation": {**TEST, "count": 130, "accuracy": 0.9}, "test": TEST},
    "selected": {"step": 180, "validation": None, "test": {**TEST, "accuracy": 0.961}},
    "parameters": 12345,
    "steps": 200,
    "training_time_s": 75.25,
    "device": "1 x cpu",
}


@pytest.fixture
def workdir(tmp_path):
    """A run that has begun: config and manifest, two lines of training and an evaluation."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write(10, "train", {"loss": 2.0, "accuracy": 0.4})
        log.write(20, "train", {"loss": float("nan"), "accuracy": 0.5})
        log.write(20, "validation", {"accuracy": 0.8125, "nll": 0.7, "teacher_accuracy": 0.97})
    with MetricsLog(tmp_path / "performance.jsonl") as log:
        for step, speed in ((10, 1000.0), (20, 250000.0), (30, 240000.0)):
            speeds = {
                "examples_per_second": speed,
                "step_time_s": 2e-3,
                "device_memory_bytes": None,
            }
            log.write(step, "train", speeds)
    return tmp_path


def panels(page: Page) -> list[str]:
    return [found["data-panel"] for _, found in page.elements if "data-panel" in found]


def page_of(workdir) -> Page:
    path = reports.run_report(workdir)
    assert path == workdir / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_finished_run(workdir):
    (workdir / "result.json").write_text(json.dumps(RESULT))
    page = page_of(workdir)
    for shown in (
        "mlp on digits",
        "Method soft_target · teacher resnet8 · seed 3 · 1 x cpu · 200 steps",
        "95.60%",
        "12,345",
        "75.2 s",
        "Test split, 500 examples.",
        "Validation split, 130 examples.",
        "Student, best on validation (step 180)",
        "96.10",
        "97.20",
        "240,000",
        "<dog>",
        "method.temperature",
        "libraries.jax",
        '["runs/<teacher>"]',
    ):
        assert shown in page.text, shown
    assert "Peak device memory" not in page.text  # never measured
    assert panels(page) == ["chart"] and len(page.find("svg")) == 1  # curves; reliability
    assert "evaluation/test.npz is not there" in page.text  # of an earlier version


def test_answers_are_shown_beside_their_references(workdir):
    sample = {
        "prompt": "<why>",
        "reference": "so " * 1000,
        "student": "because",
        "teacher": "hence",
    }
    figures = {**TEST, "prompts": 70, "rouge_l": 0.2345, "teacher_rouge_l": 0.4321}
    figures["samples"] = [sample]
    final = {**RESULT["final"], "test": figures}
    (workdir / "result.json").write_text(json.dumps({**RESULT, "final": final}))
    page = page_of(workdir)
    for shown in ("23.45%", "43.21", "Test split, 500 examples and 70 prompts.", "<why>", "hence"):
        assert shown in page.text, shown
    assert 200 < page.text.count("so ") < 300
    assert "Answers" not in page_of_plain(workdir)


def page_of_plain(workdir) -> str:
    """The page of the same run, had it answered nothing."""
    (workdir / "result.json").write_text(json.dumps(RESULT))
    return page_of(workdir).text


def test_unfinished_run_shows_its_last_evaluation(workdir):
    with open(workdir / "metrics.jsonl", "ab") as file:
        file.write(b'{"loss": 0.')  # it is still writing
    page = page_of(workdir)
    assert "not finished: 20 steps so far" in page.text
    assert "Student at step 20" in page.text and "81.25%" in page.text and "97.00" in page.text
    assert panels(page) == ["chart"] and not page.find("svg")
    assert "writes its predictions at its end" in page.text


def test_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    page = page_of(tmp_path)
    assert "has not been evaluated yet" in page.text and "teacher runs/<teacher>" in page.text
    assert not page.find("svg")


def test_many_classes_and_a_long_log_stay_below_two_megabytes(tmp_path):
    names = [f"class number {k}" for k in range(1000)]
    record = recorded_runs.image_record(names, count=1500)
    images = record["thumbnails"].size
    per_class = {"per_class": [0.5] * 1000, "teacher_per_class": [0.25] * 1000}
    final = {**RESULT["final"], "test": {**TEST, **per_class}}
    recorded_runs.write(tmp_path, CONFIG, MANIFEST, {**RESULT, "final": final}, record)
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step in range(1, 6001):
            values = ("loss", "hard_loss", "soft_loss", "accuracy", "learning_rate")
            log.write(step, "train", {name: step / 7 for name in values} | {"epoch": step / 9})
    page = reports.run_report(tmp_path)
    assert panels(Page(page.read_text())) == ["browser", "matrix", "chart"]
    assert page.stat().st_size - 4 / 3 * images < 2e6
    assert "class number 999" in page.read_text()


def test_a_log_is_thinned_from_its_end():
    records = [{"step": step} for step in range(4000)]
    found = [record["step"] for record in curves.thinned(records)]
    assert len(found) <= curves.MOST_LINES and found[-1] == 3999 and len(found) > 1000
    assert len({b - a for a, b in itertools.pairwise(found)}) == 1
    assert curves.thinned(records[:10]) == records[:10] and curves.thinned([]) == []


def test_a_changed_record_is_refused(tmp_path):
    record = recorded_runs.image_record(["a", "b"])
    recorded_runs.write(tmp_path, CONFIG, MANIFEST, RESULT, record)
    assert "Dark knowledge" in page_of(tmp_path).text
    file = tmp_path / "evaluation" / "test.npz"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match="evaluation/test.npz is not as the run left it"):
        reports.run_report(tmp_path)
    file.unlink()
    assert "the file was removed" in page_of(tmp_path).text


def test_same_files_same_bytes_and_no_other_file(workdir):
    (workdir / "result.json").write_text(json.dumps(RESULT))
    before = set(workdir.iterdir())
    first = reports.run_report(workdir).read_bytes()
    assert reports.run_report(workdir).read_bytes() == first
    assert set(workdir.iterdir()) - before == {workdir / "report.html"}


def test_no_run_and_damaged_files_are_errors_of_use(workdir, tmp_path_factory):
    with pytest.raises(UsageError, match="^--workdir=.*: no run there; expected a config.json$"):
        reports.run_report(tmp_path_factory.mktemp("empty"))
    (workdir / "report.html").write_text("the last good one")
    (workdir / "result.json").write_text("{")
    with pytest.raises(UsageError, match="cannot read result.json"):
        reports.run_report(workdir)
    assert (workdir / "report.html").read_text() == "the last good one"


def test_result_without_the_optional_parts(workdir):
    plain = {"count": 10, "errors": 1, "accuracy": 0.9, "nll": 0.3, "ece": 0.1, "brier": 0.2}
    result = {**RESULT, "final": {"step": 9, "validation": None, "test": plain}, "selected": None}
    (workdir / "result.json").write_text(json.dumps(result))
    page = page_of(workdir)
    assert "Validation split" not in page.text and "best on validation" not in page.text
    assert "Agreement (%)" not in page.text
    assert not page.find("svg")


def test_metrics_text_shows_student_and_teacher():
    assert reports.metrics_text(TEST) == (
        "Model    Accuracy (%)  Errors     NLL  ECE (%)   Brier  Agreement (%)  KL from teacher\n"
        "-------  ------------  ------  ------  -------  ------  -------------  ---------------\n"
        "student         95.60      22  0.1498     5.00  0.0600          96.12           0.0812\n"
        "teacher         97.20      14  0.0962        –       –              –                –\n"
        "on 500 examples"
    )


def test_evaluation_leaves_out_what_nobody_has():
    assert text(evaluation({"a": {"accuracy": 0.5}, "b": {"nll": None}})) == (
        "Model  Accuracy (%)\n-----  ------------\na             50.00\nb                 –\n"
    )


def test_the_package_imports_neither_matplotlib_nor_jax():
    code = "import sys, distill_jax.reports; print({'matplotlib', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
