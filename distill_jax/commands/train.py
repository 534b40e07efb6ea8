"""`distill-jax train`: trains one model in a workdir, or resumes there."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

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
        print(_summary(result), file=sys.stderr)
    return 0


def _summary(result: "experiment.Result") -> str:
    """A few lines for a reader: what was trained, its figures, and where the report is."""
    from distill_jax.runs import experiment
    from distill_jax.training.logging.progress import duration

    values = result.values
    figures = [
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in experiment.headline(values["final"]["test"]).items()
        if isinstance(value, int | float)
    ]
    return (
        f"{values['student']} by {values['method']}: {values['steps']} steps in "
        f"{duration(values['training_time_s'])} of training\n"
        f"test split, last step: {', '.join(figures)}\n"
        f"report: {result.workdir / 'report.html'}"
    )


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
