"""What a machine does to checkpoints: full disks, kills at any moment, and more than one host.

Each test runs a real process that saves with orbax, because these faults cannot be acted in one.
"""

import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import time

import compiling
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.training.checkpoints import Checkpoints, integrity

ROOT = pathlib.Path(__file__).resolve().parents[3]

HEADER = """
import os, resource, sys
import jax, jax.numpy as jnp, numpy as np
from distill_jax.training.checkpoints import CheckpointError, Checkpoints

SIZE = 75_000  # 300 kB an array

def make(step):
    return {"params": {"a/b": jnp.arange(SIZE) + step}, "mu": jnp.full((SIZE,), step, jnp.float32)}

def check(restored):
    for name, array in make(restored.step).items():
        jax.tree.map(np.testing.assert_array_equal, restored.state[name], array)

abstract = jax.eval_shape(lambda: make(0))
"""


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", HEADER + script, *map(str, arguments)]


def environment(devices: int = 1) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    of_cache = compiling.cache_environment(write=False)  # some are killed
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return {**os.environ, **own, **of_cache}


FULL_DISK = """
checkpoints = Checkpoints(sys.argv[1], keep_last=9)
for step in (1, 2):
    checkpoints.save(step, make(step), {})
checkpoints.wait()

fill()
for surfaces in (checkpoints.wait, lambda: checkpoints.save(4, make(4), {})):
    try:
        checkpoints.save(3, make(3), {})
        surfaces()
    except CheckpointError as error:
        message = str(error)
        assert "checkpoint 3" in message and message.endswith("kept: 1, 2"), message
        assert WORDS in message, message
        assert "\\n" not in message
    else:
        sys.exit("the disk was not full")
    assert sorted(os.listdir(sys.argv[1])) == ["1", "2"]
    restored = checkpoints.restore(abstract)
    assert restored.step == 2
    check(restored)

empty()
checkpoints.save(5, make(5), {})
checkpoints.close()
again = Checkpoints(sys.argv[1])
assert again.steps() == (1, 2, 5)
check(again.restore(abstract))
again.close()
"""


