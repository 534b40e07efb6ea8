"""Runs on images in several processes: the numbers of one process, and how they end and go on."""

import json
import signal

import numpy as np
import pytest
from local_processes import Run, finished, records, result, written
from small_runs import STUDENT, changed

from distill_jax import models

# Dense layers alone, so that compiling takes little; views, momentum and average as elsewhere.
SMALL = {**STUDENT, "student": {"name": "mlp", "widths": (32,), "dropout": 0.2}}
SMALL |= {"method": {"name": "soft_target", "soft_weight": "linear(1, 0.5)"}, "mesh": {"data": -1}}
LONG = {
    "training__steps": 600,
    "logging__every_steps": 20,
    "evaluation__every_epochs": 10.0,
    "checkpoint__every_steps": 40,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def short(digits_teacher, folder):
    """The config file of 30 steps with two evaluations."""
    return written(changed(SMALL, teacher__path=str(digits_teacher)), folder, "short.py")


@pytest.fixture(scope="module")
def long(digits_teacher, folder):
    """The config file of a run that is long enough to be disturbed."""
    return written(changed(SMALL, teacher__path=str(digits_teacher), **LONG), folder, "long.py")


def outcome(workdir) -> tuple[str, list[dict]]:
    """What equal runs share: the hash of the parameters and every line of metrics.jsonl."""
    return result(workdir)["parameters_sha256"], records(workdir)


@pytest.fixture(scope="module")
def of_one(short, folder):
    """The workdir of one process with two devices."""
    workdir = folder / "one"
    finished(folder / "logs_one", train(short, workdir), processes=1, devices=2)
    return workdir


@pytest.fixture(scope="module")
def undisturbed(long, folder):
    """The workdir of one process with two devices."""
    workdir = folder / "undisturbed"
    finished(folder / "logs_undisturbed", train(long, workdir), processes=1, devices=2)
    return workdir


def train(config, workdir, **values) -> list[str]:
    overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in values.items()]
    return ["train", f"--config={config}", f"--workdir={workdir}", *overrides]


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"data__resident": "no", "data__workers": 1}])
def test_two_processes_take_the_steps_of_one(short, of_one, tmp_path, more):
    """Two devices in one process or in two: the same bits, also of streamed images."""
    workdir = tmp_path / "run"
    run = finished(tmp_path / "logs", train(short, workdir, **more), processes=2)
    assert outcome(workdir) == outcome(of_one)
    one, several = result(of_one), result(workdir)
    assert several["final"] == one["final"] and several["selected"] == one["selected"]
    assert several["device"] == "2 x cpu in 2 processes"
    manifest = json.loads((workdir / "manifest.json").read_text())
    assert (manifest["processes"], len(manifest["devices"])) == (2, 2)
    # The first process alone says how it ended.
    assert len(run.lines('{"workdir"')) == 1 and (workdir / "report.html").exists()
    assert json.loads(run.lines('{"workdir"')[0])["nll"] == several["final"]["test"]["nll"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.nightly)]
)
def test_more_devices_in_processes_agree_with_two(short, of_one, tmp_path, processes, devices):
    """Gloo and a single process add the numbers of four devices in another order."""
    workdir = tmp_path / "run"
    finished(tmp_path / "logs", train(short, workdir), processes=processes, devices=devices)
    assert_close(workdir, of_one, 1e-4)
    assert result(workdir)["device"] == f"4 x cpu in {processes} processes"


