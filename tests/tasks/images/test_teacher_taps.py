"""A method's loss is that of all of its teacher's taps, however it gets at them."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest
from small_runs import TEACHER, changed

from distill_jax import config as configs
from distill_jax import methods, tasks
from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.teachers.answers import stored_teacher
from distill_jax.teachers.answers.stored_taps import StoredTaps
from distill_jax.training import step
from distill_jax.training.state import copy_to

#: Ways to all taps, each as the list of them.
WAYS = {
    "items": lambda taps: [tap for _, tap in taps.items()],
    "values": lambda taps: list(taps.values()),
    "names": lambda taps: [taps[name] for name in taps],
    "get": lambda taps: [taps.get(name) for name in ("hidden1", "hidden1_pre", "pooled")],
    "tree": jax.tree.leaves,
    "tree_map": lambda taps: jax.tree.leaves(jax.tree.map(lambda tap: tap + 0, taps)),
    "copied": lambda taps: list(dict(taps).values()),
    "unpacked": lambda taps: list({**taps}.values()),
    "merged": lambda taps: list((taps | {}).values()),
    "reversed": lambda taps: [taps[name] for name in reversed(taps)],
    "if_there": lambda taps: [taps[n] for n in ("hidden1", "pooled", "hidden1_pre") if n in taps],
    "one_and_their_number": lambda taps: [taps["pooled"] * len(taps)],
    "get_all_there": lambda taps: [taps[f"hidden{n}"] for n in range(1, 9) if f"hidden{n}" in taps],
    "first": lambda taps: [next(iter(taps.values()))],
    "last": lambda taps: [list(taps.values())[-1]],
}
#: Those on which the loss depends, where they are not all.
TAPS_OF = {
    "one_and_their_number": {"pooled"},
    "first": {"hidden1"},
    "get_all_there": {"hidden1"},
    "last": {"pooled"},
}


@dataclasses.dataclass(frozen=True)
class ReadsTaps(methods.Method):
    """The mean square of the taps that a way gives."""

    way: ClassVar[str]

    def __call__(self, student, teacher, context):
        del context
        found = WAYS[self.way](teacher.taps)
        assert found
        squares = [jnp.mean(tap.reshape(tap.shape[0], -1) ** 2, axis=1) for tap in found]
        return sum(squares) + 0 * student.logits[:, 0]


for _way in WAYS:
    methods.register(f"reads_{_way}", type("Reads", (ReadsTaps,), {"way": _way}))


@dataclasses.dataclass(frozen=True)
class ReadsAllAtFirst(methods.Method):
    """Every tap in the first of two stages, one tap in the second."""

    def stages(self):
        every, one = (type("Reads", (ReadsTaps,), {"way": way})() for way in ("tree", "last"))
        return methods.Stage(every, epochs=1, learning_rate=0.1), methods.Stage(one)


methods.register("reads_all_at_first", ReadsAllAtFirst)


def soft_loss(config: dict, look_ahead: int) -> float:
    """The mean of the method's values over the first four steps."""
    config = changed(config, teacher__look_ahead=look_ahead, training__steps_per_call=4)
    parts = tasks.prepare(configs.resolve(config))
    feed = parts.feed.at(0)
    batches = step.put_batches([next(feed) for _ in range(4)], parts.mesh)
    compiled = step.compile_steps(parts.recipe, parts.mesh, parts.layout)
    state = compiled(copy_to(parts.initial, parts.layout), parts.frozen, parts.resident, batches)
    return float(state.sums["soft_loss"] / state.sums["steps"])


