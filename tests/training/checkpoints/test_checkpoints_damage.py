"""Damaged checkpoints: none is ever used, one line says so, and the one before comes back."""

import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.training.checkpoints import CheckpointError, Checkpoints

ABSTRACT = {
    "params": {"a/b": jax.ShapeDtypeStruct((64, 16), jnp.float32)},
    "optimizer": {"mu": jax.ShapeDtypeStruct((300,), jnp.bfloat16)},
    "count": jax.ShapeDtypeStruct((), jnp.int32),
}


def make_state(seed):
    keys = iter(jax.random.split(jax.random.key(seed), 3))
    return jax.tree.map(
        lambda leaf: jax.random.normal(next(keys), leaf.shape).astype(leaf.dtype), ABSTRACT
    )


def assert_state(state, seed):
    expected = make_state(seed)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Two checkpoints of a run, 10 and 20, and "donor", step 20 of another run."""
    folder = tmp_path_factory.mktemp("pristine")
    for name, steps, offset in (("run", (10, 20), 0), ("donor", (20,), 1000)):
        checkpoints = Checkpoints(folder / name)
        for step in steps:
            # Scores of one length: nothing but the content tells the files apart.
            checkpoints.save(step, make_state(step + offset), {"step": step}, score=step / 100)
        checkpoints.close()
    return folder


@pytest.fixture
def run(pristine, tmp_path):
    shutil.copytree(pristine / "run", tmp_path / "run")
    return tmp_path / "run"


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def bit_flip(rng, path, pristine):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def truncation(rng, path, pristine):
    os.truncate(path, int(rng.integers(path.stat().st_size)))


def extension(rng, path, pristine):
    with open(path, "ab") as stream:
        stream.write(rng.bytes(int(rng.integers(1, 64))))


def deletion(rng, path, pristine):
    path.unlink()


def zeros(rng, path, pristine):
    """A file of the right length that was never written, as after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


def addition(rng, path, pristine):
    path.with_name(f"{path.name}.copy").write_bytes(path.read_bytes())


def exchange(rng, path, pristine):
    """Two files of the checkpoint swap names."""
    folder = next(parent for parent in path.parents if parent.name == "20")
    others = [p for p in files_of(folder) if p.read_bytes() != path.read_bytes()]
    other = others[rng.integers(len(others))]
    here, there = path.read_bytes(), other.read_bytes()
    path.write_bytes(there)
    other.write_bytes(here)


def transplant(rng, path, pristine):
    """A file of another checkpoint in the place of this one, the one of the same name if any."""
    donor = pristine / ("run/10", "donor/20")[rng.integers(2)]
    folder = next(parent for parent in path.parents if parent.name == "20")
    same = donor / path.relative_to(folder)
    others = [p for p in files_of(donor) if p.read_bytes() != path.read_bytes()]
    path.write_bytes((same if same in others else others[rng.integers(len(others))]).read_bytes())


def manifest_of_another(rng, path, pristine):
    donor = pristine / ("run/10", "donor/20")[rng.integers(2)]
    folder = next(parent for parent in path.parents if parent.name == "20")
    shutil.copyfile(donor / "MANIFEST.sha256", folder / "MANIFEST.sha256")


DAMAGES = (
    bit_flip,
    truncation,
    extension,
    deletion,
    zeros,
    addition,
    exchange,
    transplant,
    manifest_of_another,
)


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 27), pytest.param(1, 200, marks=pytest.mark.nightly)]
)
def test_no_random_damage_is_ever_used(pristine, tmp_path, seed, count):
    rng = np.random.default_rng(seed)
    lines = []
    run = tmp_path / "run"
    checkpoints = Checkpoints(run, warn=lines.append)
    for number in range(count):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(pristine / "run", run)
        files = files_of(run / "20")
        path = files[rng.integers(len(files))]
        damage = DAMAGES[number % len(DAMAGES)]
        damage(rng, path, pristine)
        what = f"{number}: {damage.__name__} of {path.relative_to(run)}"
        lines.clear()
        restored = checkpoints.restore(ABSTRACT)
        assert (restored.step, restored.extra) == (10, {"step": 10}), what
        assert_state(restored.state, 10)
        assert len(lines) == 1 and "\n" not in lines[0], what
        assert "checkpoint 20 " in lines[0] and "20.damaged-1; trying 10" in lines[0], what
        assert sorted(os.listdir(run)) == ["10", "20.damaged-1"], what
    checkpoints.close()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: (c / "checkpoint.json").unlink(), "checkpoint.json is missing"),
        (lambda c: (c / "state" / "new").touch(), "'state/new' is not in its manifest"),
        (lambda c: os.truncate(c / "checkpoint.json", 9), "checkpoint.json is not what was saved"),
        (lambda c: (c / "MANIFEST.sha256").unlink(), "it has no manifest"),
        (lambda c: os.truncate(c / "MANIFEST.sha256", 99), "its manifest is damaged"),
        (lambda c: os.truncate(c / "MANIFEST.sha256", 0), "its manifest is damaged"),
        (lambda c: (c / "new\nline").touch(), r"'new\nline' is not in its manifest"),
        (lambda c: os.mkfifo(c / "pipe"), "'pipe' is neither a file nor a folder"),
        (lambda c: (shutil.rmtree(c), c.touch()), "it is not a folder"),
        (lambda c: (shutil.rmtree(c), c.mkdir()), "it has no manifest"),
    ],
)
def test_the_warning_says_what_is_wrong(run, damage, reason):
    damage(run / "20")
    lines = []
    checkpoints = Checkpoints(run, warn=lines.append)
    assert checkpoints.restore(ABSTRACT).step == 10
    checkpoints.close()
    assert len(lines) == 1 and "\n" not in lines[0]
    assert f"checkpoint 20 in {run} is damaged: {reason}" in lines[0]


