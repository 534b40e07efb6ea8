"""Promise 1: the same numbers, bit for bit, in any process and after any interruption."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from small_runs import STUDENT, changed

from distill_jax import config as configs
from distill_jax.runs import experiment
from distill_jax.runs.session import Session
from distill_jax.training import loop, state


def outcome(workdir) -> tuple[str, bytes]:
    """What two equal runs share: the final parameters' hash and every byte of metrics.jsonl."""
    result = json.loads((workdir / "result.json").read_text())
    return result["parameters_sha256"], (workdir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def config(digits_teacher):
    method = {
        "name": "fitnet+crd",  # adapters and a memory
        "soft_weight": "linear(1, 0.5)",
        "fitnet": {"student_tap": "pooled", "teacher_tap": "pooled"},
        "crd": {"negatives": 64},
    }
    return changed({**STUDENT, "method": method}, teacher__path=str(digits_teacher))


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    experiment.run(config, workdir)
    return outcome(workdir)


def interrupt_after(monkeypatch, step: int) -> None:
    """Sends this process SIGTERM when the log line of `step` is written."""
    log = Session.log

    def log_and_interrupt(self, at, sums):
        log(self, at, sums)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Session, "log", log_and_interrupt)


def interrupt_after_saving(monkeypatch, step: int) -> None:
    """Sends this process SIGTERM when the checkpoint of `step` is on its way."""
    save = Session.save

    def save_and_interrupt(self, at, now):
        save(self, at, now)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Session, "save", save_and_interrupt)


def stop_and_resume(config, workdir, monkeypatch, interrupt) -> tuple[str, bytes]:
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(loop.Preempted):
            experiment.run(config, workdir)
    assert not (workdir / "result.json").exists()
    experiment.run(config, workdir)
    return outcome(workdir)


@pytest.mark.parametrize("at", [4, 20])
def test_a_stopped_run_resumes_to_the_same_bits(config, undisturbed, tmp_path, monkeypatch, at):
    resumed = stop_and_resume(
        config, tmp_path / "run", monkeypatch, lambda patch: interrupt_after(patch, at)
    )
    assert resumed == undisturbed


# Step 21 is between two lines of the log, between two evaluations, and inside an epoch.
def stopped_at_21(patch) -> None:
    interrupt_after_saving(patch, 21)


def test_a_run_stopped_between_everything_resumes_to_the_same_bits(
    config, undisturbed, tmp_path, monkeypatch
):
    resumed = stop_and_resume(config, tmp_path / "run", monkeypatch, stopped_at_21)
    assert resumed == undisturbed


