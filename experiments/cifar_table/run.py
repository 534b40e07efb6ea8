"""Trains rows of the CIFAR table, resumes what was cut, and writes one JSON a run and the README.

    python -m experiments.cifar_table.run --workdir=runs/cifar_table --list
    python -m experiments.cifar_table.run --workdir=runs/cifar_table \\
        --rows='cifar100:resnet32x4,resnet8x4,*' --seeds=3
    python -m experiments.cifar_table.run --workdir=runs/short --epochs=3 \\
        --rows='cifar100:resnet56,resnet20,kd' --config.data.tfds_dir=DIR
    python -m experiments.cifar_table.run --report-only

Teachers that the rows need are trained first. A run that has finished is not repeated, one that was
stopped resumes. With `--epochs` the schedule is scaled to that length: such runs have a table of
their own, in WORKDIR/report, and never stand beside full ones.
"""

import argparse
import fnmatch
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import jax

from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.training import loop
from experiments.cifar_table import plan, records, report

HERE = pathlib.Path(__file__).resolve().parent


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.cifar_table.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of all runs")
    parser.add_argument(
        "--rows", action="append", default=[], help="DATASET:TEACHER,STUDENT,METHOD"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs a row; teachers have one")
    parser.add_argument("--epochs", type=float, help="a short schedule of so many epochs")
    parser.add_argument("--list", action="store_true", help="print every row and exit")
    parser.add_argument("--report-only", action="store_true", help="README from results/ again")
    arguments, rest = parser.parse_known_args(argv)
    overrides = {}
    for argument in rest:
        found = re.fullmatch(r"--config\.([^=]+)=(.*)", argument)
        if found is None:
            raise UsageError(f"{argument}: unknown argument; expected --config.key=value or --help")
        overrides[found[1]] = found[2]
    if arguments.seeds < 1:
        raise UsageError(f"--seeds={arguments.seeds}: expected an integer >= 1")
    if arguments.epochs is not None and not arguments.epochs > 0:
        raise UsageError(f"--epochs={arguments.epochs}: expected a number > 0")
    needs_folder = not (arguments.report_only or arguments.list)
    if needs_folder and (arguments.workdir is None or not arguments.rows):
        raise UsageError("expected --workdir=DIR and --rows=PATTERN; see --list for all rows")
    return arguments, overrides


def study(
    arguments: argparse.Namespace, overrides: Mapping[str, str], command: str, home: pathlib.Path
) -> tuple[pathlib.Path, dict[str, loop.Diverged | UsageError]]:
    """Trains what is missing and reports; see the module's docstring for the arguments.

    Returns:
      The README that was written, and why runs are in no table, by their names: they diverged, or
      what they ask does not fit the data or the pair.
    """
    rows = plan.chosen(arguments.rows)
    taught_by = {plan.Row(row.dataset, row.teacher) for row in rows if row.teacher}
    wanted = {
        row
        for row in rows
        if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in arguments.rows)
    }
    runs = [
        (row, seed)
        for row in rows
        for seed in range(arguments.seeds if row in wanted or row not in taught_by else 1)
    ]
    root = arguments.workdir
    short = records.is_short(arguments.epochs, overrides)
    target = root / "report" if short else home
    found = [
        plan.config_of(row, seed, root, arguments.epochs, overrides) for row, seed in runs
    ]  # all of them before the first is trained: a mistake costs no hours
    if not jax.config.jax_compilation_cache_dir:  # the seeds of a row share their programs
        jax.config.update("jax_compilation_cache_dir", str(root.absolute() / "compiled"))
    failed = {}
    for index, ((row, seed), config) in enumerate(zip(runs, found, strict=True), start=1):
        print(f"[{index}/{len(runs)}] {row.name}, seed {seed}", flush=True)
        folder = root / plan.run_name(row, seed)
        try:
            result = experiment.run(config, folder)
        except (loop.Diverged, UsageError) as error:
            if not row.teacher:
                raise  # others wait for it
            print(f"    {error}", flush=True)
            failed[folder.name] = error
            continue
        record = records.record(row, seed, config, result, command=command, short=short)
        records.write(record, target / "results" / f"{folder.name}.json")
        print(f"    {records.line(record)}", flush=True)
        jax.clear_caches()  # what the next run shares lies on the disk
    return report.write(target), failed


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the table.

    Returns:
      The exit code: 0 done or stopped by SIGTERM, 1 some runs diverged, 2 a mistake of use, in
      single rows or in all.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, overrides = _arguments(argv)
        if arguments.list:
            for row in plan.every_row():
                figure = row.published
                print(f"{row.name:50s} {f'{figure[0]:.2f}  {figure[1]}' if figure else '-'}")
        elif arguments.report_only:
            print(report.write(home))
        else:
            # A reader elsewhere has no use for where things lie on this machine.
            shown = [re.sub(r"(^|=)/.*/", r"\1", argument) for argument in argv]
            command = " ".join(["python -m experiments.cifar_table.run", *shown])
            page, failed = study(arguments, overrides, command, home)
            print(page)
            for name, error in failed.items():
                print(f"cifar_table: {name} is in no table: {error}", file=sys.stderr)
            if failed:
                refused = any(isinstance(error, UsageError) for error in failed.values())
                return 2 if refused else 1
    except UsageError as error:
        print(f"cifar_table: error: {error}", file=sys.stderr)
        return 2
    except loop.Preempted:
        print("cifar_table: stopped by SIGTERM; the same command resumes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