def test_a_file_that_may_not_grow_loses_nothing_that_was_committed(tmp_path):
    script = """
WORDS = "File too large"
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
def fill(): resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
def empty(): resource.setrlimit(resource.RLIMIT_FSIZE, limit)
"""
    done = subprocess.run(
        command(script + FULL_DISK, tmp_path / "checkpoints"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "orbax" not in done.stderr  # nor its tracebacks: the one message is enough


def test_what_late_threads_of_a_failed_save_write_is_cleared_too(tmp_path, monkeypatch):
    """They write between the looks of `clear`, and are silent for up to two of them."""
    folder, late, looks = tmp_path / "3.unsealed", {1, 2, 4, 7, 8, 11}, []

    def sleep(seconds):
        assert 0 < seconds < 1
        looks.append(folder.exists())
        if len(looks) in late:
            folder.mkdir(exist_ok=True)
            (folder / str(len(looks))).write_bytes(b"late")

    monkeypatch.setattr(integrity.time, "sleep", sleep)
    folder.mkdir()
    integrity.clear(folder)
    assert len(looks) > max(late) and not folder.exists()


def test_a_full_disk_loses_nothing_that_was_committed(tmp_path):
    """On a file system of 3 MB of its own, which ends with the process."""
    mounted = ["unshare", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=3m tmpfs {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run([*mounted, mount]).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    script = """
WORDS = "No space left on device"
filler = os.path.join(os.path.dirname(sys.argv[1]), "filler")
def fill():
    with open(filler, "wb", buffering=0) as stream:
        free = os.statvfs(filler).f_bavail * os.statvfs(filler).f_bsize
        stream.write(bytes(free - 400_000))
def empty(): os.unlink(filler)
"""
    done = subprocess.run(
        [*mounted, f'{mount} && exec "$@"', "sh"]
        + command(script + FULL_DISK, tmp_path / "checkpoints"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "orbax" not in done.stderr  # nor its tracebacks: the one message is enough


SAVE_FOR_EVER = """
checkpoints = Checkpoints(sys.argv[1])
restored = checkpoints.restore(abstract)
step = 0
if restored is not None:
    check(restored)
    step = restored.step
while True:
    step += 1
    checkpoints.save(step, make(step), {"step": step}, score=-abs(step - 3))
    print(f"save {step} has started", flush=True)
"""


@pytest.mark.parametrize(("seed", "kills"), [(0, 2), pytest.param(1, 6, marks=pytest.mark.nightly)])
def test_a_kill_at_any_moment_leaves_only_whole_or_unsealed_checkpoints(tmp_path, seed, kills):
    rng = random.Random(seed)
    run = tmp_path / "checkpoints"
    abstract = {
        "params": {"a/b": jax.ShapeDtypeStruct((75_000,), jnp.int32)},
        "mu": jax.ShapeDtypeStruct((75_000,), jnp.float32),
    }
    newest = 0
    for _ in range(kills):
        log = tmp_path / "log"
        with open(log, "w") as stream:
            process = subprocess.Popen(
                command(SAVE_FOR_EVER, run), env=environment(), stdout=stream, stderr=stream
            )
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and "save" not in log.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0.05, 0.5))
        finally:
            process.kill()
            process.wait()
        output = log.read_text()
        assert process.returncode == -9, output
        assert "damaged" not in output
        for step in integrity.steps(run):
            integrity.check(run / str(step), step)
        lines = []
        checkpoints = Checkpoints(run, warn=lines.append)
        steps, restored = checkpoints.steps(), checkpoints.restore(abstract)
        checkpoints.close()
        assert lines == []
        # A save returns only when the one before is sealed.
        started = max(map(int, re.findall(r"^save (\d+) has started$", output, re.MULTILINE)))
        assert max(steps, default=0) >= max(started - 1, newest)
        names = {path.name.partition(".")[2] for path in run.iterdir()}
        assert names <= {"", "unsealed", "trash"}
        if restored is None:
            assert started == 1
            continue
        newest = restored.step
        assert newest == max(steps)
        assert restored.extra == {"step": newest}
        kernel = restored.state["params"]["a/b"]
        np.testing.assert_array_equal(kernel, np.arange(75_000) + newest)


CRASH_ANYWHERE = """
import pathlib, shutil, sys
from distill_jax.training.checkpoints import integrity

class Crash(BaseException): pass

left = None  # file operations until the process is dead, and does nothing more

def count(event, arguments):
    global left
    if left is not None and (event == "open" or event.startswith(("os.", "shutil."))):
        if left == 0:
            raise Crash
        left -= 1

sys.addaudithook(count)  # told of each operation before it is done
folder = pathlib.Path(sys.argv[1])
pristine, run = folder / "pristine", folder / "run"
for step in (1, 2, 3):
    integrity.prepare(pristine, step, print)
    (pristine / f"{step}.unsealed" / "state").mkdir()
    (pristine / f"{step}.unsealed" / "state" / "array").write_bytes(bytes(100) + bytes([step]))
    (pristine / f"{step}.unsealed" / "checkpoint.json").write_text('{"score": %d}' % -step)
    if step < 3:
        integrity.seal(pristine, step)

points, done, seen = 0, False, set()
while not done:
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(pristine, run)
    left = points
    try:
        integrity.seal(run, 3)
        integrity.retain(run, 3, 1, True, print)
        done = True
    except Crash:
        pass
    left = None
    steps = integrity.steps(run)
    for step in steps:
        integrity.check(run / str(step), step)
    seen.add(tuple(steps))
    integrity.prepare(run, 4, lambda line: None)
    assert {path.name for path in run.iterdir()} == {*map(str, steps), "4.unsealed"}
    points += 1
assert seen == {(1, 2), (1, 2, 3), (1, 3)}, seen
print(points)
"""


def test_a_crash_before_any_file_operation_leaves_whole_checkpoints(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CRASH_ANYWHERE, tmp_path],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


TWO_HOSTS = """
from jax.experimental import multihost_utils
process = int(sys.argv[2])
jax.distributed.initialize(sys.argv[3], 2, process)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
def place(step, sharding):
    values = np.arange(64.0, dtype=np.float32) * step
    return jax.make_array_from_callback((64,), sharding, lambda index: values[index])
lines = []
checkpoints = Checkpoints(sys.argv[1], warn=lines.append)
assert checkpoints.restore({}) is None
for step in (1, 2, 3):
    state = {"rows": place(step, rows), "whole": place(step, whole)}
    checkpoints.save(step, state, {}, score=-step)
checkpoints.wait()
assert checkpoints.steps() == (1, 2, 3)
multihost_utils.sync_global_devices("looked")
if process == 0:
    os.truncate(os.path.join(sys.argv[1], "3", "checkpoint.json"), 9)
target = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=rows)
restored = checkpoints.restore({"rows": target, "whole": target})
assert restored.step == 2
assert len(lines) == (process == 0), lines
for array in restored.state.values():
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(64.0)[shard.index] * 2)
checkpoints.close()
"""


def test_two_hosts_save_and_restore_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    logs = [open(tmp_path / f"host{number}", "w+") for number in range(2)]
    processes = [
        subprocess.Popen(
            command(TWO_HOSTS, tmp_path / "checkpoints", number, address),
            env=environment(devices=2),
            stdout=log,
            stderr=log,
        )
        for number, log in enumerate(logs)
    ]
    try:
        deadline = time.monotonic() + 100
        # When one host fails, the other waits for it: look at both.
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            log.seek(0)
            print(log.read())  # shown by pytest when the test fails
            log.close()
    assert codes == [0, 0]


def test_a_program_that_ends_without_waiting_ends_and_leaves_nothing_torn(tmp_path):
    script = """
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, make(1), {})
raise SystemExit("an error of the caller's")
"""
    done = subprocess.run(
        command(script, tmp_path), env=environment(), timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 1
    if sys.version_info >= (3, 12):  # threads no longer start by then: whole, or not there
        assert integrity.steps(tmp_path) in ([], [1])
        return
    assert done.stderr == "an error of the caller's\n"
    assert integrity.steps(tmp_path) == [1]
    integrity.check(tmp_path / "1", 1)


def test_a_program_that_ends_without_waiting_says_that_its_last_save_failed(tmp_path):
    script = """
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
checkpoints = Checkpoints(sys.argv[1], warn=lambda line: print(line, flush=True))
checkpoints.save(1, make(1), {})
"""
    done = subprocess.run(
        command(script, tmp_path), env=environment(), timeout=60, capture_output=True, text=True
    )
    assert integrity.steps(tmp_path) == []
    if sys.version_info >= (3, 12):  # too late there even to say why
        return
    assert re.fullmatch(
        "checkpoint 1 .* could not be saved: File too large; kept: none\n", done.stdout
    )
    assert list(tmp_path.iterdir()) == []
