"""Checkpoints and logs in a bucket, against an emulator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bucket_contents import damage

from distill_jax import storage
from distill_jax.storage import gcs, paths
from distill_jax.training.checkpoints import CheckpointError, Checkpoints


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
    assert sorted(gcs.list_names(bucket / "checkpoints")) == ["1", "3", "4"]
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
        gcs.remove_object(newest / "state" / "manifest.ocdbt")
    elif how == "added":
        gcs.write(newest / "more", b"")
    else:
        gcs.write(newest / "MANIFEST.sha256", b"# checkpoint of step 2: 0 files\n")
    assert checkpoints.restore(abstract(state_of(0))).step == 1
    assert len(lines) == 1 and "checkpoint 2" in lines[0] and "trying 1" in lines[0]
    assert sorted(gcs.list_names(bucket / "checkpoints")) == ["1", "2.damaged-1"]
    gcs.remove_all(bucket / "checkpoints" / "1")
    with pytest.raises(CheckpointError, match="every checkpoint .* is damaged"):
        checkpoints.restore(abstract(state_of(0)))


def test_what_is_not_finished_is_no_checkpoint(checkpoints, bucket, lines, monkeypatch):
    """Neither what is being written, nor what is being deleted, whose manifest goes first."""
    for step in (1, 2):
        checkpoints.save(step, state_of(step), {})
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(gcs, "write", stopped)
        checkpoints.save(3, state_of(3), {})
        with pytest.raises(
            CheckpointError, match="checkpoint 3 .* could not be saved: .*; kept: 1, 2"
        ):
            checkpoints.wait()
    gcs.write(bucket / "checkpoints" / "3" / "state" / "half", b"")
    gcs.remove_object(bucket / "checkpoints" / "1" / "MANIFEST.sha256")
    assert checkpoints.steps() == (2,)
    assert checkpoints.restore(abstract(state_of(0))).step == 2
    assert lines == []
    checkpoints.save(3, state_of(3), {})
    checkpoints.wait()
    assert sorted(gcs.list_names(bucket / "checkpoints")) == ["2", "3"]
    assert ["left half-written" in line for line in lines] == [True, True]


def stopped(*_):
    raise gcs.BucketError("gs://bucket: the network is gone")


def test_a_bucket_that_does_not_answer_damages_nothing(checkpoints, bucket, lines, monkeypatch):
    checkpoints.save(1, state_of(1), {})
    checkpoints.wait()
    before = gcs.list_objects(bucket)
    with monkeypatch.context() as patch:
        patch.setattr(gcs._system(), "cat_file", refusing)
        with pytest.raises(gcs.BucketError, match="OSError: Forbidden"):
            checkpoints.restore(abstract(state_of(0)))
    assert lines == [] and gcs.list_objects(bucket) == before


def refusing(*_, **__):
    raise OSError("Forbidden: no such right")


def test_growing_files_are_copied_and_come_back(bucket, monkeypatch):
    growing = storage.GrowingFiles(bucket, ("log", "folder"))
    (growing.folder / "log").write_text("a\n")
    (growing.folder / "folder").mkdir()
    (growing.folder / "folder" / "x").write_text("x")
    (growing.folder / "other").write_text("stays")
    growing.upload()
    assert gcs.list_objects(bucket) == ["folder/x", "log"]
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(paths, "_UPLOAD_SECONDS", 0.0)
        patch.setattr(gcs._system(), "put_file", refusing)
        growing.upload_periodically(told.append)  # nothing has changed
        assert told == []
        (growing.folder / "log").write_text("a\nb\n")
        growing.upload_periodically(told.append)
        assert len(told) == 1 and "Forbidden" in told[0] and "tried again" in told[0]
        with pytest.raises(gcs.BucketError):
            growing.upload()
    growing.upload_periodically(told.append)
    assert (bucket / "log").read_text() == "a\n"  # not yet again
    growing.close()
    assert not growing.folder.exists() and len(told) == 1
    again = storage.GrowingFiles(bucket, ("log", "folder"))
    assert (again.folder / "log").read_text() == "a\nb\n"
    assert (again.folder / "folder" / "x").read_text() == "x"
    again.close()
