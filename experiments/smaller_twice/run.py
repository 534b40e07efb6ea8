"""What distilling and quantizing each buy, on SmolLM2-135M-Instruct and one CPU core.

    python -m experiments.smaller_twice.run --workdir=runs/smaller --gguf=SmolLM2.gguf
    python -m experiments.smaller_twice.run --workdir=runs/smoke --gguf=SmolLM2.gguf \\
        --tokens=8192 --test-tokens=2048 --prompts=4 --sizes=12
    python -m experiments.smaller_twice.run --report-only

The same command continues after any interruption: every part that is finished is a file, and every
training resumes from its checkpoint. Each finished model appears in results/ at once.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.storage import write_atomically
from experiments import provenance, study
from experiments.smaller_twice import measure, plan, report

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = study.Program("smaller_twice", huge_pages=False)
_CLI = [sys.executable, "-m", "distill_jax.cli"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the study."""
    study.add_workdir(parser)
    parser.add_argument("--gguf", type=pathlib.Path, help="SmolLM2-135M-Instruct as a GGUF file")
    default = pathlib.Path(os.environ.get("DISTILL_JAX_DATA", "../shared/data"))
    parser.add_argument("--data", type=pathlib.Path, default=default, help="folder of the texts")
    parser.add_argument("--tokens", type=int, default=plan.TOKENS, help="that a student reads")
    parser.add_argument("--seeds", type=int, default=1, help="students of each kind")
    parser.add_argument(
        "--sizes", default=",".join(map(str, plan.SIZES)), help="layers of students"
    )
    parser.add_argument("--test-tokens", type=int, default=32768, help="of wikitext-2's test text")
    parser.add_argument("--prompts", type=int, default=100, help="of held-out dolly")
    parser.add_argument("--rounds", type=int, default=3, help="in which all files are timed")