@pytest.mark.parametrize("ways", [[*WAYS], ["first", "last"]])
def test_looking_ahead_leaves_no_tap_empty(digits_teacher, ways):
    method = "+".join(f"reads_{way}" for way in ways)
    config = changed(TEACHER, teacher__path=str(digits_teacher), method__name=method, mesh__data=1)
    now, ahead = (soft_loss(config, count) for count in (1, 4))
    assert now > 0.1
    assert ahead == pytest.approx(now, rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reading_is_seen(digits_teacher, way):
    config = changed(TEACHER, teacher__path=str(digits_teacher), method__name=f"reads_{way}")
    recipe = tasks.prepare(configs.resolve(config)).recipe
    assert recipe.teacher_taps == TAPS_OF.get(way, {"hidden1", "hidden1_pre", "pooled"})


def test_only_the_taps_in_the_loss_are_computed_ahead(digits_teacher):
    config = changed(TEACHER, teacher__path=str(digits_teacher), method__name="rkd")
    recipe = tasks.prepare(configs.resolve(config)).recipe
    assert recipe.teacher_taps == {"pooled"}
    assert len(recipe.teacher_shapes[0].taps) > 1


@pytest.fixture(scope="module")
def stores(digits_teacher, tmp_path_factory):
    """Folders of answers by the taps that they hold: "pooled" alone, or "all" of them."""
    folder = tmp_path_factory.mktemp("stores")
    config = changed(TEACHER, teacher__path=str(digits_teacher), method__name="soft_target")
    for name, taps in (("pooled", None), ("all", ("hidden1", "hidden1_pre", "pooled"))):
        tasks.precompute(config, folder / name, taps=taps, dtype="float32")
    return folder


def prepared(store, method: str):
    config = changed(TEACHER, teacher__store=str(store), method__name=method)
    return tasks.prepare(configs.resolve(config))


REFUSED = (
    r"^teacher\.store='.*': the loss of {} depends on (hidden1|hidden1, hidden1_pre) of the "
    r"teacher; the store has pooled; expected one written with "
    r"--taps=(hidden1|hidden1,hidden1_pre),pooled, or teacher\.path alone$"
)


@pytest.mark.parametrize("method", [*(f"reads_{way}" for way in WAYS), "reads_all_at_first"])
def test_a_store_that_lacks_a_tap_of_the_loss_is_refused(stores, method):
    if TAPS_OF.get(method.removeprefix("reads_")) == {"pooled"}:
        assert prepared(stores / "pooled", method).recipe.teacher_taps == {"pooled"}
        return
    with pytest.raises(UsageError, match=REFUSED.format(method)):
        prepared(stores / "pooled", method)


def test_a_sum_is_refused_for_any_of_its_terms(stores):
    with pytest.raises(UsageError, match=r"the loss of rkd\+reads_tree depends on hidden1, "):
        prepared(stores / "pooled", "rkd+reads_tree")


def test_a_stored_teacher_has_the_loss_of_the_network(digits_teacher, stores):
    config = changed(TEACHER, mesh__data=1, data__augment__crop_padding=1)
    one = {"method__name": "reads_one_and_their_number+reads_last"}
    every = {"method__name": "+".join(f"reads_{way}" for way in WAYS)}
    for store, method in (("pooled", one), ("all", every)):
        online = soft_loss(changed(config, teacher__path=str(digits_teacher), **method), 1)
        stored = soft_loss(changed(config, teacher__store=str(stores / store), **method), 1)
        assert stored == pytest.approx(online, rel=1e-4)


@pytest.fixture(scope="module")
def deeper(tmp_path_factory):
    """The workdir of a teacher with one layer more than `digits_teacher`."""
    folder = tmp_path_factory.mktemp("deeper") / "run"
    config = {**TEACHER, "student": {"name": "mlp", "widths": (32, 64)}}
    experiment.run(changed(config, training__steps=1), folder)
    return folder


class TestAnotherArchitecture:
    """Teachers whose taps are different."""

    @pytest.mark.parametrize("way", ["tree", "last", "get_all_there"])
    @pytest.mark.parametrize("swapped", [False, True])
    def test_a_loss_that_reads_other_taps_of_each_is_refused(
        self, digits_teacher, deeper, way, swapped
    ):
        paths = (str(digits_teacher), str(deeper))
        config = changed(
            TEACHER,
            teacher__path=paths[::-1] if swapped else paths,
            teacher__combine="sum_losses",
            method__name="rkd" if way == "last" else f"reads_{way}",
        )
        if way == "last":  # both have the one tap that it reads
            assert tasks.prepare(configs.resolve(config)).recipe.teacher_taps == {"pooled"}
            return
        with pytest.raises(UsageError, match="reads features of teachers of one shape"):
            tasks.prepare(configs.resolve(config))


class TestStoredTaps:
    """Those of a store whose teacher's model is not registered."""

    taps = StoredTaps({"pooled": jnp.ones((2, 3))}, "theirs", "answers")

    def test_what_it_has_is_read_by_name(self):
        assert self.taps["pooled"].shape == self.taps.get("pooled").shape == (2, 3)
        assert "pooled" in self.taps and self.taps

    @pytest.mark.parametrize(
        "read",
        [
            lambda taps: list(taps),
            lambda taps: taps.items(),
            lambda taps: taps.values(),
            lambda taps: taps.keys(),
            lambda taps: len(taps),
            lambda taps: dict(taps),
            lambda taps: {**taps},
            lambda taps: taps["stage1"],
            lambda taps: taps.get("stage1_pre", taps["pooled"]),
            lambda taps: "stage1" in taps,
            lambda taps: taps | {},
            lambda taps: {} | taps,
            lambda taps: list(reversed(taps)),
            lambda taps: taps.copy().pop("stage1", None),
        ],
    )
    def test_what_it_may_lack_is_refused(self, read):
        expected = r"^teacher.store='answers': the method reads .*; the store has pooled, and its "
        with pytest.raises(UsageError, match=expected + r".*'theirs' is not registered.*--taps="):
            read(self.taps)

    def test_it_is_a_pytree_that_keeps_its_guard(self):
        doubled = jax.tree.map(lambda tap: 2 * tap, self.taps)
        assert float(doubled["pooled"][0, 0]) == 2
        with pytest.raises(UsageError, match="the method reads all taps"):
            list(doubled)

    @pytest.mark.parametrize("way", ["tree", "tree_map", "items", "one_and_their_number"])
    def test_a_loss_of_all_taps_is_refused(self, stores, way, monkeypatch):
        monkeypatch.setattr(stored_teacher, "_network_outputs", lambda spec: None)
        with pytest.raises(UsageError, match="the method reads all taps of the teacher; the store"):
            prepared(stores / "pooled", f"reads_{way}")

    def test_a_loss_of_a_tap_by_name_is_that_of_the_network(self, stores, monkeypatch):
        config = changed(TEACHER, teacher__store=str(stores / "pooled"), method__name="rkd")
        known = soft_loss(config, 1)
        monkeypatch.setattr(stored_teacher, "_network_outputs", lambda spec: None)
        assert soft_loss(config, 1) == known
