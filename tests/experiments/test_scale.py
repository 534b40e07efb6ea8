"""The study of scale: its cases, resuming, what fails, its tables, and one tiny case."""

import dataclasses
import json
import math
import shutil

import pytest
from small_plans import LLAMA, STUDENT, folder

from distill_jax import config as configs
from distill_jax.planning import gpus
from distill_jax.reports import tables
from distill_jax.runs import workdir
from distill_jax.teachers import SparseFormat
from experiments.scale import plan, report, run

GIB = 2**30


def content(case: plan.Case, *, fits: bool = True, compiled: bool = True) -> dict:
    """A made-up plan: 2 s of compute, 1 s of each of the rest, more with the teacher's size."""
    bare = case.teacher in (plan.ALONE, plan.STORED)
    chips, teacher = plan.TARGETS[case.target], 0 if bare else 70_000_000_000
    compute = 2.0 if teacher else 1.25 if case.teacher == plan.STORED else 0.5
    return {
        "case": dataclasses.asdict(case),
        "compiled": compiled,
        "cpu_s": 90.0,
        "wall_s": 100.0,
        "target": case.target,
        "devices": chips,
        "parameters": {"student": 8_000_000_000} | ({"teacher": teacher} if teacher else {}),
        "fits": fits,
        "bytes_a_device": {"total": 40 * GIB, "limit": 95 * GIB},
        "tokens_a_step": case.rows * plan.LENGTH,
        "mfu": 0.5 if fits else None,
        "collectives_a_step": [
            {"kind": "all-gather", "bytes": 30 * 10**9},
            {"kind": "all-reduce", "bytes": 90 * 10**9},
        ],
        "seconds_a_step": {
            "compute": compute,
            "memory": 1.0,
            "interconnect": 1.0,
            "bound": "compute" if teacher else "memory",
            "step": max(compute, 1.0),
            "step_without_overlap": compute + 2.0,
        }
        if fits
        else None,
    }


def maker(failing: str = ""):
    """A stand-in for the planning process that records the cases."""
    planned = []

    def make(case, out):
        planned.append(case.name)
        if case.name == failing:
            return "exit code 2: scale: error: no such slice"
        workdir.write_json(out, content(case, fits="v5e" not in case.target))
        return None

    return make, planned


def cells(table: tables.Table) -> list[dict[str, str]]:
    return [
        dict(zip([column.heading for column in table.columns], row, strict=True))
        for row in table.rows
    ]


@pytest.fixture
def summary(tmp_path):
    make, _ = maker()
    cases = plan.cases()[:-1]
    run.make(cases, tmp_path, make)
    about = {"command": "run", "date": "2026-01-01", "hardware": "2 cores"}
    return run.collect(plan.cases(), tmp_path) | about | {"versions": {}, "git_revision": None}


def test_every_pair_is_planned_on_every_target_and_names_differ():
    cases = plan.cases()
    assert len({case.name for case in cases}) == len(cases)
    for pair in plan.PAIRS:
        for target in plan.TARGETS:
            assert plan.Case(pair, target, plan.rows(target)) in cases


def test_the_configs_of_all_cases_are_accepted():
    for case in plan.cases():
        config = configs.resolve(plan.config(case))
        assert config.training.batch_size % plan.TARGETS[case.target] == 0
        assert config.mesh.fsdp == (case.shards or plan.TARGETS[case.target])
        assert config.mesh.data * config.mesh.fsdp == plan.TARGETS[case.target]
        assert bool(config.teacher.path) == (case.teacher not in (plan.ALONE, plan.STORED))
        assert bool(config.teacher.store) == (case.teacher == plan.STORED)
        assert (config.method.name == "supervised") == (case.teacher == plan.ALONE)


def test_a_plan_that_is_there_is_not_made_again(tmp_path):
    cases = plan.cases()[:3]
    make, planned = maker()
    run.make(cases[:2], tmp_path, make)
    run.make(cases, tmp_path, make)
    assert planned == [case.name for case in cases]


def test_a_failing_case_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    first, second, third = plan.cases()[:3]
    make, planned = maker(failing=second.name)
    monkeypatch.setattr(run.plan, "cases", lambda: (first, second, third))
    monkeypatch.setattr(run, "in_process", make)
    arguments = [f"--workdir={tmp_path}"]
    assert run.main(arguments, home=tmp_path / "home") == 2
    assert f"{second.name}: exit code 2: scale: error: no such slice" in capsys.readouterr().err
    assert planned == [first.name, second.name, third.name]
    stored = json.loads((tmp_path / "home" / "results" / report.SUMMARY).read_text())
    assert [one["name"] for one in stored["plans"]] == [first.name, third.name]
    assert [one["name"] for one in stored["failed"]] == [second.name]
    # Tried again, and no longer named once it is there.
    make, planned = maker()
    monkeypatch.setattr(run, "in_process", make)
    assert run.main(arguments, home=tmp_path / "home") == 0
    assert planned == [second.name]


def test_the_published_plans_are_not_made_again(summary, tmp_path, monkeypatch):
    home = tmp_path / "home"
    report.write(summary, home)
    make, planned = maker()
    monkeypatch.setattr(run, "in_process", make)
    assert run.main([f"--workdir={tmp_path / 'again'}", "--from-results"], home=home) == 0
    assert planned == summary["not_made"] == [plan.cases()[-1].name]
    stored = json.loads((home / "results" / report.SUMMARY).read_text())
    assert stored["plans"][:-1] == summary["plans"] and not stored["not_made"]


