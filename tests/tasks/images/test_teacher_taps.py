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


def soft_loss(config: dict, look_ahead: int) -> float:
    """The mean of the method's values over the first four steps."""
    config = changed(config, teacher__look_ahead=look_ahead, training__steps_per_call=4)
    parts = tasks.prepare(configs.resolve(config))
    feed = parts.feed.at(0)
    batches = step.put_batches([next(feed) for _ in range(4)], parts.mesh)
    compiled = step.compile_steps(parts.recipe, parts.mesh, parts.layout)
    state = compiled(copy_to(parts.initial, parts.layout), parts.frozen, parts.resident, batches)
    return float(state.sums["soft_loss"] / state.sums["steps"])


def test_looking_ahead_leaves_no_tap_empty(digits_teacher):
    every = "+".join(f"reads_{way}" for way in WAYS)
    config = changed(TEACHER, teacher__path=str(digits_teacher), method__name=every, mesh__data=1)
    now, ahead = (soft_loss(config, count) for count in (1, 4))
    assert now > 0.1
    assert ahead == pytest.approx(now, rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reading_is_seen(digits_teacher, way):
    config = changed(TEACHER, teacher__path=str(digits_teacher), method__name=f"reads_{way}")
    recipe = tasks.prepare(configs.resolve(config)).recipe
    whole = {"hidden1", "hidden1_pre", "pooled"}
    assert recipe.teacher_taps == ({"pooled"} if way == "one_and_their_number" else whole)


def test_only_the_taps_in_the_loss_are_computed_ahead(digits_teacher):
    config = changed(TEACHER, teacher__path=str(digits_teacher), method__name="rkd")
    recipe = tasks.prepare(configs.resolve(config)).recipe
    assert recipe.teacher_taps == {"pooled"}
    assert len(recipe.teacher_shapes[0].taps) > 1


class TestStoredTaps:
    """Those of a store that lacks some of its teacher's."""

    taps = StoredTaps({"pooled": jnp.ones((2, 3))}, frozenset({"stage1", "stage1_pre"}), "answers")

    def test_what_it_has_is_read_by_name(self):
        assert self.taps["pooled"].shape == self.taps.get("pooled").shape == (2, 3)
        assert "pooled" in self.taps and "stage9" not in self.taps
        assert self.taps.get("stage9", 5) == 5

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
    def test_overlooking_what_it_lacks_is_refused(self, read):
        expected = r"^teacher.store='answers': the method reads .*; the store has pooled; expected"
        with pytest.raises(UsageError, match=expected + r".*--taps=pooled,stage1,stage1_pre"):
            read(self.taps)

    def test_it_is_a_pytree_that_keeps_its_guard(self):
        doubled = jax.tree.map(lambda tap: 2 * tap, self.taps)
        assert float(doubled["pooled"][0, 0]) == 2
        with pytest.raises(UsageError, match="the method reads all taps"):
            list(doubled)

    def test_a_whole_store_is_a_dictionary(self):
        taps = StoredTaps({"pooled": 1, "stage1": 2}, frozenset(), "answers")
        assert dict(taps) == {"pooled": 1, "stage1": 2} and len(taps) == 2

    def test_unknown_taps_of_a_network_that_is_not_registered_are_refused(self):
        taps = StoredTaps({"pooled": 1}, None, "answers")
        assert taps["pooled"] == 1
        for read in (list, lambda taps: "stage1" in taps):
            with pytest.raises(UsageError):
                read(taps)
