"""Who is named when no process goes on."""

import queue
import types

import jax
import jax.numpy as jnp
import pytest

from distill_jax.processes import watchdog
from distill_jax.processes.watchdog import Status
from distill_jax.training import loop

READING = Status(120, "reading the data of step 121", False, 12.4)
WAITING = Status(140, "fetching the results of step 140", False, 12.0)
SAVING = Status(120, "saving step 120", True, 12.0)


def test_the_one_that_has_handed_over_fewer_steps_is_named():
    found = watchdog.diagnose({0: WAITING, 1: READING, 2: WAITING}, 10)
    assert found == (
        "process 1 of 3 has been reading the data of step 121 for 12 s, the other processes wait: "
        "fetching the results of step 140"
    )


def test_all_are_named_when_none_is_behind():
    found = watchdog.diagnose({0: WAITING, 1: WAITING}, 10)
    assert found == "all 2 processes have been fetching the results of step 140 for 12 s"
    one, other = (Status(120, doing, True, 200.0) for doing in ("saving", "evaluating"))
    found = watchdog.diagnose({0: one, 1: other, 2: one}, 10)
    assert found == (
        "processes 0, 2 of 3 have been saving for 200 s; "
        "process 1 of 3 has been evaluating for 200 s"
    )


@pytest.mark.parametrize("other", [Status(140, "computing step 140", False, 9.0), SAVING])
def test_nobody_is_named_while_one_goes_on(other):
    assert watchdog.diagnose({0: READING, 1: other}, 10) is None


def test_what_is_rightly_long_has_ten_times_the_limit():
    assert watchdog.diagnose({0: SAVING, 1: WAITING}, 1.5) is None
    assert "process 0 of 2 has been saving" in watchdog.diagnose({0: SAVING, 1: WAITING}, 1.1)


def test_a_report_tells_since_when_nothing_has_changed(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    watchdog.mark(5, "computing step 5")
    clock[0] = 130.0
    assert watchdog.parse({1: watchdog.status()}) == {1: Status(5, "computing step 5", False, 30.0)}
    watchdog.mark_computed(4)
    clock[0] = 131.0
    watchdog.mark_computed(4)  # nothing new
    assert watchdog.parse({1: watchdog.status()})[1].idle == 1.0


def test_a_step_counts_when_the_devices_have_computed_it(monkeypatch):
    """Also when the next step has taken over its state."""
    told = queue.SimpleQueue()
    monkeypatch.setattr(loop.coordination, "watches_steps", lambda: True)
    monkeypatch.setattr(loop.watchdog, "mark_computed", told.put)
    advance = jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0)
    state = types.SimpleNamespace(bad_step=jnp.int32(-1))
    with loop._report_computed_steps() as follow:
        for step in (1, 2):
            state = types.SimpleNamespace(bad_step=advance(state.bad_step))
            follow(step, state)
        advance(state.bad_step)
        assert [told.get(timeout=10) for _ in range(2)] == [1, 2]


def test_a_single_process_follows_nothing():
    with loop._report_computed_steps() as follow:
        follow(1, None)