def test_misuse_is_refused_before_anything_is_written(tmp_path, capsys):
    assert run.main([], home=tmp_path) == 2
    assert run.main([f"--workdir={tmp_path}", "--only=none"], home=tmp_path) == 2
    assert "--only=none: no such case; expected" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_study_is_not_published(tmp_path, monkeypatch):
    make, planned = maker()
    monkeypatch.setattr(run, "in_process", make)
    name = plan.cases()[0].name
    home = tmp_path / "home"
    assert run.main([f"--workdir={tmp_path / 'w'}", f"--only={name}"], home=home) == 0
    assert planned == [name] and not home.exists()
    assert (tmp_path / "w" / "report" / "README.md").exists()


def test_costs_and_ratios(summary):
    line = cells(report.stored_table(summary))[0]
    assert (line["Pair"], line["Target"]) == (plan.LLAMA, plan.HUB)
    # 64 chips x 2 s for 64 x 2048 tokens; stored 1.25 s; alone 1 s, HBM's; with no overlap 4 s and
    # 2.5 s.
    assert line["Online"] == f"{64 * 2 / (64 * 2048) * 1e6:.1f}" == "976.6"
    assert (line["Stored"], line["Student alone"]) == ("610.4", "488.3")
    assert (line["Online over stored"], line["Online over alone"]) == ("1.60", "2.00")
    assert line["the same, no overlap"] == "1.60"
    # 104,858 tokens a second, of each 50 ids of 4 bytes and as many counts.
    assert line["Answers read, GB/s"] == f"{131072 / 1.25 * 50 * 5 / 1e9:.2f}"
    sparse = SparseFormat.parse(plan.STORED, 128_256, key="answers")
    kept = sum(math.prod(shape) * kind.itemsize for shape, kind in sparse.arrays.values())
    assert kept == report.STORED_BYTES
    growth = cells(report.tokens_table(summary))
    assert [one["Rows"] for one in growth] == ["64", "128", "256", "512"]
    assert growth[0]["Chip-seconds a million tokens"] == "976.6"
    assert growth[3]["Chip-seconds a million tokens"] == f"{976.5625 / 8:.1f}"
    teachers = cells(report.teachers_table(summary))
    assert [one["Teacher (10⁹)"] for one in teachers[:4]] == ["0.0", "70.0", "70.0", "0.0"]
    shards = [one for one in cells(report.shards_table(summary)) if one["Target"] == plan.HUB]
    assert [one["Shards"] for one in shards] == ["32", "64"]


def test_what_does_not_fit_has_no_times_and_what_is_missing_is_named(summary, tmp_path):
    lines = cells(report.targets_table(summary))
    no = [one for one in lines if one["Fits"] == "no"]
    assert no and all(one["Target"].startswith("tpu:v5e") for one in no)
    assert all(one["At least, s"] == tables.MISSING for one in no)
    sent = {(one["GB sent a chip"], one["most of it by"]) for one in lines if one not in no}
    assert sent == {("120", "all-reduce")}
    missing = plan.cases()[-1].name
    assert summary["not_made"] == [missing]
    page = report.write(summary, tmp_path / "out").read_text()
    assert f"**Not made yet:** {missing}." in page
    drawn = {path.name for path in (tmp_path / "out" / "results").iterdir()}
    assert drawn == {"summary.json", "steps.svg", "cost.svg"}


def test_a_summary_without_any_plan_has_a_report(tmp_path, summary):
    empty = summary | {"plans": [], "not_made": [case.name for case in plan.cases()]}
    assert f"0 of {len(plan.cases())} cases" in report.write(empty, tmp_path / "out").read_text()


def test_the_stored_tables_are_those_of_the_stored_summary(tmp_path):
    """The README's figures are those of results/summary.json."""
    shutil.copy(run.HERE / "README.md", tmp_path)
    shutil.copytree(run.HERE / "results", tmp_path / "results")
    assert run.main(["--report-only"], home=tmp_path) in (0, 2)  # 2 where a stored case failed
    assert (tmp_path / "README.md").read_text() == (run.HERE / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(
    not gpus.installed(), reason="no compiler for GPUs is installed: pip install '.[plan-gpu]'"
)
def test_a_tiny_case_is_planned_by_its_own_process(tmp_path):
    teacher, student = folder(tmp_path, "teacher", LLAMA), folder(tmp_path, "student", STUDENT)
    case = plan.Case(plan.LLAMA, "gpu:h100:8", 32, teacher=teacher, student=student)
    alone = dataclasses.replace(case, teacher=plan.ALONE)
    run.make((case, alone), tmp_path, run.in_process)
    found, bare = run.collect((case, alone), tmp_path)["plans"]
    assert found["fits"] and found["compiled"] and found["mesh"]["fsdp"] == 8
    assert found["tokens_a_step"] == 32 * 2048
    assert found["flops_a_step"]["teacher_forward"] > 0
    assert bare["flops_a_step"]["teacher_forward"] == 0
    assert bare["flops_a_step"]["student_forward"] == found["flops_a_step"]["student_forward"]
    assert bare["bytes_a_device"]["teacher"] == 0 < found["bytes_a_device"]["teacher"]
