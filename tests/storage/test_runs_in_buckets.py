"""Runs in a bucket, against an emulator: the same as on a disk; and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_texts
from bucket_contents import damage, put, sealed
from local_processes import finished, written
from small_runs import TEACHER, changed
from test_resume import interrupt_after, outcome

from distill_jax import cli, models
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.runs import experiment
from distill_jax.storage import gcs
from distill_jax.training import loop

RUN = changed(
    TEACHER,
    checkpoint__every_steps=20,
    evaluation__every_epochs=1.0,
    logging__tensorboard=True,
)
CLOCK = ("wall_time_s", "training_time_s", "examples_per_second")
SEAL = ("sealed", "run")  # of one run alone


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """The workdir of the run on a disk that those in a bucket are compared with."""
    workdir = tmp_path_factory.mktemp("disk") / "run"
    experiment.run(RUN, workdir)
    return workdir


def figures(workdir) -> dict:
    result = json.loads((workdir / "result.json").read_text())
    return {name: value for name, value in result.items() if name not in CLOCK + SEAL}


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket, on_disk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = experiment.run(RUN, str(bucket))
    assert result.workdir == bucket
    assert outcome(bucket) == outcome(on_disk)
    assert figures(bucket) == figures(on_disk)
    kept = {str(path.relative_to(on_disk)).split(".out.")[0] for path in on_disk.rglob("*.*")}
    found = {name.split(".out.")[0] for name in gcs.list_objects(bucket)}
    hidden = {name for name in found ^ kept if name.startswith("checkpoints/")}  # named by content
    assert found - hidden == kept - hidden
    assert not list(tmp_path.iterdir())  # no folder "gs:"

    assert experiment.evaluate(str(bucket), "test", "selected", {}) == experiment.evaluate(
        on_disk, "test", "selected", {}
    )
    page = (bucket / "report.html").read_text()
    assert cli.main(["report", f"--workdir={bucket}"]) == 0
    assert capsys.readouterr().out == f"{bucket}/report.html\n"
    assert (bucket / "report.html").read_text() == page
    assert experiment.run(RUN, str(bucket)).values == result.values

    before = gcs.list_objects(bucket)
    file = tmp_path / "mine.py"
    file.write_text(f"def get_config():\n    return {RUN!r}\n")
    command = ["train", f"--config={file}", f"--workdir={bucket}"]
    assert cli.main([*command, "--config.seed=1"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "holds a run of another config" in line
    assert (
        cli.main([*command[:2], f"--workdir={bucket.parent / 'no' / 'run'}", "--config.seed=x"])
        == 2
    )
    assert gcs.list_objects(bucket) == before
    assert gcs.list_names(bucket.parent / "no") == []


def test_a_stopped_run_resumes_to_the_same_bits(bucket, on_disk, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 30)
        with pytest.raises(loop.Preempted):
            experiment.run(RUN, bucket)
    assert not (bucket / "result.json").exists()
    experiment.run(RUN, bucket)
    assert (outcome(bucket), figures(bucket)) == (outcome(on_disk), figures(on_disk))
    assert len(gcs.list_names(bucket / "tensorboard")) == 2


def command(file, workdir) -> list[str]:
    return [
        *(sys.executable, "-m", "distill_jax.cli", "train"),
        *(f"--config={file}", f"--workdir={workdir}"),
    ]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(bucket, tmp_path):
    """SIGKILL; then the newest checkpoint is damaged, and a later one left half-written."""
    config = changed(
        RUN, training__steps=200, evaluation__every_epochs=5.0, logging__progress="plain"
    )
    file = tmp_path / "mine.py"
    file.write_text(f"def get_config():\n    return {config!r}\n")
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run(command(file, tmp_path / "run"), check=True, env=environment)
    process = subprocess.Popen(command(file, bucket), env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not len(sealed(bucket / "checkpoints")) > 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (bucket / "result.json").exists()
    newest = max(sealed(bucket / "checkpoints"))
    damage(bucket / "checkpoints" / str(newest))
    gcs.write(bucket / "checkpoints" / str(newest + 1) / "state" / "half", b"of it")
    done = subprocess.run(
        command(file, bucket), check=True, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert f"checkpoint {newest} in {bucket}/checkpoints is damaged" in done.stderr
    assert f"checkpoint {newest + 1} in {bucket}/checkpoints was left half-written" in done.stderr
    assert f"resumed from the checkpoint of step {newest}" not in done.stderr
    assert "resumed from the checkpoint of step" in done.stderr
    assert outcome(bucket) == outcome(tmp_path / "run")
    assert figures(bucket) == figures(tmp_path / "run")
    assert f"{newest}.damaged-1" in gcs.list_names(bucket / "checkpoints")


@pytest.mark.slow
def test_a_run_on_text_with_all_in_buckets(bucket, tmp_path, capsys):
    """Teacher, tokenizer, workdir and the exported model: as with all of them on a disk."""
    teacher = small_texts.make_teacher(tmp_path / "teacher")
    records = tmp_path / "records.jsonl"
    small_texts.write_records(records)
    put(teacher, bucket / "teacher")
    results = []
    for place in (tmp_path, bucket):
        given = small_texts.config(place / "teacher", records)
        given = changed(given, training__steps=4, student__path=str(place / "teacher"))
        for name in ("depth", "dim", "heads", "kv_heads", "mlp_dim", "layers"):
            given["student"].pop(name, None)
        experiment.run(given, place / "run")
        assert experiment.evaluate(place / "run", "test", "final", {})["nll"] > 0
        command = ["export", f"--workdir={place / 'run'}", f"--out={place / 'out'}"]
        assert cli.main(command) == 0
        exported = language.load(place / "out")
        results.append((outcome(place / "run"), models.split(exported)[1]))
    (here, exported_here), (there, exported_there) = results
    assert here == there
    for name, value in exported_here.items():
        np.testing.assert_array_equal(exported_there[name], value)
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert gcs.list_names(bucket / "out") == names and "tokenizer.json" in names
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "there are objects under this name" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_in_a_bucket_are_one_with_two_devices_on_a_disk(bucket, tmp_path):
    config = changed(RUN, mesh__data=-1, training__steps=30, checkpoint__every_steps=10)
    file = written(config, tmp_path)
    for processes, workdir in ((1, tmp_path / "run"), (2, bucket)):
        arguments = ["train", f"--config={file}", f"--workdir={workdir}"]
        finished(
            tmp_path / f"logs{processes}", arguments, processes=processes, devices=3 - processes
        )
    assert outcome(bucket) == outcome(tmp_path / "run")
    here, there = (figures(workdir) | {"device": ""} for workdir in (tmp_path / "run", bucket))
    assert here == there
    assert "ocdbt.process_1" in gcs.list_names(bucket / "checkpoints" / "30" / "state")


@pytest.mark.parametrize("load", [models.load, language.load, text.load_tokenizer])
def test_what_is_read_from_a_bucket_asks_for_gcsfs(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"some.key='gs://bucket/x': the package gcsfs is not ins"):
        load("gs://bucket/x", key="some.key")


def test_a_workdir_in_a_bucket_asks_for_gcsfs(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.chdir(tmp_path)
    for verb in ("train", "eval", "report"):
        assert cli.main([verb, "--workdir=gs://bucket/run"]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and "--workdir='gs://bucket/run'" in line
        assert "the package gcsfs is not installed; expected it (pip install gcsfs)" in line
    assert cli.main(["train", "--workdir=gs://"]) == 2
    assert "expected gs://bucket/folder" in capsys.readouterr().err
    for wrong in ("gs://bucket/a[1]", "gs://bucket/a*", "gs://bucket/a#1"):
        assert cli.main(["train", f"--workdir={wrong}"]) == 2
        assert "expected a name without any of *?[]#" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_bucket_that_is_not_there_is_one_line(emulator, monkeypatch, capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"def get_config():\n    return {RUN!r}\n")
    assert cli.main(["train", f"--config={file}", "--workdir=gs://no-such-bucket/run"]) == 2
    line = capsys.readouterr().err
    assert "--workdir=gs://no-such-bucket/run: cannot be read or written" in line
    assert "expected a bucket that is there" in line


@pytest.mark.parametrize("command", ["store --config=x --workdir", "generate --config=x --workdir"])
def test_what_has_no_buckets_says_so(command, capsys):
    assert cli.main(f"{command}=gs://bucket/x".split()) == 2
    assert "'gs://bucket/x': expected a local file or folder" in capsys.readouterr().err


def test_tests_reach_no_cloud():
    gcsfs = pytest.importorskip("gcsfs")
    for said in (gcsfs.core._location(), os.environ["TENSORSTORE_GCS_HTTP_URL"]):
        assert said.startswith("http://127.0.0.1:")
