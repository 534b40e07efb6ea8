"""The loop: dispatch steps, stop where something is due, never wait for the device in between."""

import contextlib
import dataclasses
import itertools
import math
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from distill_jax.processes import coordination, watchdog
from distill_jax.training.state import TrainState


class Preempted(Exception):
    """The run was asked to stop (SIGTERM) and has saved its state."""


class Diverged(RuntimeError):
    """A loss or a gradient was not finite."""


@dataclasses.dataclass(frozen=True)
class Timetable:
    """Which steps are followed by what.

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
    """What happens around the steps; `experiment.py` implements it."""

    def log(self, step: int, sums: dict[str, float]) -> None:
        """The sums of the training metrics since the last call; `sums["steps"]` counts them."""

    def evaluate(self, step: int, state: TrainState) -> bool:
        """Evaluates; True when this is the best state so far."""

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving a checkpoint."""

    def diverged(self, step: int) -> Diverged:
        """The error for a loss that was not finite in the step numbered `step` from 0."""


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """While it lasts, SIGTERM asks for a stop at the next step; gives the question "was it?".

    Of many processes any one may get the signal, or SIGINT: all stop at the same call. They all ask
    the question equally often then.
    """
    asked = threading.Event()
    was_asked = _agreed_stop() if coordination.is_distributed() else asked.is_set
    if threading.current_thread() is not threading.main_thread():
        yield was_asked
        return
    if coordination.is_distributed():
        # JAX has its own handler of SIGTERM, which tells the others.
        number, handler = signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    else:
        number, handler = signal.SIGTERM, lambda *_: asked.set()
    before = signal.signal(number, handler)
    try:
        yield was_asked
    finally:
        signal.signal(number, before)


_questions = itertools.count(1)  # of all runs of the process, so that no number comes twice


def _agreed_stop() -> Callable[[], bool]:
    """Whether all processes have agreed to stop: at one number, the next that none has passed.

    Costs no communication until there is a signal.
    """
    stopped = False

    def asked() -> bool:
        nonlocal stopped
        number = next(_questions)
        stopped = stopped or multihost_utils.reached_preemption_sync_point(number)
        return stopped

    return asked


@contextlib.contextmanager
def _report_computed_steps() -> Iterator[Callable[[int, TrainState], None]]:
    """While it lasts, what it gives has `stalls` told when a step has been computed.

    The main thread hands steps over without waiting, and then waits for many of them at once.
    """
    if not coordination.watches_steps():
        yield lambda step, state: None
        return
    handed: queue.SimpleQueue[tuple[int, jax.Array] | None] = queue.SimpleQueue()

    def follow(step: int, state: TrainState) -> None:
        # A copy, of one device: the next step takes the state itself.
        handed.put((step, jnp.copy(state.bad_step.addressable_data(0))))

    def wait() -> None:
        while (item := handed.get()) is not None:
            with contextlib.suppress(Exception):  # the main thread meets the same error
                jax.block_until_ready(item[1])
                watchdog.mark_computed(item[0])

    threading.Thread(target=wait, name="steps", daemon=True).start()
    try:
        yield follow
    finally:
        handed.put(None)


def run_steps(
    state: TrainState,
    step: int,
    *,
    advance: Callable[[TrainState, int, list[Any]], TrainState],
    batches: Iterator[Any],
    timetable: Timetable,
    hooks: Hooks,
    stop_requested: Callable[[], bool],
) -> TrainState:
    """Trains from `step` to the end of the timetable.

    Args:
      state: the state after `step` steps; it is donated.
      step: how many steps it has done.
      advance: (state, step, batches): dispatches one step a batch in a single call, the first of
        them numbered `step` from 0; donates its state.
      batches: host batches from the position of `step` on.
      timetable: when to log, evaluate and save.
      hooks: how to.
      stop_requested: asked before every call; when true, the state is saved.

    Returns:
      The state after the last step.

    Raises:
      Preempted: after saving, when a stop was asked for.
      Diverged: at the first stop after a loss or gradient that was not finite.
    """
    saved, compiled = step, set()
    with _report_computed_steps() as follow:
        while step < timetable.total_steps:
            stop = timetable.next_stop(step)
            while step < stop and not stop_requested():
                whole = stop - step >= timetable.steps_per_call
                count = timetable.steps_per_call if whole else 1
                watchdog.mark(step, f"reading the data of step {step + 1}")
                taken = [next(batches) for _ in range(count)]
                program = (max((s for s in timetable.begin_at if s <= step), default=0), count)
                fresh = program not in compiled
                compiled.add(program)
                doing = "compiling" if fresh else "computing"
                watchdog.mark(step + count, f"{doing} step {step + count}", long=fresh)
                state = advance(state, step, taken)
                step += count
                follow(step, state)
            watchdog.mark(step, f"fetching the results of step {step}")
            sums, bad_step = jax.device_get((state.sums, state.bad_step))
            if bad_step >= 0:
                raise hooks.diverged(int(bad_step))
            if step == stop and timetable.logs_at(step):
                watchdog.mark(step, f"logging step {step}")
                hooks.log(step, {name: float(value) for name, value in sums.items()})
            best = False
            if step == stop and step in timetable.evaluate_at:
                watchdog.mark(step, f"evaluating step {step}", long=True)
                best = hooks.evaluate(step, state)
            interrupted = stop_requested() and step < timetable.total_steps
            if saved < step and (interrupted or best or step in timetable.save_at):
                watchdog.mark(step, f"saving step {step}", long=True)
                hooks.save(step, state)
                saved = step
            if interrupted:
                raise Preempted
    return state
