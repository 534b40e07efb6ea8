"""The processes of one run as one of them sees them: heartbeat, broadcast, barrier, abort.

All messages go through the key-value store of JAX's coordination service, which process 0 hosts:
a few bytes from host to host that never touch the devices.

- Heartbeat: a thread of every process writes a counter and the status of its main thread, once a
  second. Process 0 reads all of them. It aborts the run when a counter stands still for longer than
  the timeout, or when the watchdog finds that no main thread makes progress.
- Abort: the first failure is published under one key, so that of several processes that fail
  together one is reported. Every heartbeat thread reads that key and ends its process.
- Loss of process 0: the heartbeat of the other processes fails or blocks, or the relay reports a
  closed connection. Each of them then exits by itself, because they have no coordinator to agree
  through.
"""

import dataclasses
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from distill_jax.processes import watchdog

_RESUME = "all processes stopped, the same command resumes from the last checkpoint"
_BROADCAST = "distill_jax/broadcast/"  # values that process 0 publishes
_HEARTBEAT = "distill_jax/heartbeat/"  # of each process: a counter and its status
_FAILURE = "distill_jax/failure"  # the first failure, in JSON
_ACKNOWLEDGED = "distill_jax/acknowledged/"  # the processes that have read the failure
_ACKNOWLEDGE_TIMEOUT = 10.0  # seconds for all processes to read the failure
_LINGER = 1.0  # seconds that process 0, the coordinator, outlives the acknowledgements
_PROBE = 5.0  # seconds in which a live process sends several heartbeats
_FOREVER = 7 * 24 * 3600 * 1000  # milliseconds; a heartbeat thread ends whoever waits long before


