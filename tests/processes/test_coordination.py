"""Coordination in a single process, and the parts of a group that need no second process."""

import json
import threading

import numpy as np
import pytest

from distill_jax.processes import coordination, group


def test_a_single_process_coordinates_with_nobody():
    assert (
        coordination.is_distributed(),
        coordination.is_first(),
        coordination.process_index(),
        coordination.process_count(),
        coordination.watches_steps(),
    ) == (False, True, 0, 1, False)
    values = ("as", {"they": 1}, np.arange(2))
    assert coordination.broadcast_from_first(lambda: values) is values
    before = threading.active_count()
    coordination.join(None)
    coordination.abort(1, "does nothing")
    coordination.leave()
    assert threading.active_count() == before


class Service(dict):
    """The key-value store of JAX's coordination service, in memory."""

    def key_value_set(self, key, value, allow_overwrite=False):
        if key in self and not allow_overwrite:
            raise ValueError(f"{key} exists")
        self[key] = value

    def key_value_try_get(self, key):
        return self[key]

    def blocking_key_value_get(self, key, timeout_in_ms):
        return self[key]

    def key_value_dir_get(self, key):
        return [(name, value) for name, value in self.items() if name.startswith(key)]


def test_every_process_gets_the_value_of_the_first():
    service = Service()
    first, second = (group.ProcessGroup(service, index, 2) for index in (0, 1))
    for value in ([1, "a"], {"b": None}):
        assert first.broadcast(lambda value=value: value) == value
        assert second.broadcast(lambda: pytest.fail("called in the second process")) == value
    first.broadcast(lambda: 5, "named")
    assert second.broadcast(lambda: 6, "named") == 5


def test_a_heartbeat_that_stands_still_is_silent(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(group.time, "monotonic", lambda: clock[0])
    monitor = group.HeartbeatMonitor()
    assert monitor.find_silent({0: "0 a", 1: "0 b"}, 5) is None
    clock[0] = 104.0
    assert monitor.find_silent({0: "1 a", 1: "0 b"}, 5) is None
    clock[0] = 105.1
    assert monitor.find_silent({0: "1 a", 1: "0 b"}, 5) == 1
    assert monitor.find_silent({0: "1 a", 1: "1 b"}, 5) is None


def test_the_first_failure_counts(monkeypatch):
    """And its process waits until process 0 has acknowledged it."""
    service = Service()
    exits = []
    monkeypatch.setattr(group, "_exit", exits.append)
    monkeypatch.setattr(group, "_LINGER", 0.0)
    monkeypatch.setattr(group, "_ACKNOWLEDGE_TIMEOUT", 0.2)
    printed = []
    monkeypatch.setattr(group, "_print_error", printed.append)
    group.ProcessGroup(service, 1, 3).abort(2, "of process 1")
    assert printed == ["of process 1"]  # process 0 does not print it
    group.ProcessGroup(service, 2, 3).abort(1, "of process 2")
    assert exits == [2, 2] and printed == ["of process 1"]
    group.ProcessGroup(service, 0, 3).abort(1, "of process 0")
    assert exits == [2, 2, 2] and printed == ["of process 1", "of process 1"]
    assert json.loads(service["distill_jax/failure"])["line"] == "of process 1"
