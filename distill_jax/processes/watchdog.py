"""Which processes hold up the others: what each says that it is doing, and the judgement of it.

A heartbeat tells that a process lives, not that its main thread goes on. So each process also
`mark`s what that thread has begun and which step has been computed, and says with its heartbeat
for how long neither has changed. When that is too long in every process, none will ever go on:
they wait for each other. The one that has handed over fewer steps to its devices is the one that
the others wait for, since those that are held up in a computation have handed theirs over.

Preparing, compiling, evaluating and saving may take LONGER times the limit of a step. Left out on
purpose: what a computation itself does, of which the host sees only that it does not end.
"""

import dataclasses
import json
import threading
import time
from collections.abc import Mapping

#: Times the limit of a step for what is rightly long.
LONGER = 10


@dataclasses.dataclass(frozen=True)
class Report:
    """What a process says of its main thread.

    Attributes:
      begun: how many steps it has handed over to its devices.
      doing: what it does now, as in "process 1 has been ... for 60 s".
      long: whether that may take longer than a step.
      idle: seconds since the last change, or since a step was computed.
    """

    begun: int
    doing: str
    long: bool
    idle: float


_lock = threading.Lock()
_now = Report(0, "starting", True, 0.0)
_since = time.monotonic()
_computed = 0


def mark(begun: int, doing: str, *, long: bool = False) -> None:
    """Says what this process begins to do; see `Report`."""
    global _now, _since
    with _lock:
        _now, _since = Report(begun, doing, long, 0.0), time.monotonic()


def mark_computed(step: int) -> None:
    """Says that the devices have computed so many steps."""
    global _computed, _since
    with _lock:
        if step != _computed:
            _computed, _since = step, time.monotonic()


def status() -> str:
    """What this process says now, in JSON."""
    with _lock:
        return json.dumps([_now.begun, _now.doing, _now.long, time.monotonic() - _since])


def parse(said: Mapping[int, str]) -> dict[int, Report]:
    """The reports of processes, as `report` gave them."""
    return {number: Report(*json.loads(text)) for number, text in said.items()}


def diagnose(reports: Mapping[int, Report], limit: float) -> str | None:
    """Who holds up the run, when nobody goes on any more; None while anybody does.

    Args:
      reports: of all processes, by their number.
      limit: seconds of a step.
    """
    if any(r.idle <= limit * (LONGER if r.long else 1) for r in reports.values()):
        return None
    last = min(r.begun for r in reports.values())
    lag = {number: r for number, r in reports.items() if r.begun == last}
    said = "; ".join(
        f"{_named(numbers, len(reports))} been {doing} for {idle:.0f} s"
        for doing, numbers, idle in _alike(lag)
    )
    waiting = {number: r for number, r in reports.items() if number not in lag}
    if waiting:
        said += f", the others wait: {', '.join(doing for doing, _, _ in _alike(waiting))}"
    return said


def _alike(reports: Mapping[int, Report]) -> list[tuple[str, list[int], float]]:
    """What is done, by which processes, and the longest time, in the order of the processes."""
    found: dict[str, list[int]] = {}
    for number, own in sorted(reports.items()):
        found.setdefault(own.doing, []).append(number)
    return [
        (doing, numbers, max(reports[number].idle for number in numbers))
        for doing, numbers in found.items()
    ]


def _named(numbers: list[int], total: int) -> str:
    if len(numbers) == total:
        return f"all {total} processes have"
    if len(numbers) == 1:
        return f"process {numbers[0]} of {total} has"
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"processes {shown} of {total} have"
