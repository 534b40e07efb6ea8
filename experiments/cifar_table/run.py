"""Trains rows of the CIFAR table, and writes one JSON a run and the README.

    python -m experiments.cifar_table.run --workdir=runs/cifar_table --list
    python -m experiments.cifar_table.run --workdir=runs/cifar_table \\
        --rows='cifar100:resnet32x4,resnet8x4,*' --seeds=3
    python -m experiments.cifar_table.run --workdir=runs/short --epochs=3 \\
        --rows='cifar100:resnet56,resnet20,kd' --config.data.tfds_dir=DIR
    python -m experiments.cifar_table.run --report-only

Teachers that the rows need are trained first. Finished runs are not repeated, interrupted ones
resume. With `--epochs` the schedule is scaled to that length; such runs have a table of their own,
in WORKDIR/report, and are never mixed with full ones.
"""

import argparse
import fnmatch
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax

from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.training import loop
from experiments import study
from experiments.cifar_table import plan, records, report

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = study.Program("cifar_table")


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = PROGRAM.parser(__doc__)
    study.add_workdir(parser)
    parser.add_argument(
        "--rows", action="append", default=[], help="DATASET:TEACHER,STUDENT,METHOD"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row; teachers have one")
    parser.add_argument("--epochs", type=float, help="the length of a short schedule, in epochs")
    parser.add_argument("--list", action="store_true", help="print every row and exit")
    arguments, rest = parser.parse_known_args(argv)
    overrides = study.config_overrides(rest)
    study.require_at_least("seeds", arguments.seeds, 1)
    study.require_positive("epochs", arguments.epochs)
    needs_folder = not (arguments.report_only or arguments.list)
    if needs_folder and (arguments.workdir is None or not arguments.rows):
        raise UsageError("expected --workdir=DIR and --rows=PATTERN; see --list for all rows")
    return arguments, overrides


def runs_of(patterns: Sequence[str], seeds: int) -> list[tuple[plan.Row, int]]:
    """(row, seed) of every run that the patterns need, teachers first.

    A row that a pattern names has all seeds; a teacher that no pattern names has one.
    """
    rows = plan.chosen(patterns)
    teachers = {plan.Row(row.dataset, row.teacher) for row in rows if row.teacher}

    def named(row: plan.Row) -> bool:
        return any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)

    return [
        (row, seed)
        for row in rows
        for seed in range(seeds if named(row) or row not in teachers else 1)
    ]


def run_study(
    arguments: argparse.Namespace, overrides: Mapping[str, str], command: str, home: pathlib.Path
) -> tuple[pathlib.Path, dict[str, loop.Diverged | UsageError]]:
    """Trains the missing runs and reports; see the module's docstring for the arguments.

    Returns:
      The README that was written, and the runs that are not in the table, name -> error: they
      diverged, or their method does not fit the data or the pair.
    """
    runs = runs_of(arguments.rows, arguments.seeds)
    root = arguments.workdir
    short = records.is_short(arguments.epochs, overrides)
    # All configs are made before the first run is trained, so that a mistake costs no hours.
    configs = [plan.config_of(row, seed, root, arguments.epochs, overrides) for row, seed in runs]
    target = study.results_folder(home, root, trial=short)
    study.share_programs(root)
    failed: dict[str, loop.Diverged | UsageError] = {}
    for index, ((row, seed), config) in enumerate(zip(runs, configs, strict=True), start=1):
        print(f"[{index}/{len(runs)}] {row.name}, seed {seed}", flush=True)
        folder = root / plan.run_name(row, seed)
        try:
            result = experiment.run(config, folder)
        except (loop.Diverged, UsageError) as error:
            if not row.teacher:
                raise  # its students need it
            print(f"    {error}", flush=True)
            failed[folder.name] = error
            continue
        record = records.record(row, seed, config, result, command=command, short=short)
        records.write(record, target / "results" / f"{folder.name}.json")
        print(f"    {records.line(record)}", flush=True)
        jax.clear_caches()  # the programs that the next run shares are on disk
    return report.write(target), failed


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the table.

    Returns:
      The exit code, see `study.Program.run`; also 1 if some runs diverged, and 2 if some rows
      are not possible.
    """
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        arguments, overrides = _arguments(argv)
        if arguments.list:
            for row in plan.every_row():
                figure = row.published
                print(f"{row.name:50s} {f'{figure[0]:.2f}  {figure[1]}' if figure else '-'}")
            return 0
        if arguments.report_only:
            print(report.write(home))
            return 0
        page, failed = run_study(arguments, overrides, PROGRAM.command(argv), home)
        print(page)
        for name, error in failed.items():
            print(f"cifar_table: {name} is in no table: {error}", file=sys.stderr)
        if not failed:
            return 0
        return 2 if any(isinstance(error, UsageError) for error in failed.values()) else 1

    return PROGRAM.run(work)


if __name__ == "__main__":
    sys.exit(main())
