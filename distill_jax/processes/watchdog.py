"""The watchdog: which process blocks a run in which no process makes progress.

A heartbeat shows that a process lives, not that its main thread makes progress. So each process
also records what its main thread has begun (`mark`) and which step its devices have computed
(`mark_computed`), and its heartbeat carries for how long neither has changed (`status`). When that
time exceeds the limit in every process, the run is deadlocked: all wait for each other. The process
that has dispatched the fewest steps is the one that blocks the run, because a process that waits in
a collective has dispatched the step that contains it.

Preparing, compiling, evaluating and saving may take `LONG_FACTOR` times the limit of a step. Left
out on purpose: what happens inside a computation; the host sees only that it does not end.
"""

import dataclasses
import json
import threading
import time
from collections.abc import Mapping

#: By what the limit is multiplied for phases that take long in a healthy run.
LONG_FACTOR = 10


@dataclasses.dataclass(frozen=True)
class Status:
    """What the main thread of a process does.

    Attributes:
      dispatched: how many steps it has dispatched to its devices.
      doing: its present phase, to follow "process 1 has been" in a message.
      long: whether that phase may take `LONG_FACTOR` times as long as a step.
      idle: seconds since the phase began, or since a step was computed.
    """

    dispatched: int
    doing: str
    long: bool
    idle: float


_lock = threading.Lock()
_current = Status(0, "starting", True, 0.0)
_since = time.monotonic()
_computed = 0


def mark(dispatched: int, doing: str, *, long: bool = False) -> None:
    """Records the phase that the main thread of this process begins; see `Status`."""
    global _current, _since
    with _lock:
        _current, _since = Status(dispatched, doing, long, 0.0), time.monotonic()


def mark_computed(step: int) -> None:
    """Records that the devices of this process have computed the first `step` steps."""
    global _computed, _since
    with _lock:
        if step != _computed:
            _computed, _since = step, time.monotonic()


def status() -> str:
    """The status of this process now, in JSON."""
    with _lock:
        idle = time.monotonic() - _since
        return json.dumps([_current.dispatched, _current.doing, _current.long, idle])


def parse(statuses: Mapping[int, str]) -> dict[int, Status]:
    """The inverse of `status`, for each process."""
    return {index: Status(*json.loads(text)) for index, text in statuses.items()}


def diagnose(statuses: Mapping[int, Status], limit: float) -> str | None:
    """Which processes block the run when none makes progress; None while any does.

    Args:
      statuses: of all processes, by their index.
      limit: seconds that a step may take.
    """
    if any(s.idle <= limit * (LONG_FACTOR if s.long else 1) for s in statuses.values()):
        return None
    fewest = min(s.dispatched for s in statuses.values())
    blocking = {index: s for index, s in statuses.items() if s.dispatched == fewest}
    waiting = {index: s for index, s in statuses.items() if index not in blocking}
    message = "; ".join(
        f"{_subject(phase.processes, len(statuses))} been {phase.doing} for {phase.idle:.0f} s"
        for phase in _group_by_phase(blocking)
    )
    if waiting:
        phases = ", ".join(phase.doing for phase in _group_by_phase(waiting))
        message += f", the other processes wait: {phases}"
    return message


@dataclasses.dataclass(frozen=True)
class _Phase:
    """Processes in the same phase; `idle` is the longest of their idle times."""

    doing: str
    processes: list[int]
    idle: float


def _group_by_phase(statuses: Mapping[int, Status]) -> list[_Phase]:
    """The phases in the order of the processes."""
    found: dict[str, list[int]] = {}
    for index, own in sorted(statuses.items()):
        found.setdefault(own.doing, []).append(index)
    return [
        _Phase(doing, indices, max(statuses[index].idle for index in indices))
        for doing, indices in found.items()
    ]


def _subject(indices: list[int], total: int) -> str:
    """The subject of a message and its verb, such as "process 1 of 3 has"."""
    if len(indices) == total:
        return f"all {total} processes have"
    if len(indices) == 1:
        return f"process {indices[0]} of {total} has"
    shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    return f"processes {shown} of {total} have"