def test_links_are_refused_though_they_lead_to_the_right_bytes(run, tmp_path):
    shutil.move(run / "20" / "state", tmp_path / "state")
    (run / "20" / "state").symlink_to(tmp_path / "state")
    shutil.copytree(run / "10", tmp_path / "30")
    (run / "30").symlink_to(tmp_path / "30")
    (run / "40").symlink_to(tmp_path / "nowhere")
    lines = []
    checkpoints = Checkpoints(run, warn=lines.append)
    assert checkpoints.restore(ABSTRACT).step == 10
    checkpoints.close()
    assert len(lines) == 3
    assert "checkpoint 40 " in lines[0] and "not a folder" in lines[0]
    assert "checkpoint 30 " in lines[1] and "not a folder" in lines[1]
    assert "checkpoint 20 " in lines[2] and "'state' is a symbolic link" in lines[2]
    assert (tmp_path / "30" / "MANIFEST.sha256").is_file()


def test_a_renamed_checkpoint_is_refused(run):
    (run / "10").rename(run / "30")
    lines = []
    checkpoints = Checkpoints(run, warn=lines.append)
    assert checkpoints.restore(ABSTRACT).step == 20
    checkpoints.close()
    assert len(lines) == 1 and "of another checkpoint" in lines[0]


def test_two_checkpoints_that_swapped_manifests_are_both_refused(run):
    manifests = [run / step / "MANIFEST.sha256" for step in ("10", "20")]
    texts = [path.read_bytes() for path in manifests]
    for path, text in zip(manifests, reversed(texts), strict=True):
        path.write_bytes(text)
    lines = []
    checkpoints = Checkpoints(run, warn=lines.append)
    for warnings in (2, 2):  # neither now nor at the next start does the run begin anew, unasked
        with pytest.raises(CheckpointError, match=f"every checkpoint in {run} is damaged"):
            checkpoints.restore(ABSTRACT)
        assert len(lines) == warnings
    assert checkpoints.steps() == ()
    checkpoints.close()


def test_the_one_step_asked_for_is_not_replaced_by_another(run):
    os.truncate(run / "20" / "checkpoint.json", 9)
    lines = []
    checkpoints = Checkpoints(run, warn=lines.append)
    with pytest.raises(CheckpointError, match="checkpoint 20 .* damaged or not there.*: 10$"):
        checkpoints.restore(ABSTRACT, step=20)
    assert len(lines) == 1
    checkpoints.close()


@pytest.mark.parametrize("name", ["state/_METADATA", "checkpoint.json", "MANIFEST.sha256"])
def test_the_best_falls_back_to_the_next_best(run, name):
    os.truncate(run / "20" / name, 9)
    lines = []
    checkpoints = Checkpoints(run, warn=lines.append)
    assert checkpoints.best_step() == (20 if name.startswith("state") else 10)
    restored = checkpoints.restore_best(ABSTRACT)
    assert restored.step == 10
    assert_state(restored.state, 10)
    assert len(lines) == 1 and "checkpoint 20 " in lines[0] and "trying 10" in lines[0]
    assert checkpoints.best_step() == 10
    os.truncate(run / "10" / name, 9)
    with pytest.raises(CheckpointError, match="every checkpoint .* is damaged"):
        checkpoints.restore_best(ABSTRACT)
    checkpoints.close()


def test_a_score_with_a_flipped_bit_does_not_make_the_best(run):
    about = run / "10" / "checkpoint.json"
    about.write_bytes(about.read_bytes().replace(b'"score": 0.1', b'"score": 0.9'))
    checkpoints = Checkpoints(run)
    assert checkpoints.best_step() == 20
    checkpoints.close()


def test_names_that_are_not_a_step_are_never_taken_for_a_checkpoint(run):
    names = ("30.unsealed", "30.trash", "030", "30.orbax-checkpoint-tmp", "-30", "30.damaged-1")
    for name in names:
        shutil.copytree(run / "20", run / name)
    lines = []
    checkpoints = Checkpoints(run, warn=lines.append)
    assert checkpoints.steps() == (10, 20)
    assert checkpoints.restore(ABSTRACT).step == 20
    assert lines == []
    checkpoints.save(30, make_state(30), {})
    checkpoints.wait()
    assert len(lines) == 1 and "checkpoint 30 " in lines[0] and "left half-written" in lines[0]
    assert_state(checkpoints.restore(ABSTRACT).state, 30)
    assert sorted(os.listdir(run)) == sorted(["20", "30", *names[2:]])
    checkpoints.close()


def test_saving_where_a_half_written_one_stands_sets_it_aside(run):
    (run / "20" / "MANIFEST.sha256").unlink()
    lines = []
    checkpoints = Checkpoints(run, warn=lines.append)
    checkpoints.save(20, make_state(21), {})
    assert_state(checkpoints.restore(ABSTRACT).state, 21)
    checkpoints.close()
    assert len(lines) == 1 and "set aside as 20.damaged-1" in lines[0]
