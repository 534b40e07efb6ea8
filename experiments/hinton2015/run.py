"""Hinton, Vinyals & Dean 2015, section 3, on MNIST: trains every setting and writes the results.

    python -m experiments.hinton2015.run --workdir=runs/hinton2015
    python -m experiments.hinton2015.run --workdir=runs/hinton2015 --parts=hard,soft --seeds=1
    python -m experiments.hinton2015.run --workdir=runs/smoke --epochs-scale=0.05 --seeds=1
    python -m experiments.hinton2015.run --report-only

MNIST comes from TFDS; `--config.data.name=npz --config.data.path=FILE` takes it from a file. A run
that has finished is not repeated, one that was stopped resumes: the same command goes on after any
interruption. Only the whole study at full length writes into this folder (results/ and the
tables of README.md); anything less is labelled as a trial and written into WORKDIR/report.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import jax
from ml_collections import ConfigDict

from distill_jax.config.schema import SCHEMA
from distill_jax.errors import UsageError
from distill_jax.runs import experiment, workdir
from distill_jax.training import loop
from experiments.hinton2015 import measure, plan, report

HERE = pathlib.Path(__file__).resolve().parent


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.hinton2015.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of all runs")
    parser.add_argument("--parts", default="", help=f"some of {','.join(plan.PARTS)}")
    parser.add_argument("--seeds", type=int, help="at most so many seeds a setting")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="factor of all epochs")
    parser.add_argument("--report-only", action="store_true", help="README from results/ again")
    arguments, rest = parser.parse_known_args(argv)
    overrides = {}
    for argument in rest:
        found = re.fullmatch(r"--config\.([^=]+)=(.*)", argument)
        if found is None:
            raise UsageError(f"{argument}: unknown argument; expected --config.key=value or --help")
        overrides[found[1]] = found[2]
    if arguments.workdir is None and not arguments.report_only:
        raise UsageError("--workdir: missing; expected a folder for the runs")
    if not arguments.epochs_scale > 0:
        raise UsageError(f"--epochs-scale={arguments.epochs_scale}: expected a number > 0")
    if arguments.seeds is not None and arguments.seeds < 1:
        raise UsageError(f"--seeds={arguments.seeds}: expected an integer >= 1")
    return arguments, overrides


def label_of(runs: Sequence[plan.Run], epochs_scale: float, overrides: Mapping[str, str]) -> str:
    """What a reader of a trial is warned of; empty for the whole study at full length."""
    changed = [
        f"--config.{key}={value}"
        for key, value in overrides.items()
        if key != "data.name" and (key not in SCHEMA or SCHEMA[key].lasting)
    ]
    reasons = []
    if epochs_scale != 1:
        reasons.append(f"epochs times {epochs_scale:g}")
    if len(runs) < len(plan.runs()):
        reasons.append(f"{len(runs)} of {len(plan.runs())} runs")
    return f"A trial, not a result: {', '.join(reasons + changed)}." if reasons + changed else ""


def train(
    runs: Sequence[plan.Run], configs_by_name: Mapping[str, ConfigDict], root: pathlib.Path
) -> None:
    """Trains what is not finished yet, one after the other, each in its folder of `root`."""
    for index, run in enumerate(runs, start=1):
        print(f"[{index}/{len(runs)}] {run.name}: {run.setting.title}", flush=True)
        values = experiment.run(configs_by_name[run.name], root / run.name).values
        errors = {split: values["final"][split]["errors"] for split in ("validation", "test")}
        print(
            f"    errors: {errors['validation']} validation, {errors['test']} test; "
            f"{values['wall_time_s']:.0f} s",
            flush=True,
        )
        jax.clear_caches()  # no two runs share a program


def study(
    arguments: argparse.Namespace,
    overrides: Mapping[str, str],
    command: str,
    home: pathlib.Path,
) -> pathlib.Path:
    """Trains, measures and reports; see the module's docstring for the arguments.

    Args:
      arguments: of the command line.
      overrides: keys of every run's config.
      command: as the report shall state it.
      home: the study's folder, which gets the results of the whole study.

    Returns:
      The README that was written.
    """
    root = arguments.workdir
    runs = plan.runs([part for part in arguments.parts.split(",") if part], arguments.seeds)
    found = {
        run.name: plan.config_of(run, root / plan.TEACHER, overrides, arguments.epochs_scale)
        for run in runs
    }
    train(runs, found, root)
    label = label_of(runs, arguments.epochs_scale, overrides)
    summary, digits = measure.summary(runs, found, root, command=command, label=label)
    target = root / "report" if label else home
    results = target / "results"
    results.mkdir(parents=True, exist_ok=True)
    workdir.write_json(results / report.SUMMARY, summary)
    report.draw(summary, results, digits)
    return report.write_readme(summary, target / "README.md", results)


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the study; returns the exit code: 0 done or stopped by SIGTERM, 2 a mistake of use."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, overrides = _arguments(argv)
        if arguments.report_only:
            summary = workdir.read_json(home / "results" / report.SUMMARY)
            report.draw(summary, home / "results", None)
            print(report.write_readme(summary, home / "README.md", home / "results"))
        else:
            # A reader elsewhere has no use for where things lie on this machine.
            shown = [re.sub(r"(^|=)/.*/", r"\1", argument) for argument in argv]
            command = " ".join(["python -m experiments.hinton2015.run", *shown])
            print(study(arguments, overrides, command, home))
    except UsageError as error:
        print(f"hinton2015: error: {error}", file=sys.stderr)
        return 2
    except loop.Preempted:
        print("hinton2015: stopped by SIGTERM; the same command resumes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