PARTS = ("params", "stats", "adapters", "memory", "optimizer", "average", "sums", "step")


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """The workdir of a run that was stopped at step 21."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stopped_at_21(patch)
        with pytest.raises(loop.Preempted):
            experiment.run(config, workdir)
    return workdir


@pytest.mark.parametrize("left_out", ["nothing", *PARTS, "position"])
def test_every_part_of_the_saved_state_is_needed(
    config, undisturbed, stopped, tmp_path, monkeypatch, left_out
):
    """A resume that forgets one part ends elsewhere, so the tests above see each of them."""
    start = Session.start

    def forgetful(self):
        fresh = jax.tree.map(jnp.copy, getattr(self.parts.initial, left_out, None))
        now, at, position = start(self)
        assert at == 21
        if left_out == "position":
            return now, at, 0
        kept = {name: getattr(now, name) for name in state.TrainState.__dataclass_fields__}
        if left_out != "nothing":
            kept[left_out] = fresh
        return state.TrainState(**kept), at, position

    monkeypatch.setattr(Session, "start", forgetful)
    monkeypatch.setattr(experiment.reports, "run_report", lambda folder: None)
    shutil.copytree(stopped, tmp_path / "run")
    experiment.run(config, tmp_path / "run")
    assert (outcome(tmp_path / "run") == undisturbed) == (left_out == "nothing")


def test_a_forgotten_best_score_selects_another_model(config, tmp_path, monkeypatch):
    """The best score is part of what is saved: without it a worse model could be selected."""
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 20)
        with pytest.raises(loop.Preempted):
            experiment.run(config, workdir)
    seen = {}
    start = Session.start

    def remembered(self):
        answer = start(self)
        seen["best"] = self.history.best_score
        return answer

    monkeypatch.setattr(Session, "start", remembered)
    experiment.run(config, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    before = [v["accuracy"] for v in lines if v["split"] == "validation" and v["step"] <= 20]
    assert before and seen["best"] == max(before)


def test_a_finished_run_is_not_run_again(config, tmp_path):
    first = experiment.run(config, tmp_path / "run")
    stamp = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert experiment.run(config, tmp_path / "run").values == first.values
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_resume_reads_the_resolved_config_not_the_file_beside_it(config, tmp_path, monkeypatch):
    """`train --workdir` alone goes on with config.json, whatever the .py says by now."""
    from distill_jax import cli

    file = tmp_path / "mine.py"
    file.write_text(f"def get_config():\n    return {config!r}\n")
    arguments = ["train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 20)
        assert cli.main(arguments) == 0
    file.write_text("raise RuntimeError('edited since')\n")
    assert cli.main(["train", f"--workdir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run" / "result.json").exists()


def command(config_file, workdir) -> list[str]:
    return [
        *(sys.executable, "-m", "distill_jax.cli", "train"),
        *(f"--config={config_file}", f"--workdir={workdir}"),
    ]


def environment(cache) -> dict[str, str]:
    return os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def written(config, path):
    path.write_text(f"def get_config():\n    return {config!r}\n")
    return path


@pytest.mark.slow
def test_fresh_processes_end_in_the_same_bits(config, tmp_path):
    file = written(config, tmp_path / "mine.py")
    outcomes = []
    for name in ("one", "two"):
        subprocess.run(
            command(file, tmp_path / name), check=True, env=environment(tmp_path / name / "..")
        )
        outcomes.append(outcome(tmp_path / name))
    assert outcomes[0] == outcomes[1]


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_0(config, tmp_path):
    config = changed(config, training__steps=4000, checkpoint__every_steps=0)
    file = written(config, tmp_path / "mine.py")
    process = subprocess.Popen(
        command(file, tmp_path / "run"), env=environment(tmp_path / "cache"), stderr=subprocess.PIPE
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert b"resumes" in process.stderr.read()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]


def until(condition, process, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, pytest.param(20, marks=pytest.mark.nightly)])
def test_kills_at_any_moment_end_in_the_same_bits(config, tmp_path, count):
    """SIGKILL at random moments, start-up and saving included; resumed each time."""
    config = changed(config, training__steps=600, checkpoint__every_steps=25)
    file = written(config, tmp_path / "mine.py")
    cache = environment(tmp_path / "cache")
    began = time.monotonic()
    subprocess.run(command(file, tmp_path / "undisturbed"), check=True, env=cache)
    lasts = time.monotonic() - began
    expected = outcome(tmp_path / "undisturbed")
    moments = random.Random(count)
    kills, run = 0, 0
    while kills < count:
        run += 1
        workdir = tmp_path / f"run{run}"
        while not (workdir / "result.json").exists():
            process = subprocess.Popen(command(file, workdir), env=cache, stderr=subprocess.DEVNULL)
            try:
                limit = moments.uniform(0.2, lasts) if kills < count else 600
                assert process.wait(timeout=limit) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        assert outcome(workdir) == expected
        steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        logged = [line["step"] for line in steps if line["split"] == "train"]
        assert logged == list(range(4, 601, 4))


def test_another_teacher_is_refused(config, tmp_path, monkeypatch):
    from small_runs import TEACHER

    from distill_jax.errors import UsageError

    with monkeypatch.context() as patch:
        interrupt_after(patch, 20)
        with pytest.raises(loop.Preempted):
            experiment.run(config, tmp_path / "run")
    experiment.run(changed(TEACHER, seed=1, training__steps=2), tmp_path / "other")
    other = changed(config, teacher__path=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="teacher.path.*another teacher than the run began with"):
        experiment.run(other, tmp_path / "run")


def test_config_json_holds_every_key(config, tmp_path):
    experiment.run(changed(config, training__steps=4), tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert configs.resolve(stored) == configs.resolve(changed(config, training__steps=4))
