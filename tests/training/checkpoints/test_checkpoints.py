"""Checkpoints: what goes in comes out, on any mesh, and what stays is what should stay."""

import dataclasses
import errno
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.errors import UsageError
from distill_jax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    integrity,
    require_free_space,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict[str, jax.Array]
    optimizer: Any
    nested: dict[str, Any]


def random_bits(rng, shape, dtype):
    """Any bits at all, NaNs with payloads and denormals among them."""
    count = int(np.prod(shape, dtype=int)) * jnp.dtype(dtype).itemsize
    return jnp.asarray(rng.integers(0, 256, count, np.uint8).view(jnp.dtype(dtype)).reshape(shape))


def make_state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "blocks/0/kernel": random_bits(rng, (16, 8), jnp.float32),
        "blocks/0/bias": random_bits(rng, (8,), jnp.bfloat16),
        "../odd.name 'é'": random_bits(rng, (8, 3), jnp.int32),
    }
    floats = {name: value for name, value in params.items() if value.dtype != jnp.int32}
    return State(
        step=jnp.int32(seed),
        params=params,
        optimizer=optax.adam(1e-3).init(floats),
        nested={"deep": {"er": [random_bits(rng, (1,), jnp.uint32), jnp.bool_(seed % 2)]}, "": {}},
    )


def abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves_with_path(expected), strict=True)
    for (path, left), (_, right) in pairs:
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes(), path


@pytest.fixture
def lines():
    return []


@pytest.fixture
def checkpoints(tmp_path, lines):
    made = Checkpoints(tmp_path / "checkpoints", warn=lines.append)
    yield made
    made.close()


def test_round_trip_is_bit_exact(checkpoints, tmp_path, lines):
    state, extra = make_state(3), {"position": 7, "metrics": {"accuracy": 0.1, "names": ["a"]}}
    checkpoints.save(3, state, extra, score=0.5)
    checkpoints.wait()
    assert checkpoints.steps() == (3,)
    again = Checkpoints(tmp_path / "checkpoints", warn=lines.append)
    restored = again.restore(abstract(state))
    again.close()
    assert (restored.step, restored.extra) == (3, extra)
    assert_same_bits(restored.state, state)
    assert lines == []


def test_manifest_is_what_sha256sum_reads(checkpoints, tmp_path):
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()
    folder = tmp_path / "checkpoints" / "1"
    header, *rows = (folder / "MANIFEST.sha256").read_text().splitlines()
    assert header.startswith("#")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {row[66:] for row in rows} == files - {"MANIFEST.sha256"}
    assert "checkpoint.json" in files
    assert all(row[64:66] == "  " for row in rows)


def test_nothing_there_is_none(checkpoints, tmp_path):
    assert checkpoints.restore(abstract(make_state(0))) is None
    assert checkpoints.restore_best(abstract(make_state(0))) is None
    assert checkpoints.steps() == ()
    assert checkpoints.best_step() is None
    assert not (tmp_path / "checkpoints").exists()


def test_saved_on_one_mesh_restored_on_another(checkpoints):
    devices = np.array(jax.devices()[:8])
    by_rows = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
    square = Mesh(devices.reshape(2, 4), ("data", "model"))
    by_both = NamedSharding(square, PartitionSpec("model", "data"))
    replicated = NamedSharding(square, PartitionSpec())
    one = jax.sharding.SingleDeviceSharding(devices[5])
    values = {
        "kernel": random_bits(np.random.default_rng(0), (16, 8), jnp.float32),
        "bias": random_bits(np.random.default_rng(1), (8,), jnp.bfloat16),
        "count": jnp.uint32(7),
    }
    shardings = {"kernel": by_rows, "bias": by_rows, "count": replicated}
    checkpoints.save(1, jax.device_put(values, shardings), {})
    for wanted in (
        {"kernel": by_both, "bias": replicated, "count": one},
        {"kernel": one, "bias": by_rows, "count": replicated},
        {"kernel": None, "bias": None, "count": None},
    ):
        target = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=wanted[name])
            for name, value in values.items()
        }
        restored = checkpoints.restore(target)
        assert_same_bits(restored.state, values)
        for name, sharding in wanted.items():
            placed = restored.state[name].sharding
            if sharding is None:
                assert placed.device_set == {jax.devices()[0]}
            else:
                assert placed.is_equivalent_to(sharding, values[name].ndim)


