"""Measures contenders alternately: each is a process of its own, and only one computes at a time.

A contender prepares and compiles, then writes {"ready": ...} and waits on its standard input. For a
line {"seconds": N} it trains for N seconds and replies {"images": n, "seconds": s}. The contenders
alternate A B C A B C ..., so that whatever slows the machine for a while slows all of them. Replies
are written to a copy of the standard output; all other output goes into the contender's log.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

#: seconds -> the images of all whole steps, the last of which ends after these seconds
TrainFor = Callable[[float], int]

WARM_UP_SECONDS = 1.0
LAST_SECONDS = 20.0  # for a process to end by itself
LONGEST_ERROR = 160  # characters
QUIET = 0.05  # the share of the cores that other processes may use


class Failed(Exception):
    """A contender's process has ended; the message is one line with the reason."""


class Contender:
    """A contender's process, seen by the process that measures."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: pathlib.Path,
        cwd: pathlib.Path,
        environment: Mapping[str, str],
    ):
        """Starts the process.

        Args:
          name: the name of the contender.
          command: the command of a process that calls `serve`.
          log: the file of its output.
          cwd: its working directory.
          environment: its environment variables.
        """
        self.name = name
        self._log = log
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=cwd,
                env=environment,
                text=True,
            )

    def warm_up(self) -> dict[str, Any]:
        """Waits until it is ready; returns its description.

        Raises:
          Failed: the process ended.
        """
        return self._reply()

    def train_for(self, seconds: float) -> dict[str, Any]:
        """Lets it train for some seconds, and waits; returns {"images", "seconds"}.

        Raises:
          Failed: the process ended.
        """
        try:
            self._process.stdin.write(json.dumps({"seconds": seconds}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; reading its reply raises `Failed`
        return self._reply()

    def peak_gb(self) -> float | None:
        """The most memory that the process has held so far, in 10^9 bytes; None if unknown."""
        try:
            status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return None if found is None else round(int(found[1]) * 1024 / 1e9, 2)

    def end(self) -> None:
        """Ends the process by closing its input; kills it if it takes too long."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _reply(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        raise Failed(f"ended with exit code {code}: {_last_error(self._log)}")


def _last_error(log: pathlib.Path) -> str:
    """The line of a log with the reason why a process ended: its last error, else its last line."""
    lines = [line for line in log.read_text(errors="replace").split("\n") if line.strip()]
    errors = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception|Failed|Diverged)\b", line)
    ]
    line = (errors or lines or ["nothing printed"])[-1].strip()
    return line if len(line) <= LONGEST_ERROR else f"{line[:LONGEST_ERROR]} ..."


def alternate(
    contenders: Iterable[Contender],
    *,
    rounds: int,
    seconds: float,
    note: Callable[[str], None],
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Measures every contender once a round.

    Args:
      contenders: the contenders, which are ready.
      rounds: the number of rounds.
      seconds: the length of each measurement.
      note: called with a line for each measurement.

    Returns:
      Images a second of each round by name, and the errors of those that failed, which have no
      rounds.
    """
    speeds: dict[str, list[float]] = {one.name: [] for one in contenders}
    running, failed = list(contenders), {}
    for number in range(1, rounds + 1):
        for one in list(running):
            try:
                done = one.train_for(seconds)
            except Failed as error:
                running.remove(one)
                failed[one.name] = str(error)
                del speeds[one.name]
                note(f"[{number}/{rounds}] {one.name}: {error}")
                continue
            speeds[one.name].append(done["images"] / done["seconds"])
            note(f"[{number}/{rounds}] {one.name}: {speeds[one.name][-1]:,.1f} images/s")
    return speeds, failed


def busy(seconds: float = 1.0) -> float:
    """The share of all cores in use while no contender computes: 0 to 1; 0 if unknown.

    Threads that wait for each other, such as PyTorch's on a CPU, lose far more than this share.
    """

    def counted() -> tuple[int, int]:
        line = pathlib.Path("/proc/stat").read_text().split("\n")[0]
        times = [int(value) for value in line.split()[1:9]]
        return sum(times), times[3] + times[4]

    try:
        total, idle = counted()
        time.sleep(seconds)
        total_after, idle_after = counted()
    except OSError:
        return 0.0
    return round(1 - (idle_after - idle) / max(total_after - total, 1), 3)


def not_quiet(part: float) -> str:
    """The warning about measurements that were taken while other processes computed."""
    return (
        f"other processes used {100 * part:.0f} % of the cores between the measurements; expected "
        "a machine that does nothing else"
    )


def serve(prepare: Callable[[], tuple[TrainFor, Mapping[str, Any]]]) -> None:
    """The contender's side: prepares, compiles, and trains for every line of its input.

    Args:
      prepare: returns the training function and a description of the contender ("device", ...).
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not a reply

    def reply(values: Mapping[str, Any]) -> None:
        replies.write(json.dumps(values) + "\n")
        replies.flush()

    train_for, about = prepare()
    began = time.perf_counter()
    for _ in range(2):  # the first compiles; graphs of kernels are recorded in the second
        train_for(WARM_UP_SECONDS)
    reply({"ready": True, "warm_up_s": round(time.perf_counter() - began, 1), **about})
    for line in sys.stdin:
        began = time.perf_counter()
        images = train_for(json.loads(line)["seconds"])
        reply({"images": images, "seconds": time.perf_counter() - began})
