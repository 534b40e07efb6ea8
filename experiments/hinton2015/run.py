"""Hinton, Vinyals & Dean 2015, section 3, on MNIST: trains every setting and writes the results.

    python -m experiments.hinton2015.run --workdir=runs/hinton2015
    python -m experiments.hinton2015.run --workdir=runs/hinton2015 --parts=hard,soft --seeds=1
    python -m experiments.hinton2015.run --workdir=runs/smoke --epochs-scale=0.05 --seeds=1
    python -m experiments.hinton2015.run --report-only

MNIST is read from TFDS, or with `--config.data.name=npz --config.data.path=FILE` from a file.
Finished runs are not repeated and interrupted ones resume, so the same command continues after any
interruption. Only the whole study at full length writes into this folder (results/ and the tables
of README.md); anything less is labelled as a trial and written into WORKDIR/report.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax
from ml_collections import ConfigDict

from distill_jax import tasks
from distill_jax.config.schema import SCHEMA
from distill_jax.runs import experiment, workdir
from experiments import study
from experiments.hinton2015 import measure, plan, report

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = study.Program("hinton2015")


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = PROGRAM.parser(__doc__)
    study.add_workdir(parser)
    parser.add_argument("--parts", default="", help=f"some of {','.join(plan.PARTS)}")
    parser.add_argument("--seeds", type=int, help="the most seeds of each setting")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="factor of all epochs")
    arguments, rest = parser.parse_known_args(argv)
    overrides = study.config_overrides(rest)
    if not arguments.report_only:
        study.require_workdir(arguments)
    study.require_positive("epochs-scale", arguments.epochs_scale)
    study.require_at_least("seeds", arguments.seeds, 1)
    return arguments, overrides


def label_of(runs: Sequence[plan.Run], epochs_scale: float, overrides: Mapping[str, str]) -> str:
    """The warning to readers of a trial; empty for the whole study at full length."""
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
    return study.trial_label(reasons + changed)


def train(
    runs: Sequence[plan.Run], configs_by_name: Mapping[str, ConfigDict], root: pathlib.Path
) -> None:
    """Trains the unfinished runs one after the other, each in its folder of `root`.

    Students read the answers of their teacher, which are computed once for all of them.
    """
    answered: set[str] = set()
    for index, run in enumerate(runs, start=1):
        print(f"[{index}/{len(runs)}] {run.name}: {run.setting.title}", flush=True)
        config = configs_by_name[run.name]
        if config.teacher.store not in ("", *answered):
            tasks.precompute(config, config.teacher.store, dtype="float32", taps=())
            answered.add(config.teacher.store)
        values = experiment.run(config, root / run.name).values
        print(
            f"    errors: {values['final']['test']['errors']}; {values['wall_time_s']:.0f} s",
            flush=True,
        )
        jax.clear_caches()  # compiled programs of many shapes fill the memory


def run_study(
    arguments: argparse.Namespace,
    overrides: Mapping[str, str],
    command: str,
    home: pathlib.Path,
) -> pathlib.Path:
    """Trains, measures and reports; see the module's docstring for the arguments.

    Args:
      arguments: the command line's.
      overrides: keys of every run's config.
      command: the command line for the record.
      home: the study's folder, which gets the results of the whole study.

    Returns:
      The README that was written.
    """
    root = arguments.workdir
    runs = plan.runs([part for part in arguments.parts.split(",") if part], arguments.seeds)
    found = {run.name: plan.config_of(run, root, overrides, arguments.epochs_scale) for run in runs}
    train(runs, found, root)
    label = label_of(runs, arguments.epochs_scale, overrides)
    summary, digits = measure.summary(runs, found, root, command=command, label=label)
    target = study.results_folder(home, root, trial=bool(label))
    workdir.write_json(target / "results" / report.SUMMARY, summary)
    report.draw(summary, target / "results", digits)
    return report.write_readme(summary, target / "README.md", target / "results")


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the study; returns the exit code, see `study.Program.run`."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        arguments, overrides = _arguments(argv)
        if arguments.report_only:
            summary = workdir.read_json(home / "results" / report.SUMMARY)
            report.draw(summary, home / "results", None)
            print(report.write_readme(summary, home / "README.md", home / "results"))
        else:
            print(run_study(arguments, overrides, PROGRAM.command(argv), home))
        return 0

    return PROGRAM.run(work)


if __name__ == "__main__":
    sys.exit(main())
