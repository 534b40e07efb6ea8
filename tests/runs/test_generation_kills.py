"""Writers of text that are killed: the same command ends in the same bytes."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import compiling
import generation_reference as reference
import pytest
from small_generations import settings_for, write


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return reference.small_teacher(tmp_path_factory.mktemp("teacher") / "model")


ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys, jax
from distill_jax import parallel
from distill_jax.runs import generation as generate
from distill_jax.runs.generation_settings import Settings
settings = json.loads(sys.argv[1])
settings["stops"] = tuple(settings["stops"])
mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
generate.write(Settings(**settings), sys.argv[2], sys.argv[3], mesh=mesh)
"""


def start(settings, teacher, workdir) -> subprocess.Popen:
    """A writer in a process of its own."""
    said = json.dumps(dataclasses.asdict(settings))
    command = [sys.executable, "-c", SCRIPT, said, str(teacher), str(workdir)]
    environment = os.environ | compiling.cache_environment(write=False)  # it may be killed
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment)


def killed_after_two_shards(process, workdir, moments) -> bool:
    """Kills a writer some milliseconds after its second shard; False if it was done before."""
    while len(list(workdir.glob("responses-*"))) < 2 and process.poll() is None:
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.1))
    process.kill()
    return process.wait() == -signal.SIGKILL


def test_a_killed_run_resumes_to_the_same_bytes(teacher, tmp_path):
    settings = settings_for(tmp_path, shard=1, samples=30, max_new_tokens=8)
    write(settings, teacher, tmp_path / "whole")
    moments = random.Random(1)
    for attempt in range(5):
        workdir = tmp_path / f"killed{attempt}"
        # On a busy machine a writer may be done before the signal comes.
        if killed_after_two_shards(start(settings, teacher, workdir), workdir, moments):
            break
    assert not (workdir / "responses.jsonl").exists()
    notes = []
    write(settings, teacher, workdir, notes)
    assert 0 < len(notes) < 7  # the first shard was there
    for path in (tmp_path / "whole").glob("responses*"):
        assert (workdir / path.name).read_bytes() == path.read_bytes()


@pytest.mark.nightly
def test_ten_kills_end_in_the_same_bytes(teacher, tmp_path):
    settings = settings_for(tmp_path, shard=1, samples=6, max_new_tokens=8)
    began = time.monotonic()
    assert start(settings, teacher, tmp_path / "whole").wait() == 0
    lasts, moments, kills, number = time.monotonic() - began, random.Random(10), 0, 0
    while kills < 10:
        workdir = tmp_path / f"killed{number}"
        number += 1
        while not (workdir / "responses.jsonl").exists():
            process = start(settings, teacher, workdir)
            try:
                assert process.wait(timeout=moments.uniform(0.5, lasts)) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        assert start(settings, teacher, workdir).wait() == 0
        for path in (tmp_path / "whole").glob("responses*"):
            assert (workdir / path.name).read_bytes() == path.read_bytes()