def assert_close(workdir, other, tolerance: float) -> None:
    """The same steps were logged, and the final parameters agree."""
    lines, expected = records(workdir), records(other)
    assert [(r["split"], r["step"]) for r in lines] == [(r["split"], r["step"]) for r in expected]
    theirs = models.load(other / "model").params
    for name, value in models.load(workdir / "model").params.items():
        np.testing.assert_allclose(value, theirs[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_stored_answers_are_read_by_each_process_for_its_rows(short, folder, tmp_path):
    """Read batch by batch, they give the steps that they give to one process."""
    plain = {"data__augment__mixup": 0.0, "data__augment__flip": True, "teacher__resident": "no"}
    asked = train(short, tmp_path / "answers", **plain)
    finished(tmp_path / "logs_store", ["store", *asked[1:]], processes=1)
    plain["teacher__store"] = str(tmp_path / "answers")
    for name, processes in (("one", 1), ("two", 2)):
        arguments = train(short, tmp_path / name, **plain)
        finished(tmp_path / f"logs_{name}", arguments, processes=processes, devices=2 // processes)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    assert result(tmp_path / "two")["final"] == result(tmp_path / "one")["final"]


@pytest.mark.slow
def test_a_finished_run_is_evaluated_in_processes(of_one, tmp_path):
    arguments = ["eval", f"--workdir={of_one}", "--split=validation"]
    alone = finished(tmp_path / "one", arguments, processes=1, devices=2).output()
    several = finished(tmp_path / "two", arguments, processes=2).output()
    assert several.replace("--- log1", "").strip() == alone
    assert f"{result(of_one)['final']['validation']['nll']:.4f}" in alone


def begun(config, workdir, logs, **options) -> Run:
    """A run of which a checkpoint has been sealed."""
    run = Run(logs, train(config, workdir), killed=True, **options)
    run.until(lambda: sealed(workdir))
    return run


def sealed(workdir) -> list[int]:
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "sent", "name"),
    [
        (0, signal.SIGINT, "Ctrl-C"),
        # In each push: to one process of a run on text, and to both by the launchers' scripts.
        pytest.param(1, signal.SIGTERM, "SIGTERM", marks=pytest.mark.nightly),
    ],
)
def test_a_signal_to_one_process_stops_all_at_one_step(
    long, undisturbed, tmp_path, target, sent, name
):
    workdir = tmp_path / "run"
    run = begun(long, workdir, tmp_path / "logs", processes=2)
    run.processes[target].send_signal(sent)
    assert run.codes() == [0, 0], run.output()
    assert len(run.lines(f"distill-jax: stopped by {name};")) == 1
    assert not (workdir / "result.json").exists()
    # Resumed in one process with as many devices: the same mesh, so the same bits.
    finished(tmp_path / "resumed", train(long, workdir), processes=1, devices=2)
    assert outcome(workdir) == outcome(undisturbed)
    resumed = json.loads((workdir / "manifest.json").read_text())["resumed"]
    assert [entry["processes"] for entry in resumed] == [1]


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_goes_on_in_more(long, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    run = begun(long, workdir, tmp_path / "logs", processes=2, timeout=8)
    run.processes[1].kill()
    assert run.codes(40) == [1, -signal.SIGKILL], run.output()
    said = run.lines("distill-jax:")
    assert len(said) == 1 and "process 1 of 2" in said[0] and "last checkpoint" in said[0], said
    finished(tmp_path / "resumed", train(long, workdir), processes=1, devices=4)
    assert_close(workdir, undisturbed, 1e-3)  # rounding, carried on for 600 steps


@pytest.mark.slow
def test_the_others_end_with_a_line_when_the_first_process_is_killed(long, undisturbed, tmp_path):
    """Though it is JAX's coordinator, and its clients abort when they lose it."""
    workdir = tmp_path / "run"
    run = begun(long, workdir, tmp_path / "logs", processes=2, timeout=60)
    run.processes[0].kill()
    # By its closed connection, long before the timeout.
    assert run.codes(15) == [-signal.SIGKILL, 1], run.output()
    (line,) = [text for text in run.logs[1].read_text().splitlines() if "[Gloo]" not in text]
    assert line.startswith("distill-jax: failed: lost process 0 of 2; all processes stopped")
    assert line.endswith("the same command resumes from the last checkpoint")
    finished(tmp_path / "resumed", train(long, workdir), processes=2)
    assert outcome(workdir) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("target", [0, 1])
def test_a_process_that_hangs_ends_all(long, tmp_path, target):
    """Its connections stay open."""
    run = begun(long, tmp_path / "run", tmp_path / "logs", processes=2, timeout=5)
    run.processes[target].send_signal(signal.SIGSTOP)
    try:
        assert run.processes[1 - target].wait(60) == 1
    finally:
        run.stop()
    (line,) = run.lines("distill-jax:")
    start = f"distill-jax: failed: process {target} of 2 did not respond for 5 s"
    assert line.startswith(start) and "Traceback" not in run.output()


STUCK = """
import sys, time
from distill_jax.data.images.feed import TrainingFeed

batches = TrainingFeed.at

def stuck(self, position):
    for number, batch in enumerate(batches(self, position)):
        if number == 50 and "--process_id=1" in sys.argv:
            time.sleep(600)
        yield batch

TrainingFeed.at = stuck
"""


@pytest.mark.slow
def test_a_process_that_hangs_with_a_live_heartbeat_ends_all(long, tmp_path):
    module = tmp_path / "stuck.py"
    module.write_text(STUCK)
    arguments = train(long, tmp_path / "run", imports=f"('{module}',)")
    arguments.append("--step_timeout=10")
    run = Run(tmp_path / "logs", arguments, processes=2)
    assert run.codes(90) == [1, 1], run.output()
    (line,) = run.lines("distill-jax:")
    start = "distill-jax: failed: process 1 of 2 has been reading the data of step 51 for"
    assert line.startswith(start), line
    assert ", the other processes wait: " in line and line.endswith("from the last checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "more", "flags", "message"),
    [
        (3, {"student__name": "nix"}, {}, "student.name='nix'"),
        # What one process finds wrong ends all.
        (2, {}, {1: ["--config.student.name=nix"]}, "student.name='nix'"),
        (2, {"training__batch_size": 33}, {}, "training.batch_size=33: expected a multiple of 2"),
        (2, {"mesh__data": 1}, {}, "mesh.data=1: the mesh 1x1x1 takes 1 devices of 2"),
        pytest.param(
            *(2, {"teacher__path": "/nowhere"}, {}, "teacher.path='/nowhere'"),
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_mistake_ends_all_with_one_line(short, tmp_path, processes, more, flags, message):
    workdir = tmp_path / "run"
    arguments = train(short, workdir, **more)
    run = Run(tmp_path / "logs", arguments, processes=processes, flags=flags)
    assert run.codes(90) == [2] * processes, run.output()
    (line,) = [text for text in run.output().splitlines() if not text.startswith("---")]
    assert line.startswith(f"distill-jax: error: {message}")
    assert not workdir.exists()


@pytest.mark.slow
def test_the_workdir_of_another_run_is_refused_by_all(short, of_one, tmp_path):
    run = Run(tmp_path / "logs", train(short, of_one, seed=7), processes=2)
    assert run.codes(90) == [2, 2], run.output()
    (line,) = run.lines("distill-jax:")
    assert "holds a run of another config" in line and "seed: 0 there, 7 now" in line


FAULTY = """
import sys
from distill_jax.runs.session import Session

log = Session.log

def fail(self, at, sums):
    log(self, at, sums)
    if at == 8 and "--process_id=1" in sys.argv:
        raise RuntimeError("a fault of its own")

Session.log = fail
"""


@pytest.mark.slow
def test_a_defect_in_one_process_ends_all(short, tmp_path):
    """The second fails in the midst of the training, which the first cannot go on with alone."""
    module = tmp_path / "faulty.py"
    module.write_text(FAULTY)
    arguments = train(short, tmp_path / "run", imports=f"('{module}',)")
    run = Run(tmp_path / "logs", arguments, processes=2)
    assert run.codes(90) == [1, 1], run.output()
    (line,) = run.lines("distill-jax:")
    assert line.endswith("process 1 of 2: RuntimeError: a fault of its own"), run.output()
    assert "Traceback" in run.output()
