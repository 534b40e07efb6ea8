"""`distill-jax train`: trains one model in a workdir, or resumes there."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from distill_jax import storage
from distill_jax.commands import flags
from distill_jax.errors import UsageError
from distill_jax.processes import coordination

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from distill_jax.runs import experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `train`."""
    parser.description = (
        "Trains a teacher, a baseline or a student. The same command resumes a run that was "
        f"stopped. {flags.CONFIG_KEYS}"
    )
    parser.epilog = (
        "example: distill-jax train --config=configs/digits.py --workdir=runs/a --config.seed=1"
    )
    flags.add_config(parser, required=False)
    flags.add_workdir(parser, "folder of the run", required=False)
    parser.add_argument(
        "--help-config",
        action="store_true",
        help="print every config key, exit; with --config=FILE those of its kind of data, its "
        "student and its method, with the values of the file",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config as JSON, exit"
    )
    flags.add_processes(parser)
    flags.add_trust(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Trains, and prints the headline figures of the test split."""
    from distill_jax import config as configs
    from distill_jax.config import describe
    from distill_jax.runs import experiment

    if arguments.help_config:
        given = configs.load(arguments.config, overrides) if arguments.config else None
        print(describe.describe_keys(given))
        return 0
    if not arguments.print_config:
        flags.join_processes(arguments, stop_together=True)
    config = _load_config(arguments, overrides)
    if arguments.print_config:
        print(configs.to_json(config), end="")
        return 0
    if arguments.workdir is None:
        raise UsageError("train: expected --workdir=DIR, the folder of the run")
    result = experiment.run(config, arguments.workdir)
    headline = experiment.headline(result.values["final"]["test"])
    flags.print_once(json.dumps({"workdir": str(result.workdir), **headline}))
    if coordination.is_first():
        _print_summary(result, sys.stderr)
    return 0


def _print_summary(result: "experiment.Result", stream: TextIO) -> None:
    """What was trained, its figures, and where the report is: a table, or lines of key=value."""
    from distill_jax.reports import tables, terminal
    from distill_jax.training.logging.progress import duration

    values = result.values
    print(
        f"{values['student']} by {values['method']}: {values['steps']:,} steps in "
        f"{duration(values['training_time_s'])} of training",
        file=stream,
    )
    for split in ("test", "validation"):
        models = _evaluations(values, split)
        if models and terminal.is_terminal(stream):
            print(f"\n{split} split, {tables.count_text(values['final'][split])}", file=stream)
            terminal.show(tables.transposed(tables.evaluation(models)), stream)
            continue
        for model, row in models.items():
            figures = " ".join(
                f"{column.key}={row[column.key]:.6g}"
                for column in tables.EVALUATION
                if isinstance(row.get(column.key), int | float)
            )
            print(f"result: split={split} model={model} {figures}", file=stream)
    print(f"report: {result.workdir / 'report.html'}", file=stream)


def _evaluations(values: Mapping[str, Any], split: str) -> dict[str, Mapping[str, Any]]:
    """Model -> metrics of a split: the student, the one selected at another step, the teacher."""
    from distill_jax.reports import tables

    final, selected = values["final"], values["selected"]
    found = {"student": final.get(split) or {}}
    if selected and selected["step"] != final["step"]:
        found[f"selected_{selected['step']}"] = selected.get(split) or {}
    found["teacher"] = tables.teacher_metrics(found["student"])
    return {model: row for model, row in found.items() if row}


def _load_config(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> "ConfigDict":
    """The config of --config, or that of the run in --workdir."""
    from distill_jax import config as configs
    from distill_jax.runs.workdir import Workdir

    if arguments.config is not None:
        return configs.load(arguments.config, overrides)
    if arguments.workdir is None:
        raise UsageError(
            "distill-jax train: expected --config=FILE, or --workdir of a run to resume"
        )
    with storage.reporting_unreachable(arguments.workdir, "--workdir"):
        config = Workdir(arguments.workdir).saved_config()
    if config is None:
        raise UsageError(f"--workdir={arguments.workdir}: no run to resume; expected --config")
    return configs.resolve(configs.apply_overrides(config, overrides))
