"""The loop: dispatches steps up to the next stop, and waits for the device at stops alone."""

import contextlib
import dataclasses
import itertools
import math
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from distill_jax.processes import coordination, watchdog
from distill_jax.training.state import TrainState


class Preempted(Exception):
    """The run received SIGTERM or Ctrl-C and has saved its state; the text says which."""


class Diverged(RuntimeError):
    """A loss or a gradient was not finite."""


@dataclasses.dataclass(frozen=True)
class Timetable:
    """What happens after which steps.

    Attributes:
      total_steps: the run ends after this many.
      log_every: a line of the log after every multiple, and at the end.
      steps_per_call: steps in one compiled call where nothing is due in between.
      begin_at: steps at which a stage of the method begins.
      evaluate_at: steps after which the validation split is evaluated.
      save_at: steps after which a checkpoint is saved.
    """

    total_steps: int
    log_every: int
    steps_per_call: int
    begin_at: frozenset[int]
    evaluate_at: frozenset[int]
    save_at: frozenset[int]

    def logs_at(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.total_steps

    def next_stop(self, step: int) -> int:
        """The first step after `step` at which something is due."""
        ahead = step + 1
        due = self.evaluate_at | self.save_at | self.begin_at
        while not (self.logs_at(ahead) or ahead in due):
            ahead += 1
        return ahead


def epoch_steps(every_epochs: float, steps_per_epoch: float, total_steps: int) -> frozenset[int]:
    """The steps that complete every `every_epochs` epochs, and the last step; 0: the last alone."""
    steps = {total_steps}
    if every_epochs > 0:
        count = math.floor(total_steps / (every_epochs * steps_per_epoch) + 1e-9)
        steps |= {math.ceil(k * every_epochs * steps_per_epoch - 1e-9) for k in range(1, count + 1)}
    return frozenset(step for step in steps if 0 < step <= total_steps)


class Hooks(Protocol):
    """What the loop does at stops; `runs.session` implements it."""

    def log(self, step: int, sums: dict[str, float]) -> None:
        """Logs the sums of the training metrics since the last call, over `sums["steps"]` steps."""

    def evaluate(self, step: int, state: TrainState) -> bool:
        """Evaluates; True when this is the best state so far."""

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving a checkpoint."""

    def diverged(self, step: int) -> Diverged:
        """The error for a loss that was not finite in step `step`, counted from 0."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """A context in which SIGTERM or Ctrl-C requests a stop; gives a function that says if one did.

    A second Ctrl-C raises KeyboardInterrupt at once, without saving.

    With several processes, any one of them may receive SIGTERM or SIGINT: the function returns True
    in the same call in every process, so every process must call it equally often.
    """
    received: list[str] = []
    agreed = _agreed_stop() if coordination.is_distributed() else lambda: bool(received)
    if threading.current_thread() is not threading.main_thread():
        yield agreed
        return

    def on_sigterm(*_: Any) -> None:
        received.append("SIGTERM")

    def on_interrupt(*_: Any) -> None:
        if "Ctrl-C" in received:
            raise KeyboardInterrupt
        received.append("Ctrl-C")
        if coordination.is_first():
            print("stopping after this step; Ctrl-C again: at once", file=sys.stderr, flush=True)
        if coordination.is_distributed():
            os.kill(os.getpid(), signal.SIGTERM)

    handlers: dict[int, Callable[..., None]] = {signal.SIGINT: on_interrupt}
    if not coordination.is_distributed():  # there, JAX's own handler informs the other processes
        handlers[signal.SIGTERM] = on_sigterm
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield agreed
    except Preempted as stop:
        stop.args = (received[0] if received else "SIGTERM",)
        raise
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier if earlier is not None else signal.SIG_DFL)


_sync_points = itertools.count(1)  # of all runs of the process, so that no number repeats


def _agreed_stop() -> Callable[[], bool]:
    """Whether all processes have agreed to stop: at the next sync point that none has passed.

    This costs no communication until a process receives a signal.
    """
    stopped = False

    def is_requested() -> bool:
        nonlocal stopped
        number = next(_sync_points)
        stopped = stopped or multihost_utils.reached_preemption_sync_point(number)
        return stopped

    return is_requested


@contextlib.contextmanager
def _report_computed_steps() -> Iterator[Callable[[int, TrainState], None]]:
    """A context that gives a function (step, state), which reports computed steps to the watchdog.

    A thread waits for each step and reports it: the main thread only dispatches steps, and later
    waits for many of them at once.
    """
    if not coordination.watches_steps():
        yield lambda step, state: None
        return
    dispatched: queue.SimpleQueue[tuple[int, jax.Array] | None] = queue.SimpleQueue()

    def report_when_computed(step: int, state: TrainState) -> None:
        # A copy on one device: the next step takes over the buffers of the state.
        dispatched.put((step, jnp.copy(state.bad_step.addressable_data(0))))

    def wait() -> None:
        while (item := dispatched.get()) is not None:
            with contextlib.suppress(Exception):  # the main thread meets the same error
                jax.block_until_ready(item[1])
                watchdog.mark_computed(item[0])

    threading.Thread(target=wait, name="steps", daemon=True).start()
    try:
        yield report_when_computed
    finally:
        dispatched.put(None)


Advance = Callable[[TrainState, int, list[Any]], TrainState]


@dataclasses.dataclass
class _Dispatcher:
    """Dispatches the steps between two stops.

    Attributes:
      advance, batches, timetable, stop_requested: as in `run_steps`.
      report_when_computed: called with the number of steps done and the state after them.
      compiled: the programs that were called before: (first step of the stage, steps in a call).
    """

    advance: Advance
    batches: Iterator[Any]
    timetable: Timetable
    stop_requested: Callable[[], bool]
    report_when_computed: Callable[[int, TrainState], None]
    compiled: set[tuple[int, int]] = dataclasses.field(default_factory=set)

    def run_until(self, stop: int, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Dispatches steps until `stop` of them are done, or until a stop is requested."""
        while step < stop and not self.stop_requested():
            whole = stop - step >= self.timetable.steps_per_call
            count = self.timetable.steps_per_call if whole else 1
            watchdog.mark(step, f"reading the data of step {step + 1}")
            batches = [next(self.batches) for _ in range(count)]
            program = (max((s for s in self.timetable.begin_at if s <= step), default=0), count)
            is_new = program not in self.compiled
            self.compiled.add(program)
            activity = "compiling" if is_new else "computing"
            watchdog.mark(step + count, f"{activity} step {step + count}", long=is_new)
            state = self.advance(state, step, batches)
            step += count
            self.report_when_computed(step, state)
        return state, step


def run_steps(
    state: TrainState,
    step: int,
    *,
    advance: Advance,
    batches: Iterator[Any],
    timetable: Timetable,
    hooks: Hooks,
    stop_requested: Callable[[], bool],
) -> TrainState:
    """Trains from `step` to the end of the timetable.

    Args:
      state: the state after `step` steps; it is donated.
      step: how many steps are done.
      advance: (state, step, batches): dispatches one step a batch in a single call, the first of
        them numbered `step` from 0; donates its state.
      batches: host batches from the position of `step` on.
      timetable: when to log, evaluate and save.
      hooks: how to.
      stop_requested: called before every call of `advance` and at every stop; when it returns True,
        the state is saved.

    Returns:
      The state after the last step.

    Raises:
      Preempted: after saving, when a stop was requested.
      Diverged: at the first stop after a loss or gradient that was not finite.
    """
    saved = step
    with _report_computed_steps() as report_when_computed:
        dispatcher = _Dispatcher(advance, batches, timetable, stop_requested, report_when_computed)
        while step < timetable.total_steps:
            stop = timetable.next_stop(step)
            state, step = dispatcher.run_until(stop, state, step)
            sums = _fetch_sums(state, step, hooks)
            best = step == stop and _log_and_evaluate(state, step, sums, timetable, hooks)
            interrupted = stop_requested() and step < timetable.total_steps
            if saved < step and (interrupted or best or step in timetable.save_at):
                watchdog.mark(step, f"saving step {step}", long=True)
                hooks.save(step, state)
                saved = step
            if interrupted:
                raise Preempted
    return state


def _fetch_sums(state: TrainState, step: int, hooks: Hooks) -> dict[str, Any]:
    """The sums of the metrics, for which this waits for the device; raises `Diverged`."""
    watchdog.mark(step, f"fetching the results of step {step}")
    sums, bad_step = jax.device_get((state.sums, state.bad_step))
    if bad_step >= 0:
        raise hooks.diverged(int(bad_step))
    return sums


def _log_and_evaluate(
    state: TrainState, step: int, sums: dict[str, Any], timetable: Timetable, hooks: Hooks
) -> bool:
    """Logs and evaluates if due at `step`; True when this is the best state so far."""
    if timetable.logs_at(step):
        watchdog.mark(step, f"logging step {step}")
        hooks.log(step, {name: float(value) for name, value in sums.items()})
    if step not in timetable.evaluate_at:
        return False
    watchdog.mark(step, f"evaluating step {step}", long=True)
    return hooks.evaluate(step, state)