class Study:
    """The study of a command line.

    Args:
      arguments: of the command line.

    Raises:
      UsageError: an invalid argument, or no data or model; before anything is written.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.root = study.require_workdir(arguments).absolute()
        for flag in ("tokens", "test_tokens", "prompts", "rounds", "seeds"):
            study.require_at_least(flag.replace("_", "-"), getattr(arguments, flag), 1)
        self.arguments = arguments
        self.data = plan.find_data(arguments.data.absolute())
        try:
            self.sizes = tuple(int(size) for size in arguments.sizes.split(","))
        except ValueError:
            raise UsageError(f"--sizes={arguments.sizes}: expected numbers of layers") from None
        if not all(0 < size <= plan.TEACHER_LAYERS for size in self.sizes):
            raise UsageError(f"--sizes={arguments.sizes}: expected 1 to {plan.TEACHER_LAYERS} each")
        if arguments.gguf is None or not arguments.gguf.is_file():
            raise UsageError(f"--gguf={arguments.gguf}: expected the file of the teacher")

    @property
    def records(self) -> pathlib.Path:
        """Where each finished file's figures lie."""
        return self.root / "records"

    def prepare(self) -> None:
        """The teacher as a folder, the text, and the teacher's stored answers."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / "teacher" / "config.json").exists():
            shutil.rmtree(self.root / "teacher", ignore_errors=True)
            self.call(["import", str(self.arguments.gguf), f"--workdir={self.root / 'teacher'}"])
        plan.write_texts(self.data, self.root / "teacher", self.root / "text")

    def call(self, command: Sequence[str]) -> None:
        """Runs `distill-jax`; RuntimeError where it fails."""
        print(f"distill-jax {' '.join(command)[:200]}", flush=True)
        with (self.root / "log").open("a") as log:
            code = subprocess.run([*_CLI, *command], stdout=log, stderr=log).returncode
        if code:
            raise RuntimeError(
                f"distill-jax {command[0]} ended with {code}; see {self.root / 'log'}"
            )

    def train(self, student: plan.Student) -> None:
        """Trains a student, and goes on with 4 bits; what is finished is left as it is."""
        tokens = self.arguments.tokens
        if student.method == "stored":
            self.call(plan.store_command(self.root, tokens))
        for suffix, command in (("", plan.train_command), ("-aware", plan.aware_command)):
            if not (self.root / f"{student.name}{suffix}" / "result.json").exists():
                self.call(command(self.root, student, tokens))

    def file_of(self, row: plan.Row) -> pathlib.Path:
        """The GGUF file of a row, exported if it is missing."""
        file = self.root / "files" / f"{row.name}.gguf"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            source = self.root / (f"{row.model}-aware" if row.aware else row.model)
            flags = [f"--workdir={source}", "--format=gguf", f"--out={file}", f"--type={row.type}"]
            self.call(["export", *flags])
        return file

    def quality(self, row: plan.Row) -> None:
        """Measures perplexity, KL, agreement and ROUGE-L of a file, once."""
        record = self.records / f"{row.name}.json"
        if record.exists():
            return
        file = self.file_of(row)
        with self.imported(file) as folder:
            test = self.data / "wikitext2_test.txt"
            tokenizer = text.load_tokenizer(self.root / "teacher")
            rows = measure.windows(test, tokenizer, self.arguments.test_tokens)
            found: dict[str, Any] = measure.likelihood(folder, self.root / "teacher", rows)
        lines = (self.data / "dolly_valid.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines[: self.arguments.prompts]]
        found["rouge_l"] = measure.rouge_l(file, records)
        found |= {"name": row.name, "model": row.model, "type": row.type, "aware": row.aware}
        found |= {"bytes": file.stat().st_size, "tokens": self.arguments.tokens}
        self.records.mkdir(exist_ok=True)
        write_atomically(record, json.dumps(found, indent=2) + "\n")
        print(json.dumps(found), flush=True)

    @contextlib.contextmanager
    def imported(self, file: pathlib.Path) -> Iterator[pathlib.Path]:
        """A folder with the numbers of a file, while it is measured."""
        folder = self.root / "measured"
        shutil.rmtree(folder, ignore_errors=True)
        self.call(["import", str(file), f"--workdir={folder}"])
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def speeds(self, rows: Sequence[plan.Row]) -> dict[str, dict]:
        """Times the files of all rows in one alternating run."""
        ids = text.load_tokenizer(self.root / "teacher").encode(
            (self.data / "wikitext2_test.txt").read_text()[:4000]
        )
        return measure.speeds([self.file_of(row) for row in rows], ids, self.arguments.rounds)


def run_study(arguments: argparse.Namespace, command: str, home: pathlib.Path) -> None:
    """Trains, measures and reports; each finished model is reported at once."""
    opened = Study(arguments)
    opened.prepare()
    students = list(plan.students(arguments.seeds, opened.sizes))
    done: list[plan.Row] = []
    for model in (None, *students):
        if model is not None:
            opened.train(model)
        rows = list(plan.rows("teacher" if model is None else model.name))
        for row in rows:
            opened.quality(row)
        done += rows
        summary = {
            "command": command,
            "revision": provenance.git_revision(),
            "versions": provenance.versions(),
            "tokens": arguments.tokens,
            "test_tokens": arguments.test_tokens,
            "prompts": arguments.prompts,
            "rounds": arguments.rounds,
            "rows": [json.loads((opened.records / f"{r.name}.json").read_text()) for r in done],
            "speeds": opened.speeds(done),
            "planned": 3 + 4 * len(students),
        }
        report.save(summary, home)


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the study; returns the exit code, see `study.Program.run`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = PROGRAM.parser(__doc__)
    add_arguments(parser)

    def work() -> int:
        arguments = parser.parse_args(argv)
        if arguments.report_only:
            report.write(home)
        else:
            run_study(arguments, PROGRAM.command(argv), home)
        return 0

    return PROGRAM.run(work)


if __name__ == "__main__":
    sys.exit(main())
