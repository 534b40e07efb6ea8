"""Trains rows of the CIFAR table, and writes one JSON a run and the README.

    python -m experiments.cifar_table.run --list
    python -m experiments.cifar_table.run --workdir=runs/cifar_table \\
        --rows='cifar100:resnet32x4,resnet8x4,*' --seeds=3
    python -m experiments.cifar_table.run --workdir=runs/cifar_table --store-answers \\
        --rows=cifar100:resnet56,resnet20,kd --teacher=cifar100_resnet56.npz
    python -m experiments.cifar_table.run --workdir=runs/cifar_table --ranking \\
        --rows='cifar100:resnet56,resnet20,*' --teacher=cifar100_resnet56.npz
    python -m experiments.cifar_table.run --workdir=runs/short --epochs=3 \\
        --rows='cifar100:resnet56,resnet20,kd' --config.data.tfds_dir=DIR
    python -m experiments.cifar_table.run --report-only

Teachers that the rows need are trained first, unless `--teacher` gives them: the weights of a
published one, or a model folder. Finished runs are not repeated, interrupted ones resume. With
`--epochs` the schedule is scaled to that length; such runs have a table of their own, in
WORKDIR/report, and are never mixed with full ones.
"""

import argparse
import dataclasses
import fnmatch
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax.errors import UsageError
from distill_jax.runs import experiment, workdir
from distill_jax.training import loop
from experiments import study
from experiments.cifar_table import answers, clock, plan, records, report, teachers

HERE = pathlib.Path(__file__).resolve().parent
RANKING = "ranking"  # the folder of the ranking's records and table
PROGRAM = study.Program("cifar_table")


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = PROGRAM.parser(__doc__)
    study.add_workdir(parser)
    parser.add_argument(
        "--rows", action="append", default=[], help="DATASET:TEACHER,STUDENT,METHOD"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row; teachers have one")
    parser.add_argument("--epochs", type=float, help="the length of a short schedule, in epochs")
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="PATH",
        help="weights of a published teacher, or a model folder, in place of training it here",
    )
    parser.add_argument(
        "--store-answers",
        action="store_true",
        help="compute the teacher's answers to all views once; methods of logits train on them",
    )
    parser.add_argument(
        "--ranking",
        action="store_true",
        help=f"all methods at one schedule of {plan.RANKING_EPOCHS:g} epochs, in a table apart",
    )
    parser.add_argument("--list", action="store_true", help="print every row and exit")
    arguments, rest = parser.parse_known_args(argv)
    overrides = study.config_overrides(rest)
    study.require_at_least("seeds", arguments.seeds, 1)
    study.require_positive("epochs", arguments.epochs)
    needs_folder = not (arguments.report_only or arguments.list)
    if needs_folder and (arguments.workdir is None or not arguments.rows):
        raise UsageError("expected --workdir=DIR and --rows=PATTERN; see --list for all rows")
    return arguments, overrides


def runs_of(
    patterns: Sequence[str], seeds: int, given: teachers.Teachers
) -> list[tuple[plan.Row, int]]:
    """(row, seed) of every run that the patterns need, teachers first.

    A row that a pattern names has all seeds; a teacher that no pattern names has one.
    """
    rows = plan.chosen(patterns, given)
    needed = {plan.Row(row.dataset, row.teacher) for row in rows if row.teacher}

    def named(row: plan.Row) -> bool:
        return any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)

    return [
        (row, seed)
        for row in rows
        for seed in range(seeds if named(row) or row not in needed else 1)
    ]


