"""Runs on text in two processes: the numbers of one, answers to prompts included."""

import json
import signal

import pytest
import small_texts
from local_processes import Run, finished, records, result, written
from small_runs import changed

from distill_jax import models, tasks
from distill_jax.models import language

KINDS = {
    "plain": {},
    # What is trained lies beside a frozen base on all devices, and is merged to be saved.
    "adapted": {"student": {"name": "decoder", "layers": (0, 1), "lora_rank": 2}},
    # The student itself writes some of the batches.
    "on_policy": {
        "rollout__probability": 0.5,
        "rollout__max_new_tokens": 8,
        "data__packing": "single",
        "data__long": "cut",
    },
    # Each process reads the answers to its own rows.
    "stored": {"teacher__store": "sampled:20"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    """A run on eight devices' worth of rows, with prompts to answer."""
    folder = tmp_path_factory.mktemp("texts")
    teacher = small_texts.make_teacher(folder / "teacher")
    small_texts.write_records(folder / "records.jsonl")
    small_texts.write_records(folder / "prompts.jsonl", count=5)
    plain = small_texts.config(teacher, folder / "records.jsonl")
    return changed(
        plain,
        mesh__data=-1,
        evaluation__test_prompts=str(folder / "prompts.jsonl"),
        evaluation__max_new_tokens=8,
        evaluation__prompt_batch_size=4,
    )


def outcome(workdir) -> tuple:
    """What equal runs share."""
    final = result(workdir)["final"]
    return result(workdir)["parameters_sha256"], records(workdir), final["test"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        # "adapted" runs in the test below, where it is stopped.
        *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("plain", "adapted")),
        *("on_policy", "stored"),
    ],
)
def test_two_processes_take_the_steps_of_one(config, tmp_path, kind):
    own = dict(KINDS[kind])
    config = {**config, "student": own.pop("student", config["student"])}
    if kind == "stored":
        tasks.precompute(config, tmp_path / "answers", answers=own["teacher__store"])
        own = {"teacher__store": str(tmp_path / "answers")}
    file = written(changed(config, **own), tmp_path)
    for name, processes in (("one", 1), ("two", 2)):
        arguments = ["train", f"--config={file}", f"--workdir={tmp_path / name}"]
        finished(tmp_path / f"logs_{name}", arguments, processes=processes, devices=2 // processes)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    test = result(tmp_path / "two")["final"]["test"]
    assert test["prompts"] == 5 and len(test["samples"]) == 5


STOPPER = """
import os, pathlib, signal, sys, time
from distill_jax.runs.session import Session

log, mark = Session.log, pathlib.Path({mark!r})

def log_and_stop(self, at, sums):
    log(self, at, sums)
    if at >= 4 and "--process_id=1" in sys.argv and not mark.exists():
        mark.write_text(str(at))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)  # the other process waits, and both know of it before the next step

Session.log = log_and_stop
"""


@pytest.mark.slow
def test_a_run_stopped_in_two_processes_goes_on_to_the_bits_of_one(config, tmp_path):
    """One of them receives SIGTERM in the midst; the same command continues."""
    config = changed(config, logging__every_steps=2) | KINDS["adapted"]
    file = written(config, tmp_path)
    finished(
        tmp_path / "logs_one",
        ["train", f"--config={file}", f"--workdir={tmp_path / 'one'}"],
        processes=1,
        devices=2,
    )
    module = tmp_path / "stopper.py"
    module.write_text(STOPPER.format(mark=str(tmp_path / "stopped_at")))
    arguments = ["train", f"--config={file}", f"--workdir={tmp_path / 'two'}"]
    arguments.append(f"--config.imports=('{module}',)")
    stopped = finished(tmp_path / "logs_stopped", arguments, processes=2)
    assert len(stopped.lines("distill-jax: stopped by SIGTERM")) == 1, stopped.output()
    assert not (tmp_path / "two" / "result.json").exists()
    last = max(line["step"] for line in records(tmp_path / "two"))
    assert 4 <= last < 20 and int((tmp_path / "stopped_at").read_text()) <= last
    finished(tmp_path / "logs_two", arguments, processes=2)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert len(manifest["resumed"]) == 1


@pytest.mark.nightly
def test_a_stopped_run_goes_on_in_one_process(config, tmp_path):
    long = {"training__steps": 400, "evaluation__every_epochs": 0.0, "checkpoint__every_steps": 10}
    file = written(changed(config, **long), tmp_path)
    arguments = ["train", f"--config={file}", f"--workdir={tmp_path / 'stopped'}"]
    run = Run(tmp_path / "logs", arguments, processes=2, killed=True)
    run.until(lambda: (tmp_path / "stopped" / "checkpoints" / "10").exists())
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes() == [0, 0], run.output()
    assert not (tmp_path / "stopped" / "result.json").exists()
    finished(tmp_path / "resumed", arguments, processes=1, devices=2)
    manifest = json.loads((tmp_path / "stopped" / "manifest.json").read_text())
    assert len(manifest["resumed"]) == 1
    arguments = ["train", f"--config={file}", f"--workdir={tmp_path / 'whole'}"]
    finished(tmp_path / "logs_whole", arguments, processes=1, devices=2)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"fsdp": 2, "tensor": 2}], ids=str)
def test_shards_over_processes(config, tmp_path, axes):
    """Parameters, optimizer and teacher lie in shards that no process has all of."""
    own = {f"mesh__{axis}": size for axis, size in axes.items()}
    few = {"training__steps": 3, "evaluation__every_epochs": 0.0, "evaluation__max_new_tokens": 2}
    file = written(changed(config, **few, **own), tmp_path)
    for name, processes in (("one", 1), ("two", 2)):
        arguments = ["train", f"--config={file}", f"--workdir={tmp_path / name}"]
        finished(tmp_path / f"logs_{name}", arguments, processes=processes, devices=4 // processes)
    for line, same in zip(records(tmp_path / "two"), records(tmp_path / "one"), strict=True):
        assert line.keys() == same.keys()
        for key, value in line.items():
            if isinstance(value, float):
                assert value == pytest.approx(same[key], rel=1e-4, abs=1e-5), key
    # The first process has written what lay in parts in both, and told its fingerprint.
    model = language.load(tmp_path / "two" / "model")
    definition, params = model.config.definition(), models.split(model)[1]
    found = models.fingerprint_of(definition, params)
    assert found == result(tmp_path / "two")["parameters_sha256"]
