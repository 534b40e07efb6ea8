"""One writer a folder: who holds it, and whose lock was left behind."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from distill_jax.errors import UsageError
from distill_jax.storage import gcs, holding, locks

HOLD = """
import sys, time
from distill_jax import storage
with storage.holding(sys.argv[1], "--workdir"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def foreign(folder, **changes) -> locks.Owner:
    """Leaves the record of a process of another machine in a folder."""
    owner = dataclasses.replace(locks._own(), machine="elsewhere pid:[1]", host="far", **changes)
    record = owner.render()
    if isinstance(folder, pathlib.PosixPath):
        folder.mkdir(exist_ok=True)
        (folder / locks.LOCK).write_bytes(record)
    else:
        gcs.write(folder / locks.LOCK, record)
    return owner


def test_a_second_holder_is_refused_and_told_who_the_first_is(holder, tmp_path):
    with pytest.raises(UsageError, match=rf"--out={tmp_path}/run: in use by process {holder.pid} "):
        with holding(tmp_path / "run", "--out"):
            pass
    host, since = os.uname().nodename, json.loads((tmp_path / "run" / ".lock").read_text())["since"]
    with pytest.raises(UsageError, match=re.escape(f"on {host}, since {since}")):
        with holding(tmp_path / "run", "--out"):
            pass


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with holding(tmp_path / "run", "--workdir", note=pytest.fail):
        pass
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_stopped_process_still_holds_its_folder(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(UsageError, match="in use"):
        with holding(tmp_path / "run", "--workdir"):
            pass


def test_without_locks_of_the_kernel_a_process_id_decides(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(UsageError, match=f"process {holder.pid} "):
        with holding(tmp_path / "run", "--workdir"):
            pass
    holder.kill()
    holder.wait()
    with holding(tmp_path / "run", "--workdir"):
        pass
    # The process id of a dead holder may be given to another process.
    born = dataclasses.replace(locks._own(), born="1")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / ".lock").write_bytes(born.render())
    with holding(tmp_path / "run", "--workdir"):
        pass


def test_what_was_made_is_removed_where_nothing_was_written(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with holding(tmp_path / "a" / "b", "--workdir"):
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with holding(tmp_path / "a" / "b", "--out", beside=True):
        assert [p.name for p in (tmp_path / "a").iterdir()] == [".b.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--workdir=.*: cannot be written"):
        with holding(tmp_path / "file" / "run", "--workdir"):
            pass


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_lock_of_another_machine_is_watched(place, request, tmp_path, monkeypatch):
    folder = request.getfixturevalue("bucket") if place == "bucket" else tmp_path / "run"
    monkeypatch.setattr(locks, "STALE", 0.6)
    foreign(folder)
    notes: list[str] = []
    with holding(folder, "--workdir", note=notes.append):
        pass
    assert len(notes) == 1 and "on far" in notes[0]

    owner = foreign(folder)
    alive = dataclasses.replace(owner, beat=1).render()

    def beat(_: float) -> None:
        if place == "bucket":
            gcs.write(folder / locks.LOCK, alive)
        else:
            (folder / locks.LOCK).write_bytes(alive)

    monkeypatch.setattr(time, "sleep", beat)
    with pytest.raises(UsageError, match="in use by process .* on far"):
        with holding(folder, "--workdir", note=notes.append):
            pass


def test_a_second_holder_in_a_bucket_is_refused(bucket):
    with holding(bucket, "--workdir"):
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()} "):
            with holding(bucket, "--workdir"):
                pass
    assert gcs.list_names(bucket) == []


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_holder_notices_that_its_lock_was_taken(place, request, tmp_path):
    folder = request.getfixturevalue("bucket") if place == "bucket" else tmp_path
    kind = locks._ObjectLock if place == "bucket" else locks._FileLock
    lock = kind(folder / locks.LOCK, "", pytest.fail)
    lock.take()
    assert lock.beat() and lock.beat()
    assert lock.read().beat == 2
    foreign(folder)
    assert not lock.beat()
    lock.release()
    assert (folder / locks.LOCK).exists()  # it is another process's now


def test_a_process_that_lost_its_lock_ends(tmp_path):
    script = HOLD.replace("import sys", "from distill_jax.storage import locks; import sys")
    script = script.replace("with", "locks.BEAT = 0.05\nwith", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    (tmp_path / locks.LOCK).unlink()
    foreign(tmp_path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and "another process took it over" in errors