@dataclasses.dataclass(frozen=True)
class Table:
    """The runs of one command.

    Attributes:
      root: the folder of its runs; with the answers and teachers of all tables of a workdir.
      runs: the folder of this table's runs.
      schedule: how long they are.
      short: whether they are others than the published ones.
      given: the teachers that are not trained here.
      measured: their accuracies on the test set.
      store_answers: whether logits are read from a store.
      command: for the records.
    """

    root: pathlib.Path
    runs: pathlib.Path
    schedule: plan.Schedule
    short: bool
    given: teachers.Teachers
    measured: Mapping[tuple[str, str], float]
    store_answers: bool
    command: str

    def train(self, row: plan.Row, seed: int, config: ConfigDict) -> dict[str, Any]:
        """Trains a run, or goes on with it, and returns its record."""
        name = plan.run_name(row, seed, self.given)
        folder, ticks = self.runs / name, self.runs / "clocks" / f"{name}.json"
        if self.store_answers and answers.can_be_stored(config):
            with config.unlocked():
                config.teacher.store = str(answers.folder_of(config, self.root))
            if not (folder / "result.json").exists():
                answers.store(config, self.root)
        if (folder / "result.json").exists():
            result = experiment.run(config, folder)
        else:
            with clock.running(ticks):
                result = experiment.run(config, folder)
        return records.record(
            row,
            seed,
            config,
            result,
            command=self.command,
            short=self.short,
            ranking=self.schedule.ranking,
            spent=clock.read(ticks),
            taught_by=self._taught_by(row),
        )

    def _taught_by(self, row: plan.Row) -> dict[str, Any] | None:
        """Who trained the teacher of a row, and its accuracy on the test set."""
        key = (row.dataset, row.teacher)
        if row.teacher in ("", "none"):
            return None
        if key in self.given:
            return {"source": self.given[key].source, "accuracy": self.measured[key]}
        trained = self.runs / plan.run_name(plan.Row(*key), 0, self.given) / "result.json"
        values = workdir.read_json(trained)
        return {"source": "trained here", "accuracy": values["final"]["test"]["accuracy"]}


def run_study(
    arguments: argparse.Namespace, overrides: Mapping[str, str], command: str, home: pathlib.Path
) -> tuple[pathlib.Path, dict[str, loop.Diverged | UsageError]]:
    """Trains the missing runs and reports; see the module's docstring for the arguments.

    Returns:
      The README that was written, and the runs that are not in the table, name -> error: they
      diverged, or their method does not fit the data or the pair.
    """
    root, ranking = arguments.workdir, arguments.ranking
    epochs = plan.RANKING_EPOCHS if ranking and arguments.epochs is None else arguments.epochs
    schedule = plan.Schedule(epochs, ranking)
    given = teachers.open_all(arguments.teacher)
    runs = runs_of(arguments.rows, arguments.seeds, given)
    folder = root / RANKING if ranking else root
    # All configs are made before the first run is trained, so that a mistake costs no hours.
    configs = [
        plan.config_of(row, seed, root, schedule, overrides, given, runs=folder)
        for row, seed in runs
    ]
    changed = records.is_changed(overrides)
    trial = changed or (arguments.epochs is not None)
    page = home / RANKING if ranking else home
    measured = _prepare_teachers(given, runs, configs, root)
    target = study.results_folder(page, folder, trial=trial)
    table = Table(
        root=root,
        runs=folder,
        schedule=schedule,
        short=changed or epochs is not None,
        given=given,
        measured=measured,
        store_answers=arguments.store_answers,
        command=command,
    )
    failed: dict[str, loop.Diverged | UsageError] = {}
    for index, ((row, seed), config) in enumerate(zip(runs, configs, strict=True), start=1):
        print(f"[{index}/{len(runs)}] {row.name}, seed {seed}", flush=True)
        name = plan.run_name(row, seed, given)
        try:
            record = table.train(row, seed, config)
        except (loop.Diverged, UsageError) as error:
            if not row.teacher:
                raise  # its students need it
            print(f"    {error}", flush=True)
            failed[name] = error
            continue
        records.write(record, target / "results" / f"{name}.json")
        print(f"    {records.line(record)}", flush=True)
        report.write(target)
        jax.clear_caches()  # the programs that the next run shares are on disk
    return report.write(target), failed


def _prepare_teachers(
    given: teachers.Teachers,
    runs: Sequence[tuple[plan.Row, int]],
    configs: Sequence[ConfigDict],
    root: pathlib.Path,
) -> dict[tuple[str, str], float]:
    """Measures the teachers that are not trained here, and puts them into the workdir."""
    measured: dict[tuple[str, str], float] = {}
    for (row, _), config in zip(runs, configs, strict=True):
        key = (row.dataset, row.teacher)
        if key in given and key not in measured:
            measured[key] = teachers.prepare(given[key], config, root)
            found = f"{100 * measured[key]:.2f} % on the test set"
            print(f"teacher {given[key].name} of {given[key].source}: {found}", flush=True)
    return measured


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
            print(report.write(home / RANKING if arguments.ranking else home))
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
