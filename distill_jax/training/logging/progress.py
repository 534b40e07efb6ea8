"""The progress of a run: a bar on a terminal, plain lines in a log file.

A log file (SLURM, nohup, CI) gets whole lines without control characters, at most one every few
seconds. Left out on purpose: colour themes, nested bars, and a thread that redraws; the bar moves
when the loop reports a step.
"""

import collections
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, TextIO

import rich.console
import rich.progress

Style = Literal["auto", "plain", "off"]

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_FRAMES = 0.1
SHOWN = (
    "loss",
    "accuracy",
    "agreement_with_own_samples",
    "validation_accuracy",
    "validation_rouge_l",
    "validation_exact_match",
    "examples_per_second",
    "tokens_per_second",
    "memory_bytes",
)
WINDOW = 50  # updates, each at least a second apart, over which the rate behind the ETA is averaged


class Progress:
    """Shows step, loss, accuracy, images a second and the estimated time to the end of a run.

    The estimate follows the rate of the last minute or so and counts from the first update: it
    excludes compilation and recovers from a pause. Where `examples_per_step` is known, the examples
    and tokens a second that are shown follow the same rate, so that the remaining steps by the rate
    are the time left. A resumed run may start at any step.

    Args:
      total_steps: the step at which the run ends, at least 1.
      title: a few words that name the run.
      stream: where to write.
      style: "auto": a bar when the stream is a terminal, else plain lines; "plain": lines; "off":
        nothing at all, notes included (for every process but the first).
      unit: what `examples_per_second` counts.
      counted: what a step of `total_steps` is called, such as "step", "run" or "image".
      examples_per_step: how many of `unit` a step takes; 0 shows the rates as `update` gets them.
      clock: seconds from any origin; tests inject their own.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        title: str,
        stream: TextIO | None = None,
        style: Style = "auto",
        unit: str = "images",
        counted: str = "step",
        examples_per_step: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if style not in ("auto", "plain", "off"):
            raise ValueError(f"style={style!r}: expected 'auto', 'plain' or 'off'")
        self._total = total_steps
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._style = style
        self._unit = unit
        self._counted = counted
        self._examples_per_step = examples_per_step
        self._clock = clock
        self._updates: collections.deque[tuple[float, int]] = collections.deque(maxlen=WINDOW)
        self._shown_at = -math.inf
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._bar: rich.progress.Progress | None = None
        if style == "auto" and _is_terminal(self._stream):
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task(
                title, total=total_steps, at=f"0/{total_steps}", figures="starting"
            )
            self._bar.start()

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Reports a step and its figures.

        Args:
          step: steps taken so far, of `total_steps`.
          values: name -> number. Those of `SHOWN` are shown, all but the loss, the rates and the
            memory are fractions and shown in percent; the rest is for the logs.
        """
        if self._style == "off":
            return
        now = self._clock()
        if len(self._updates) > 1 and now - self._updates[-2][0] < 1.0:
            self._updates.pop()
        self._updates.append((now, step))
        self._pending = (step, dict(values))
        pause = SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_FRAMES
        if now - self._shown_at >= pause or step >= self._total:
            self._show(now, step, values)

    def update_rate(self, step: int) -> None:
        """Reports a step whose number counts examples, with how many a second there were."""
        step = min(step, self._total)
        rate = self.rate()
        self.update(step, {} if rate is None else {"examples_per_second": rate})

    def note(self, line: str) -> None:
        """Writes one line of text (a validation result, a warning) without disturbing the bar."""
        if self._style == "off":
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the last update, if it was not shown yet, and leaves the terminal in order."""
        if self._pending is not None:
            self._show(self._clock(), *self._pending)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._style = "plain"  # a note that comes later is a plain line

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def rate(self) -> float | None:
        """Steps a second over the last updates; None before there are two."""
        if not self._updates:
            return None
        (first_time, first_step), (last_time, last_step) = self._updates[0], self._updates[-1]
        if last_step <= first_step or last_time <= first_time:
            return None
        return (last_step - first_step) / (last_time - first_time)

    def seconds_left(self) -> float | None:
        """Estimated seconds until the last step; None before there are two updates."""
        rate = self.rate()
        return None if rate is None else max(0.0, (self._total - self._updates[-1][1]) / rate)

    def _show(self, now: float, step: int, values: Mapping[str, Any]) -> None:
        self._pending = None
        self._shown_at = now
        values = self._at_own_rate(values)
        figures = [_figure(name, values[name], self._unit) for name in SHOWN if name in values]
        left = self.seconds_left()
        if left is not None and step < self._total:
            figures.append(f"ETA {duration(left)}")
        if self._bar is not None:
            at = f"{math.ceil(step)}/{self._total}"
            self._bar.update(self._task, completed=step, at=at, figures="  ".join(figures))
            self._bar.refresh()
        else:
            share = f"{100 * step / self._total:.0f}%" if self._total else "100%"
            # Within a run of several, the one that goes on: 2.3 of 12 runs is the third.
            at = f"{self._counted} {math.ceil(step)}/{self._total} ({share})"
            line = "  ".join([f"{self._title}: {at}", *figures])
            print(line, file=self._stream, flush=True)

    def _at_own_rate(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values with examples and tokens a second over the window of the estimate."""
        rate, measured = self.rate(), values.get("examples_per_second")
        if rate is None or not measured or not self._examples_per_step:
            return values
        factor = rate * self._examples_per_step / measured
        rates = ("examples_per_second", "tokens_per_second")
        return {**values, **{name: factor * values[name] for name in rates if name in values}}


def duration(seconds: float) -> str:
    """Seconds as m:ss, h:mm:ss or days and h:mm, such as "3:20" or "2 d 4:05".

    Args:
      seconds: zero or more.
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _figure(name: str, value: float, unit: str) -> str:
    value = float(value)
    if name == "examples_per_second":
        return f"{value:,.0f} {unit}/s" if value >= 10 else f"{value:.2f} {unit}/s"
    if name == "tokens_per_second":
        return f"{value:,.0f} tokens/s"
    if name == "memory_bytes":
        return f"{value / 1e9:.2f} GB"
    if name == "loss":
        return f"loss {value:.4g}"
    return f"{name.replace('_', ' ').replace('rouge l', 'ROUGE-L')} {value:.2%}"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # no such method, or a stream that is closed
        return False


def _bar(stream: TextIO) -> rich.progress.Progress:
    # What other code prints goes above the bar, but only where it would reach the terminal anyway:
    # otherwise rich would move the output of `... > results.txt` to the terminal.
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", style="bold", markup=False),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.TextColumn("{task.fields[at]}", markup=False),
        rich.progress.TextColumn("{task.fields[figures]}", markup=False),
        console=rich.console.Console(file=stream, force_terminal=True, force_jupyter=False),
        auto_refresh=False,
        redirect_stdout=_is_terminal(sys.stdout),
        redirect_stderr=_is_terminal(sys.stderr),
    )
