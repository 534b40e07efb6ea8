"""Plans of the language pairs on 8 to 256 chips: what fits, what bounds a step, what it costs.

    python -m experiments.scale.run --workdir=runs/scale
    python -m experiments.scale.run --workdir=runs/scale --only='qwen3*v5p*'
    python -m experiments.scale.run --workdir=runs/scale --from-results
    python -m experiments.scale.run --workdir=runs/scale --collect
    python -m experiments.scale.run --report-only

No chip is needed: every case is a plan of `distill-jax plan`, made in a process of its own and kept
in WORKDIR/plans. Existing plans are not made again, so the same command continues after any
interruption. A case that fails does not stop the rest and is named at the end (exit code 2).
--from-results starts from the plans of results/, so that only missing ones are made. --collect
makes no plan and reports on the existing ones. With --only the report is written into
WORKDIR/report, else into this folder (results/ and the tables of README.md).
"""

import argparse
import dataclasses
import datetime
import fnmatch
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.runs import workdir
from experiments import study
from experiments.provenance import git_revision, versions
from experiments.scale import plan, report

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = study.Program("scale")
#: The most characters of a failed process's error that are kept.
LONGEST_ERROR = 300


def in_process(case: plan.Case, out: pathlib.Path) -> str | None:
    """Plans a case in a process of its own; returns None, or the error if it failed."""
    given = out.with_suffix(".case")
    workdir.write_json(given, dataclasses.asdict(case))
    command = [sys.executable, "-m", "experiments.scale.case", str(given), str(out)]
    path = os.pathsep.join(filter(None, [str(plan.ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    given.unlink()
    if done.returncode == 0 and out.exists():
        return None
    lines = done.stderr.strip().splitlines() or ["no output"]
    return f"exit code {done.returncode}: {lines[-1]}"[:LONGEST_ERROR]


def take(summary: dict[str, Any], root: pathlib.Path) -> None:
    """Writes the plans of a summary into the workdir; existing plans are kept."""
    folder = root / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    for found in summary["plans"]:
        out = folder / f"{found['name']}.json"
        if not out.exists():
            workdir.write_json(out, {key: value for key, value in found.items() if key != "name"})


Maker = Callable[[plan.Case, pathlib.Path], str | None]


def make(cases: Sequence[plan.Case], root: pathlib.Path, maker: Maker) -> None:
    """Makes the missing plans; a failed case leaves a file with its error."""
    folder = root / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    for index, case in enumerate(cases, start=1):
        out, failed = _files(folder, case)
        if out.exists():
            continue
        error = maker(case, out)
        if error is None:
            failed.unlink(missing_ok=True)
        else:
            workdir.write_json(failed, {"error": error})
        outcome = error or _verdict(workdir.read_json(out))
        print(f"[{index}/{len(cases)}] {case.name}: {outcome}", flush=True)


def _files(folder: pathlib.Path, case: plan.Case) -> tuple[pathlib.Path, pathlib.Path]:
    """The file of a case's plan, and the file of its error."""
    return folder / f"{case.name}.json", folder / f"{case.name}.failed.json"


def _verdict(found: dict[str, Any]) -> str:
    gib = found["bytes_a_device"]["total"] / 2**30
    if not found["fits"]:
        return f"does not fit, {gib:.1f} GiB a device"
    times = found["seconds_a_step"]
    return f"{gib:.1f} GiB a device, {times['step']:.3g} s a step, {times['bound']}"


def collect(cases: Sequence[plan.Case], root: pathlib.Path) -> dict[str, Any]:
    """The existing plans in the order of the cases, the failed cases and the missing ones."""
    plans, failed, missing = [], [], []
    for case in cases:
        out, words = _files(root / "plans", case)
        if out.exists():
            plans.append({"name": case.name} | workdir.read_json(out))
        elif words.exists():
            failed.append({"name": case.name} | workdir.read_json(words))
        else:
            missing.append(case.name)
    return {"plans": plans, "failed": failed, "not_made": missing}


def _libtpu() -> dict[str, str]:
    try:
        return {"libtpu": importlib.metadata.version("libtpu")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def run_study(arguments: argparse.Namespace, command: str, home: pathlib.Path) -> dict[str, Any]:
    """Makes plans and reports; returns the summary.

    Raises:
      UsageError: an invalid argument; before anything is written.
    """
    root = study.require_workdir(arguments, "plans")
    cases = [case for case in plan.cases() if fnmatch.fnmatch(case.name, arguments.only)]
    if not cases:
        raise UsageError(
            f"--only={arguments.only}: no such case; expected a pattern of names such as "
            f"{plan.cases()[0].name}"
        )
    if arguments.from_results:
        take(workdir.read_json(home / "results" / report.SUMMARY), root)
    if not arguments.collect:
        make(cases, root, in_process)
    summary = {
        "study": "scale",
        **collect(cases, root),
        "command": command,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} {platform.machine().replace('_', '-')} cores",
        "versions": versions() | _libtpu(),
        "git_revision": git_revision(),
    }
    report.write(summary, home if arguments.only == "*" else root / "report")
    return summary


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the study; returns the exit code, see `study.Program.run`; also 2 for failed cases."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = PROGRAM.parser(__doc__)
    study.add_workdir(parser)
    parser.add_argument("--only", default="*", help="a pattern of the cases' names")
    parser.add_argument("--from-results", action="store_true", help="start from results/'s plans")
    parser.add_argument("--collect", action="store_true", help="report on the existing plans")

    def work() -> int:
        arguments = parser.parse_args(argv)
        if arguments.report_only:
            summary = workdir.read_json(home / "results" / report.SUMMARY)
            report.write(summary, home)
        else:
            summary = run_study(arguments, PROGRAM.command(argv), home)
        for case in summary["failed"]:
            PROGRAM.print_error(f"{case['name']}: {case['error']}")
        return 2 if summary["failed"] else 0

    return PROGRAM.run(work)


if __name__ == "__main__":
    sys.exit(main())
