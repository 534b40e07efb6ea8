"""What fits, what bounds a step and what it costs: the planned language pairs on 8 to 256 chips.

    python -m experiments.scale.run --workdir=runs/scale
    python -m experiments.scale.run --workdir=runs/scale --only='qwen3*v5p*'
    python -m experiments.scale.run --workdir=runs/scale --from-results
    python -m experiments.scale.run --workdir=runs/scale --collect
    python -m experiments.scale.run --report-only

Nothing runs on a chip and none is needed: every case is a plan of `distill-jax plan`, made in a
process of its own and kept in WORKDIR/plans. A plan that is there is not made again: the same
command goes on after any interruption. A case that fails is named at the end (exit code 2), and the
others go on. --from-results begins with the plans of results/, so that only the missing ones are
made. --collect makes no plan and reports on those that are there. With --only the report
goes to WORKDIR/report, else into this folder (results/ and the tables of README.md).
"""

import argparse
import dataclasses
import datetime
import fnmatch
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.runs import workdir
from experiments.scale import plan, report
from experiments.throughput.records import git_revision, versions

HERE = pathlib.Path(__file__).resolve().parent
#: What is kept of a failed process's words.
SAID = 300


def in_process(case: plan.Case, out: pathlib.Path) -> str | None:
    """Has a case planned by a process of its own; None, or what it said where it failed."""
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
    return f"exit code {done.returncode}: {lines[-1]}"[:SAID]


def take(summary: dict[str, Any], root: pathlib.Path) -> None:
    """Puts the plans of a summary where `make` looks for them; those that are there stay."""
    folder = root / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    for found in summary["plans"]:
        out = folder / f"{found['name']}.json"
        if not out.exists():
            workdir.write_json(out, {key: value for key, value in found.items() if key != "name"})


Maker = Callable[[plan.Case, pathlib.Path], str | None]


def make(cases: Sequence[plan.Case], root: pathlib.Path, maker: Maker) -> None:
    """Makes the plans that are not there yet; what failed leaves its words beside them."""
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
        said = error or _verdict(workdir.read_json(out))
        print(f"[{index}/{len(cases)}] {case.name}: {said}", flush=True)


def _files(folder: pathlib.Path, case: plan.Case) -> tuple[pathlib.Path, pathlib.Path]:
    """Of a case's plan, and of the words that its failing left."""
    return folder / f"{case.name}.json", folder / f"{case.name}.failed.json"


def _verdict(found: dict[str, Any]) -> str:
    gib = found["bytes_a_device"]["total"] / 2**30
    if not found["fits"]:
        return f"does not fit, {gib:.1f} GiB a device"
    times = found["seconds_a_step"]
    return f"{gib:.1f} GiB a device, {times['step']:.3g} s a step, {times['bound']}"


def collect(cases: Sequence[plan.Case], root: pathlib.Path) -> dict[str, Any]:
    """The plans that are there, in the order of the cases; what failed; what was not made."""
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


def study(arguments: argparse.Namespace, command: str, home: pathlib.Path) -> dict[str, Any]:
    """Makes plans and reports; returns the summary.

    Raises:
      UsageError: an argument that is refused; before anything is written.
    """
    if arguments.workdir is None:
        raise UsageError("--workdir: missing; expected a folder for the plans")
    cases = [case for case in plan.cases() if fnmatch.fnmatch(case.name, arguments.only)]
    if not cases:
        raise UsageError(
            f"--only={arguments.only}: no such case; expected a pattern of names such as "
            f"{plan.cases()[0].name}"
        )
    root = arguments.workdir
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
    """Runs the study; returns the exit code: 0, or 2 for a mistake of use and for failed cases."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.scale.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of the plans")
    parser.add_argument("--only", default="*", help="a pattern of the cases' names")
    parser.add_argument("--from-results", action="store_true", help="go on after those of results/")
    parser.add_argument("--collect", action="store_true", help="report on the plans that are there")
    parser.add_argument("--report-only", action="store_true", help="README from results/ again")
    arguments = parser.parse_args(argv)
    try:
        if arguments.report_only:
            summary = workdir.read_json(home / "results" / report.SUMMARY)
            report.write(summary, home)
        else:
            # A reader elsewhere has no use for where things lie on this machine.
            shown = [re.sub(r"(^|=)/.*/", r"\1", argument) for argument in argv]
            command = " ".join(["python -m experiments.scale.run", *shown])
            summary = study(arguments, command, home)
    except UsageError as error:
        print(f"scale: error: {error}", file=sys.stderr)
        return 2
    for case in summary["failed"]:
        print(f"scale: error: {case['name']}: {case['error']}", file=sys.stderr)
    return 2 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
