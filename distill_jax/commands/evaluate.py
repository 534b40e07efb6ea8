"""`distill-jax eval`: evaluates the student of a finished run."""

import argparse
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `eval`."""
    parser.description = (
        "Evaluates the student of a finished run and prints every figure. --config.KEY=VALUE gives "
        "new locations of the data and the teachers, such as --config.data.path=/new/place, and "
        "prompts, such as --config.evaluation.test_prompts=prompts.jsonl."
    )
    parser.epilog = "example: distill-jax eval --workdir=runs/a --split=validation"
    flags.add_workdir(parser, "folder of the run")
    parser.add_argument(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="the examples to evaluate on (default: %(default)s)",
    )
    flags.add_which(parser)
    flags.add_processes(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Evaluates, and prints the figures."""
    flags.join_processes(arguments, stop_together=False)
    from distill_jax import reports
    from distill_jax.runs import experiment

    values = experiment.evaluate(arguments.workdir, arguments.split, arguments.which, overrides)
    flags.print_once(reports.metrics_text(values))
    return 0