def test_save_returns_before_it_is_sealed_and_buffers_may_be_donated(checkpoints, monkeypatch):
    go, seal = threading.Event(), integrity.seal

    def wait_then_seal(*arguments):
        assert go.wait(60)
        seal(*arguments)

    monkeypatch.setattr(integrity, "seal", wait_then_seal)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    expected = {  # not read from the state: a view of a buffer keeps it from donation
        "sharded": np.arange(1 << 18, dtype=np.float32),
        "single": np.arange(1 << 18, dtype=np.uint32),
    }
    state = {
        "sharded": jax.device_put(jnp.arange(1 << 18, dtype=jnp.float32), sharding),
        "single": jnp.arange(1 << 18, dtype=jnp.uint32),
    }
    target = abstract(state)
    overwrite = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0
    )
    views, save = [], ocp.AsyncCheckpointer.save

    def slow_save(self, directory, args):
        """Orbax still reading when the caller goes on, which a small state is too quick for."""
        for leaf in jax.tree.leaves(args.item):
            views.extend(np.asarray(shard.data) for shard in leaf.addressable_shards)
        save(self, directory, args=args)

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", slow_save)
    try:
        checkpoints.save(1, state, {})
        jax.block_until_ready(overwrite(state))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
        assert checkpoints.steps() == ()
    finally:
        go.set()
    checkpoints.wait()
    assert checkpoints.steps() == (1,)
    assert_same_bits(checkpoints.restore(target).state, expected)


def test_keeps_the_best_and_the_last(checkpoints, tmp_path, lines):
    scores = {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.9, 5: 0.2, 6: None}
    for step, score in scores.items():
        checkpoints.save(step, make_state(step), {"step": step}, score=score)
    checkpoints.wait()
    assert checkpoints.steps() == (2, 5, 6)
    assert checkpoints.best_step() == 2
    best = checkpoints.restore_best(abstract(make_state(0)))
    assert (best.step, best.extra) == (2, {"step": 2})
    assert_same_bits(best.state, make_state(2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]
    assert lines == []


def test_without_best_only_the_last_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=False)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), {}, score=-step)
    checkpoints.close()
    assert checkpoints.steps() == (3,)
    assert checkpoints.best_step() == 3
    with pytest.raises(UsageError, match="keep_last=0"):
        Checkpoints(tmp_path, keep_last=0)


def test_a_new_checkpoint_stays_though_it_is_not_of_the_last_steps(checkpoints):
    for step in (8, 9, 4):
        checkpoints.save(step, make_state(step), {})
    checkpoints.wait()
    assert checkpoints.steps() == (4, 8, 9)


def test_saving_a_sealed_step_again_changes_nothing(checkpoints):
    checkpoints.save(1, make_state(1), {"first": True})
    checkpoints.save(1, make_state(2), {"first": False})
    restored = checkpoints.restore(abstract(make_state(1)))
    assert restored.extra == {"first": True}
    assert_same_bits(restored.state, make_state(1))


def test_restore_of_one_step(checkpoints):
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {})
    assert checkpoints.restore(abstract(make_state(0)), step=1).step == 1
    with pytest.raises(CheckpointError, match="checkpoint 7 in .* damaged or not there.*: 1, 2$"):
        checkpoints.restore(abstract(make_state(0)), step=7)


