"""Contenders take turns: each is a process of its own, and no two compute at the same time.

A contender prepares and compiles, then says {"ready": ...} and waits on its standard input. Told
{"seconds": N}, it trains for N seconds and answers {"images": n, "seconds": s}. Turns go A B C A B
C ..., so that whatever slows the machine for a while slows all of them. Answers travel on a copy of
the standard output; whatever else is printed goes into the contender's log.
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

Turn = Callable[[float], int]  # seconds -> images that whole steps trained on in them, or longer

WARM_UP_SECONDS = 1.0
LAST_SECONDS = 20.0  # to end when no turn will come
LONGEST = 160  # of what is said about a failure
QUIET = 0.05  # the part of the cores that other processes may use


class Failed(Exception):
    """A contender's process has ended; says how, in one line."""


class Contender:
    """A contender's process, as the one that gives the turns sees it."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: pathlib.Path,
        cwd: pathlib.Path,
        environment: Mapping[str, str],
    ):
        """Starts it.

        Args:
          name: of the contender.
          command: of a process that calls `serve`.
          log: the file for what it prints.
          cwd: the folder that it starts in.
          environment: its variables.
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
        """Waits until it is ready; what it says of itself.

        Raises:
          Failed: it ended instead.
        """
        return self._answer()

    def turn(self, seconds: float) -> dict[str, Any]:
        """Has it train for so long, and waits: {"images", "seconds"}.

        Raises:
          Failed: it ended instead.
        """
        try:
            self._process.stdin.write(json.dumps({"seconds": seconds}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and its last words are read below
        return self._answer()

    def end(self) -> None:
        """Ends it: it sees that no turn will come; killed where that takes it too long."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        raise Failed(f"ended with exit code {code}: {_last_words(self._log)}")


def _last_words(log: pathlib.Path) -> str:
    """The line of a log that says why a process ended: that of its last error, else its last."""
    lines = [line for line in log.read_text(errors="replace").split("\n") if line.strip()]
    errors = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception|Failed|Diverged)\b", line)
    ]
    said = (errors or lines or ["nothing printed"])[-1].strip()
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


def alternate(
    contenders: Iterable[Contender],
    *,
    rounds: int,
    seconds: float,
    note: Callable[[str], None],
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Gives every contender its turn, round after round.

    Args:
      contenders: that are ready.
      rounds: turns of each.
      seconds: of a turn.
      note: called with a line for each turn.

    Returns:
      Images a second of each round by name, and how those ended that failed, who have no rounds.
    """
    speeds: dict[str, list[float]] = {one.name: [] for one in contenders}
    waiting, failed = list(contenders), {}
    for number in range(1, rounds + 1):
        for one in list(waiting):
            try:
                done = one.turn(seconds)
            except Failed as error:
                waiting.remove(one)
                failed[one.name] = str(error)
                del speeds[one.name]
                note(f"[{number}/{rounds}] {one.name}: {error}")
                continue
            speeds[one.name].append(done["images"] / done["seconds"])
            note(f"[{number}/{rounds}] {one.name}: {speeds[one.name][-1]:,.1f} images/s")
    return speeds, failed


def busy(seconds: float = 1.0) -> float:
    """The part of all cores that is in use now, when no contender computes: 0 to 1; 0 if unknown.

    Threads that wait for each other, as PyTorch's do on a CPU, lose far more than that part.
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
    """What is said of figures that were taken beside other work."""
    return (
        f"other processes used {100 * part:.0f} % of the cores between the turns; expected a "
        "machine that does nothing else"
    )


def serve(prepare: Callable[[], tuple[Turn, Mapping[str, Any]]]) -> None:
    """The contender's side: prepares, compiles, and trains whenever it is told to.

    Args:
      prepare: gives the function of a turn, and what is said of the contender ("device" and so on).
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(values: Mapping[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    turn, about = prepare()
    began = time.perf_counter()
    for _ in range(2):  # the first compiles; graphs of kernels are recorded in the second
        turn(WARM_UP_SECONDS)
    answer({"ready": True, "warm_up_s": round(time.perf_counter() - began, 1), **about})
    for line in sys.stdin:
        began = time.perf_counter()
        images = turn(json.loads(line)["seconds"])
        answer({"images": images, "seconds": time.perf_counter() - began})
