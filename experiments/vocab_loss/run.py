"""Times divergences over a vocabulary, forward and gradients, with alternating contenders.

    python -m experiments.vocab_loss.run --tokens=1024,2048,4096,8192,16384          # one H100
    python -m experiments.vocab_loss.run --tokens=256 --width=128,256 --vocab=8192 --dtype=float32

Every contender is a process of its own and waits while another one computes. --publish writes into
this folder's results/; without it, into runs/vocab_loss.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from distill_jax.errors import UsageError, unknown
from distill_jax.storage import write_atomically
from experiments import study
from experiments.provenance import git_revision, versions
from experiments.vocab_loss.contenders import JAX, TORCH

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAM = study.Program("vocab_loss", huge_pages=False)
DIVERGENCES = ("forward_kl", "jensen_shannon")


class Contender:
    """A process that measures once for every line that it reads."""

    def __init__(self, task: dict[str, Any]):
        command = [sys.executable, "-m", "experiments.vocab_loss.contenders", json.dumps(task)]
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        self.about = self._line()

    def _line(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        _, error = self.process.communicate()
        return {"left_out": (error.strip().splitlines() or ["no output"])[-1][:200]}

    def seconds(self) -> float | None:
        if "left_out" in self.about:
            return None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._line()["seconds"]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each divergence, number of tokens and contender."""
    records = []
    for divergence in DIVERGENCES:
        for tokens in arguments.tokens:
            shared = {
                "divergence": divergence,
                "tokens": tokens,
                "student_width": arguments.width[0],
                "teacher_width": arguments.width[-1],
                "vocab": arguments.vocab,
                "dtype": arguments.dtype,
                "chunk": arguments.chunk,
                "repeats": arguments.repeats,
            }
            contenders = {n: Contender({"name": n, **shared}) for n in arguments.contenders}
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(arguments.rounds):
                for name, contender in contenders.items():
                    if (one := contender.seconds()) is not None:
                        seconds[name].append(one)
            for name, contender in contenders.items():
                contender.close()
                record = {**shared, "name": name, **contender.about}
                if seconds[name]:
                    record["milliseconds"] = round(1e3 * statistics.median(seconds[name]), 3)
                records.append(record)
                print(_summary(record), flush=True)
    return records


def _summary(record: dict[str, Any]) -> str:
    start = f"{record['divergence']}, {record['tokens']} tokens, {record['name']}"
    if "left_out" in record:
        return f"{start}: left out: {record['left_out']}"
    return (
        f"{start}: {record['milliseconds']:.1f} ms, {record['peak_bytes'] / 1e9:.2f} GB, "
        f"loss {record['loss']:.6f}, gradients {record['to_hidden']:.5g}, {record['to_head']:.5g}"
    )


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{flag}={text}: expected integers with commas between") from None
    if min(numbers) < 1:
        raise UsageError(f"--{flag}={text}: expected positive integers")
    return numbers


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = PROGRAM.parser(__doc__)
    parser.add_argument("--tokens", default="1024,2048,4096,8192,16384")
    parser.add_argument("--width", default="4096", help="of the student, and of the teacher")
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--chunk", type=int, default=0, help="tokens a chunk; 0: the library's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10, help="computations in a round")
    parser.add_argument("--contenders", default=",".join((*JAX, *TORCH)))
    parser.add_argument("--publish", action="store_true")
    arguments = parser.parse_args(argv)
    arguments.tokens = _numbers("tokens", arguments.tokens)
    arguments.width = _numbers("width", arguments.width)
    arguments.contenders = arguments.contenders.split(",")
    for name in arguments.contenders:
        if name not in (*JAX, *TORCH):
            raise unknown("--contenders", name, (*JAX, *TORCH), "contender")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit code, see `study.Program.run`."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        arguments = _arguments(argv)
        content = {
            "study": "vocab_loss",
            "records": measure(arguments),
            "versions": versions(),
            "date": datetime.date.today().isoformat(),
            "command": PROGRAM.command(argv),
            "git_revision": git_revision(),
        }
        folder = HERE / "results" if arguments.publish else pathlib.Path("runs/vocab_loss")
        folder.mkdir(parents=True, exist_ok=True)
        sizes = f"{arguments.width[0]}-{arguments.width[-1]}-{arguments.vocab}-{arguments.dtype}"
        path = folder / f"{sizes}.json"
        write_atomically(path, json.dumps(content, indent=1) + "\n")
        print(path)
        return 0

    return PROGRAM.run(work)


if __name__ == "__main__":
    sys.exit(main())