def test_failure_in_the_background_is_raised_once_and_saving_goes_on(
    checkpoints, tmp_path, monkeypatch
):
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for surfaces in (checkpoints.wait, lambda: checkpoints.save(4, make_state(4), {})):
        with monkeypatch.context() as patch:
            patch.setattr(integrity, "seal", full)
            checkpoints.save(2, make_state(2), {})
            assert checkpoints.restore(abstract(make_state(1))).step == 1
        with pytest.raises(CheckpointError, match="checkpoint 2 .*No space left.*; kept: 1$") as e:
            surfaces()
        assert isinstance(e.value.__cause__, OSError)
        checkpoints.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    checkpoints.save(3, make_state(3), {})
    checkpoints.wait()
    assert checkpoints.steps() == (1, 3)
    assert_same_bits(checkpoints.restore(abstract(make_state(1))).state, make_state(3))


def test_a_save_that_cannot_start_is_raised_at_once(tmp_path):
    (tmp_path / "file").touch()
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match="could not be saved: .*Not a directory"):
        checkpoints.save(1, make_state(1), {})
    checkpoints.close()


def test_what_cannot_be_saved_is_refused_by_name(checkpoints):
    with pytest.raises(TypeError, match=r"state\['a/b'\] is a ndarray, not a jax.Array"):
        checkpoints.save(1, {"a/b": np.zeros(2)}, {})
    with pytest.raises(TypeError, match="JSON"):
        checkpoints.save(1, {"a/b": jnp.zeros(2)}, {"array": np.zeros(2)})
    assert checkpoints.steps() == ()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda s: s["params"].pop("a/b"),
            r"\['params'\]\['a/b'\] is float32\[2, 3\], wanted: noth",
        ),
        (
            lambda s: s["params"].update(c=s["n"]),
            r"\['params'\]\['c'\] is missing, wanted: int32\[\]",
        ),
        (lambda s: s.update(n=jnp.float32(0)), r"\['n'\] is int32\[\], wanted: float32\[\]"),
        (
            lambda s: s["params"].update({"a/b": jnp.zeros((3, 2))}),
            r"\['params'\]\['a/b'\] is float32\[2, 3\], wanted: float32\[3, 2\]",
        ),
    ],
)
def test_another_state_is_refused_and_the_checkpoint_left_alone(
    checkpoints, lines, change, expected
):
    def state():
        return {"params": {"a/b": jnp.ones((2, 3))}, "n": jnp.int32(4)}

    checkpoints.save(1, state(), {})
    other = state()
    change(other)
    with pytest.raises(
        CheckpointError, match=f"checkpoint 1 .* not of this state: {expected}"
    ) as e:
        checkpoints.restore(abstract(other))
    assert "\n" not in str(e.value)
    assert lines == []
    assert_same_bits(checkpoints.restore(abstract(state())).state, state())


def test_the_order_of_the_tree_does_not_matter(checkpoints):
    first, second = jnp.ones((2,)), jnp.zeros((2,))
    checkpoints.save(1, {"z": first, "a": second}, {})
    restored = checkpoints.restore(abstract({"a": second, "z": first}))
    assert_same_bits(restored.state, {"a": second, "z": first})


def test_deletion_that_fails_is_a_warning_and_is_tried_again(
    checkpoints, tmp_path, lines, monkeypatch
):
    def stuck(path):
        raise OSError(errno.EBUSY, "Device or resource busy")

    checkpoints.save(1, make_state(1), {})
    checkpoints.save(2, make_state(2), {})
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(integrity, "remove", stuck)
        checkpoints.save(3, make_state(3), {})
        checkpoints.wait()
    assert checkpoints.steps() == (2, 3)
    assert len(lines) == 1 and "checkpoint 1 " in lines[0] and "busy" in lines[0]
    assert (tmp_path / "checkpoints" / "1.trash").is_dir()
    checkpoints.save(4, make_state(4), {})
    checkpoints.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_free_space(tmp_path):
    require_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(UsageError, match=r"out=.*not/yet': its disk has .* free, but 1000 TB are"):
        require_free_space(tmp_path / "not" / "yet", 10**15, key="out")
