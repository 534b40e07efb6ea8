"""Runs, checkpoints and models in a bucket, against an emulator: the same as on a disk."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small_texts
from hosts.local_processes import finished, written
from small_runs import TEACHER, changed
from test_resume import interrupt_after, outcome

from distill_jax import buckets, cli, experiment, files, models, parallel
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import ranges
from distill_jax.training import loop
from distill_jax.training.checkpoints import CheckpointError, Checkpoints

RUN = changed(
    TEACHER,
    checkpoint__every_steps=20,
    evaluation__every_epochs=1.0,
    logging__tensorboard=True,
)
CLOCK = ("wall_time_s", "training_time_s", "examples_per_second")


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """The workdir of the run on a disk that those in a bucket are compared with."""
    workdir = tmp_path_factory.mktemp("disk") / "run"
    experiment.run(RUN, workdir)
    return workdir


def figures(workdir) -> dict:
    result = json.loads((workdir / "result.json").read_text())
    return {name: value for name, value in result.items() if name not in CLOCK}


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket, on_disk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = experiment.run(RUN, str(bucket))
    assert result.workdir == bucket
    assert outcome(bucket) == outcome(on_disk)
    assert figures(bucket) == figures(on_disk)
    kept = {str(path.relative_to(on_disk)).split(".out.")[0] for path in on_disk.rglob("*.*")}
    found = {name.split(".out.")[0] for name in buckets.objects(bucket)}
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

    before = buckets.objects(bucket)
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
    assert buckets.objects(bucket) == before
    assert buckets.names(bucket.parent / "no") == []


def test_a_stopped_run_resumes_to_the_same_bits(bucket, on_disk, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 30)
        with pytest.raises(loop.Preempted):
            experiment.run(RUN, bucket)
    assert not (bucket / "result.json").exists()
    experiment.run(RUN, bucket)
    assert (outcome(bucket), figures(bucket)) == (outcome(on_disk), figures(on_disk))
    assert len(buckets.names(bucket / "tensorboard")) == 2


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
    buckets.write(bucket / "checkpoints" / str(newest + 1) / "state" / "half", b"of it")
    done = subprocess.run(
        command(file, bucket), check=True, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert f"checkpoint {newest} in {bucket}/checkpoints is damaged" in done.stderr
    assert f"checkpoint {newest + 1} in {bucket}/checkpoints was left half-written" in done.stderr
    assert f"resumed from the checkpoint of step {newest}" not in done.stderr
    assert "resumed from the checkpoint of step" in done.stderr
    assert outcome(bucket) == outcome(tmp_path / "run")
    assert figures(bucket) == figures(tmp_path / "run")
    assert f"{newest}.damaged-1" in buckets.names(bucket / "checkpoints")


def sealed(directory) -> list[int]:
    names = [name for name in buckets.names(directory) if name.isdigit()]
    return [int(name) for name in names if "MANIFEST.sha256" in buckets.names(directory / name)]


def damage(checkpoint) -> None:
    """Changes one bit of its largest object."""
    name = max(buckets.objects(checkpoint), key=lambda name: buckets.size(checkpoint / name))
    content = bytearray(buckets.read(checkpoint / name))
    content[len(content) // 2] ^= 1
    buckets.write(checkpoint / name, bytes(content))


def state_of(step: int) -> dict:
    return {"a": jnp.arange(1000.0) + step, "b": jnp.full((8, 8), step, jnp.bfloat16)}


def abstract(state) -> dict:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def checkpoints(bucket, lines):
    checkpoints = Checkpoints(bucket / "checkpoints", keep_last=2, warn=lines.append)
    yield checkpoints
    checkpoints.close()


def test_the_best_and_the_last_are_kept_and_read_back(checkpoints, bucket, lines):
    for step, score in ((1, 0.9), (2, 0.1), (3, 0.2), (4, 0.3)):
        checkpoints.save(step, state_of(step), {"n": step}, score=score)
    checkpoints.wait()
    assert checkpoints.steps() == (1, 3, 4)
    assert sorted(buckets.names(bucket / "checkpoints")) == ["1", "3", "4"]
    for restored, step in (
        (checkpoints.restore(abstract(state_of(0))), 4),
        (checkpoints.restore(abstract(state_of(0)), step=3), 3),
        (checkpoints.restore_best(abstract(state_of(0))), 1),
    ):
        assert (restored.step, restored.extra) == (step, {"n": step})
        for name, value in state_of(step).items():
            np.testing.assert_array_equal(restored.state[name], value)
    assert lines == []


@pytest.mark.parametrize("how", ["changed", "missing", "added", "manifest"])
def test_a_damaged_checkpoint_is_set_aside(how, checkpoints, bucket, lines):
    for step in (1, 2):
        checkpoints.save(step, state_of(step), {})
    checkpoints.wait()
    newest = bucket / "checkpoints" / "2"
    if how == "changed":
        damage(newest)
    elif how == "missing":
        buckets.remove_one(newest / "state" / "manifest.ocdbt")
    elif how == "added":
        buckets.write(newest / "more", b"")
    else:
        buckets.write(newest / "MANIFEST.sha256", b"# checkpoint of step 2: 0 files\n")
    assert checkpoints.restore(abstract(state_of(0))).step == 1
    assert len(lines) == 1 and "checkpoint 2" in lines[0] and "trying 1" in lines[0]
    assert sorted(buckets.names(bucket / "checkpoints")) == ["1", "2.damaged-1"]
    buckets.remove(bucket / "checkpoints" / "1")
    with pytest.raises(CheckpointError, match="every checkpoint .* is damaged"):
        checkpoints.restore(abstract(state_of(0)))


def test_what_is_not_finished_is_no_checkpoint(checkpoints, bucket, lines, monkeypatch):
    """Neither what is being written, nor what is being deleted, whose manifest goes first."""
    for step in (1, 2):
        checkpoints.save(step, state_of(step), {})
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(buckets, "write", stopped)
        checkpoints.save(3, state_of(3), {})
        with pytest.raises(
            CheckpointError, match="checkpoint 3 .* could not be saved: .*; kept: 1, 2"
        ):
            checkpoints.wait()
    buckets.write(bucket / "checkpoints" / "3" / "state" / "half", b"")
    buckets.remove_one(bucket / "checkpoints" / "1" / "MANIFEST.sha256")
    assert checkpoints.steps() == (2,)
    assert checkpoints.restore(abstract(state_of(0))).step == 2
    assert lines == []
    checkpoints.save(3, state_of(3), {})
    checkpoints.wait()
    assert sorted(buckets.names(bucket / "checkpoints")) == ["2", "3"]
    assert ["left half-written" in line for line in lines] == [True, True]


def stopped(*_):
    raise buckets.Unreachable("gs://bucket: the network is gone")


def test_a_bucket_that_does_not_answer_damages_nothing(checkpoints, bucket, lines, monkeypatch):
    checkpoints.save(1, state_of(1), {})
    checkpoints.wait()
    before = buckets.objects(bucket)
    with monkeypatch.context() as patch:
        patch.setattr(buckets._system(), "cat_file", refusing)
        with pytest.raises(buckets.Unreachable, match="OSError: Forbidden"):
            checkpoints.restore(abstract(state_of(0)))
    assert lines == [] and buckets.objects(bucket) == before


def refusing(*_, **__):
    raise OSError("Forbidden: no such right")


def test_growing_files_are_copied_and_come_back(bucket, monkeypatch):
    growing = files.Growing(bucket, ("log", "folder"))
    (growing.local / "log").write_text("a\n")
    (growing.local / "folder").mkdir()
    (growing.local / "folder" / "x").write_text("x")
    (growing.local / "other").write_text("stays")
    growing.push()
    assert buckets.objects(bucket) == ["folder/x", "log"]
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "_PUSH_SECONDS", 0.0)
        patch.setattr(buckets._system(), "put_file", refusing)
        growing.push_sometimes(told.append)  # nothing has changed
        assert told == []
        (growing.local / "log").write_text("a\nb\n")
        growing.push_sometimes(told.append)
        assert len(told) == 1 and "Forbidden" in told[0] and "tried again" in told[0]
        with pytest.raises(buckets.Unreachable):
            growing.push()
    growing.push_sometimes(told.append)
    assert (bucket / "log").read_text() == "a\n"  # not yet again
    growing.close()
    assert not growing.local.exists() and len(told) == 1
    again = files.Growing(bucket, ("log", "folder"))
    assert (again.local / "log").read_text() == "a\nb\n"
    assert (again.local / "folder" / "x").read_text() == "x"
    again.close()


def test_a_model_in_a_bucket_is_a_teacher(bucket, digits_teacher, tmp_path):
    for name in ("model.json", "weights.safetensors"):
        buckets.write(bucket / "model" / name, (digits_teacher / "model" / name).read_bytes())
    here, there = models.load(digits_teacher), models.load(str(bucket))
    assert here.fingerprint == there.fingerprint == models.load(bucket / "model").fingerprint
    with files.published(bucket / "copy", "model.json") as folder:  # as `import` does
        models.save(folder, here.spec, here.params, here.stats)
    assert models.load(bucket / "copy").fingerprint == here.fingerprint
    content = bytearray((digits_teacher / "model" / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    buckets.write(bucket / "model" / "weights.safetensors", bytes(content))
    with pytest.raises(
        UsageError, match=f"teacher.path='{bucket}': weights.safetensors is damaged"
    ):
        models.load(str(bucket))
    with pytest.raises(UsageError, match="no model here"):
        models.load(f"{bucket}/none")


def put(folder, bucket) -> None:
    """Copies the files of a local folder."""
    for file in folder.iterdir():
        buckets.write(bucket / file.name, file.read_bytes())


@pytest.fixture
def decoder(tmp_path):
    """A Hugging Face folder of a small decoder, in several files."""
    folder = small_texts.make_teacher(tmp_path / "decoder")
    model = language.load(folder)
    language.save(tmp_path / "shards", model, shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    return tmp_path / "shards"


def test_a_decoder_in_a_bucket_is_the_one_on_a_disk(bucket, decoder, monkeypatch):
    put(decoder, bucket)
    mesh = parallel.make_mesh(fsdp=4, tensor=2)

    def layout(name, shape):
        return parallel.sharding(name, shape, mesh)

    read = []
    whole = buckets.read
    monkeypatch.setattr(buckets, "read", lambda *at: read.append(at) or whole(*at))
    monkeypatch.setattr(ranges, "_BLOCK", 100)  # blocks of rows, also of one that is longer
    for placed in (None, layout):
        here, there = (
            models.split(language.load(path, layout=placed))[1] for path in (decoder, str(bucket))
        )
        assert here.keys() == there.keys()
        for name in here:
            np.testing.assert_array_equal(here[name], there[name])
            assert here[name].sharding == there[name].sharding
    assert len(read) > 100


def test_slices_of_a_tensor_in_a_bucket_are_those_of_numpy(bucket, tmp_path, monkeypatch):
    arrays = {
        "matrix": np.arange(35, dtype=np.float32).reshape(5, 7),
        "half": np.arange(24).reshape(2, 3, 4).astype(jnp.bfloat16),
        "scalar": np.array(3.0),
        "empty": np.zeros((0, 3), np.float16),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    buckets.write(bucket / "x.safetensors", (tmp_path / "x.safetensors").read_bytes())
    monkeypatch.setattr(ranges, "_BLOCK", 60)
    file = ranges.File(bucket / "x.safetensors")
    assert file.keys() == sorted(arrays)
    for name, array in arrays.items():
        found = file.get_slice(name)
        assert tuple(found.get_shape()) == array.shape
        for index in [
            (slice(None),) * array.ndim,
            (slice(1, 2), slice(0, 2), slice(3))[: array.ndim],
            (slice(1, 1), slice(None), slice(1, 3))[: array.ndim],
        ]:
            np.testing.assert_array_equal(found[index], array[index], strict=True)
    np.testing.assert_array_equal(file.get_slice("matrix")[1:5], arrays["matrix"][1:5])
    reads = []
    whole = buckets.read
    monkeypatch.setattr(
        buckets, "read", lambda path, a, b: reads.append(b - a) or whole(path, a, b)
    )
    _ = file.get_slice("matrix")[2:4]
    assert reads == [2 * 7 * 4]  # no byte of another row


@pytest.mark.parametrize("how", ["truncated", "no header", "longer"])
def test_a_damaged_file_of_tensors_in_a_bucket_is_refused(how, bucket, decoder):
    put(decoder, bucket)
    name = sorted(file.name for file in decoder.glob("*.safetensors"))[0]
    content = (decoder / name).read_bytes()
    content = {"truncated": content[:-1], "no header": content[:5], "longer": content + b"x"}[how]
    buckets.write(bucket / name, content)
    with pytest.raises(UsageError, match=f"path='{bucket}': {name} is damaged or truncated"):
        language.load(str(bucket))


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
    assert buckets.names(bucket / "out") == names and "tokenizer.json" in names
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
    assert "ocdbt.process_1" in buckets.names(bucket / "checkpoints" / "30" / "state")


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