class CoordinationService(Protocol):
    """What this module uses of the client of JAX's coordination service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_try_get(self, key: str) -> str: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...

    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class Failure:
    """What ends a run.

    Attributes:
      code: the exit code of every process.
      process: index of the process that reports the failure.
      line: the line for the user.
      dead: index of a process that does not respond; nobody waits for its acknowledgement.
    """

    code: int
    process: int
    line: str
    dead: int | None = None


class HeartbeatMonitor:
    """Detects heartbeats that stand still, by the clock of the process that reads them."""

    def __init__(self) -> None:
        self._last_change: dict[int, tuple[str, float]] = {}

    def find_silent(self, heartbeats: Mapping[int, str], timeout: float) -> int | None:
        """A process whose heartbeat has not changed for more than `timeout` seconds, or None."""
        now = time.monotonic()
        for index, beat in heartbeats.items():
            last, since = self._last_change.get(index, (None, now))
            if beat != last:
                self._last_change[index] = (beat, now)
            elif now - since > timeout:
                return index
        return None


class ProcessGroup:
    """The view that one process has of all processes of its run.

    Attributes:
      index: the index of this process, from 0.
      count: the number of processes.
      step_timeout: seconds without progress of any process after which all abort; 0 for never.
    """

    def __init__(self, service: CoordinationService, index: int, count: int):
        self.index = index
        self.count = count
        self.step_timeout = 0.0
        self._service = service
        self._broadcasts = itertools.count()  # all processes broadcast in the same order
        self._barriers = itertools.count()  # likewise
        self._left = threading.Event()
        self._coordinator_answered = threading.Event()  # since `_watch_coordinator` cleared it
        self._exiting = threading.Lock()
        self._failure: Failure | None = None  # what this process is about to exit with
        self._heartbeat: threading.Thread | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which hosts the coordinator."""
        return self.index == 0

    @property
    def is_running(self) -> bool:
        """Whether the heartbeat has been started and the process has not left."""
        return self._heartbeat is not None and not self._left.is_set()

    def start_heartbeat(self, timeout: float, step_timeout: float) -> None:
        """Starts the background threads that detect failures.

        Args:
          timeout: seconds after which a process that sends no heartbeat counts as dead.
          step_timeout: seconds, see `ProcessGroup`.
        """
        self.step_timeout = step_timeout
        self._heartbeat = threading.Thread(
            target=self._beat, args=(timeout,), name="heartbeat", daemon=True
        )
        self._heartbeat.start()
        if not self.is_first:
            threading.Thread(
                target=self._watch_coordinator, args=(timeout,), name="coordinator", daemon=True
            ).start()

    def broadcast(self, make: Callable[[], Any], key: str = "") -> Any:
        """What `make` returns in process 0, in every process; see `coordination`."""
        key = _BROADCAST + (key or str(next(self._broadcasts)))
        if self.is_first:
            value = json.dumps(make())
            self._service.key_value_set(key, value)
        else:
            value = self._service.blocking_key_value_get(key, _FOREVER)
        return json.loads(value)

    def barrier(self) -> None:
        """Waits until every process calls this; see `coordination`."""
        name = f"distill_jax/barrier/{next(self._barriers)}"
        self._service.wait_at_barrier(name, _FOREVER)

    def leave(self) -> None:
        """Waits at a barrier for all processes, then stops the heartbeat."""
        self._service.wait_at_barrier("distill_jax/leave", _FOREVER)
        self._left.set()
        if self._heartbeat is not None:
            self._heartbeat.join()

    def abort(self, code: int, line: str) -> NoReturn:
        """Publishes a failure and exits; every other process exits with the same code."""
        self._failure = failure = Failure(code, self.index, line)
        try:
            self._publish(failure)
        except Exception:  # another failure came first, or the coordinator is lost
            failure = self._published_failure() or failure
        self._exit_together(failure)

    def find_lost_process(self) -> int | None:
        """A process that sends no heartbeat within `_PROBE` seconds, or None."""
        monitor, silent = HeartbeatMonitor(), None
        deadline = time.monotonic() + _PROBE
        while time.monotonic() < deadline:
            silent = monitor.find_silent(self._heartbeats(), 0.8 * _PROBE)
            time.sleep(0.1)
        return silent

    def exit_without_coordinator(self, reason: str) -> NoReturn:
        """Exits because process 0 is lost; every process prints the line of its own."""
        # Does not wait for good: the thread that exits already may wait for the coordinator.
        self._exiting.acquire(timeout=2 * _LINGER)
        failure = self._failure or Failure(1, self.index, failure_line(reason))
        if failure.process == self.index:
            _print_error(failure.line)
        _exit(failure.code)

    def _publish(self, failure: Failure) -> None:
        """Raises where a failure has been published before."""
        self._service.key_value_set(_FAILURE, json.dumps(dataclasses.asdict(failure)))

    def _published_failure(self) -> Failure | None:
        try:
            return Failure(**json.loads(self._service.key_value_try_get(_FAILURE)))
        except Exception:  # none so far, or the coordinator is lost
            return None

    def _exit_together(self, failure: Failure) -> NoReturn:
        """Exits with the failure after the processes that need this one have read it.

        Process 0 prints the line and exits last, because it hosts the coordinator. The process that
        failed waits until process 0 has read the failure, and prints the line itself where process
        0 does not.
        """
        with self._exiting:  # never released: a second thread must not end the process earlier
            self._failure = failure
            own = failure.process == self.index
            if self.is_first:
                _print_error(failure.line)
            try:
                acknowledged = self._acknowledge(failure)
                if self.is_first:
                    time.sleep(_LINGER)
            except Exception:  # the coordinator is lost
                acknowledged = False
            if own and not self.is_first and not acknowledged:
                _print_error(failure.line)
            _exit(failure.code)

    def _acknowledge(self, failure: Failure) -> bool:
        """Writes that this process has read the failure, and waits for those it must wait for."""
        awaited: set[int] = set()
        if self.is_first:
            awaited = set(range(1, self.count))
        elif failure.process == self.index:
            awaited = {0}
        deadline = time.monotonic() + _ACKNOWLEDGE_TIMEOUT
        self._service.key_value_set(f"{_ACKNOWLEDGED}{self.index}", "", allow_overwrite=True)
        while awaited and time.monotonic() < deadline:
            done = {_index_of(key) for key, _ in self._service.key_value_dir_get(_ACKNOWLEDGED)}
            awaited = {index for index in awaited - done if index != failure.dead}
            time.sleep(0.05)
        return not awaited

    def _beat(self, timeout: float) -> None:
        """In the background: sends heartbeats, and exits when any process has failed."""
        pause = min(1.0, timeout / 10)
        monitor = HeartbeatMonitor()
        for counter in itertools.count():
            try:
                beat = f"{counter} {watchdog.status()}"
                self._service.key_value_set(f"{_HEARTBEAT}{self.index}", beat, allow_overwrite=True)
                if (failure := self._published_failure()) is not None:
                    self._exit_together(failure)
                self._coordinator_answered.set()
                if self.is_first and (failure := self._detect(monitor, timeout)) is not None:
                    self._publish(failure)
                    self._exit_together(failure)
            except Exception as error:
                if self._left.is_set():
                    return
                why = " ".join(str(error).split())[:200]
                self.exit_without_coordinator(
                    f"process 0 of {self.count} cannot be reached ({why})"
                )
            if self._left.wait(pause):
                return

    def _watch_coordinator(self, timeout: float) -> None:
        """In the background: exits when a heartbeat gets no answer from process 0.

        Counts its own checks and not the clock: a machine that was suspended has not waited.
        """
        missed = 0
        while not self._left.wait(timeout / 10):
            missed = 0 if self._coordinator_answered.is_set() else missed + 1
            self._coordinator_answered.clear()
            if missed > 10:
                self.exit_without_coordinator(
                    f"process 0 of {self.count} did not respond for {timeout:g} s"
                )

    def _heartbeats(self) -> dict[int, str]:
        """The last heartbeat of each process that has sent one."""
        return {_index_of(key): beat for key, beat in self._service.key_value_dir_get(_HEARTBEAT)}

    def _detect(self, monitor: HeartbeatMonitor, timeout: float) -> Failure | None:
        """A failure that the heartbeats show: a dead process, or no progress in any of them."""
        beats = self._heartbeats()
        if (dead := monitor.find_silent(beats, timeout)) is not None:
            line = failure_line(f"process {dead} of {self.count} did not respond for {timeout:g} s")
            return Failure(1, self.index, line, dead)
        if self.step_timeout and len(beats) == self.count:
            statuses = {index: beat.partition(" ")[2] for index, beat in beats.items()}
            blocked = watchdog.diagnose(watchdog.parse(statuses), self.step_timeout)
            if blocked is not None:
                return Failure(1, self.index, failure_line(blocked))
        return None


def failure_line(reason: str) -> str:
    """The line for the user when the group aborts."""
    return f"distill-jax: failed: {reason}; {_RESUME}"


def _index_of(key: str) -> int:
    """The process that a key such as distill_jax/heartbeat/3 belongs to."""
    return int(key.rpartition("/")[2])


def _print_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    """Ends the process without waiting for its other threads, which may be blocked."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
