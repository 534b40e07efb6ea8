"""`distill-jax eval`: evaluates the student of a finished run."""

import argparse
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `eval`."""
    parser.description = (
        "Evaluates the student of a finished run, or an imported network, and prints every figure. "
        "--config.KEY=VALUE gives new locations of the data and the teachers of a run, such as "
        "--config.data.path=/new/place, and prompts, such as "
        "--config.evaluation.test_prompts=prompts.jsonl; for an imported network, it gives the "
        "data, such as --config.data.name=cifar100."
    )
    parser.epilog = (
        "example: distill-jax eval --workdir=runs/a --split=validation, or of an imported network "
        "distill-jax eval --workdir=teachers/resnet56 --config=configs/digits.py"
    )
    flags.add_workdir(parser, "folder of the run, or of a model of `distill-jax import`")
    flags.add_config(
        parser, " of a run whose data an imported network is evaluated on", required=False
    )
    parser.add_argument(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="the examples to evaluate on (default: %(default)s)",
    )
    flags.add_which(parser)
    flags.add_path(
        parser,
        "--dump",
        remote=False,
        metavar="FILE",
        help="images: also write logits, labels and ids of every example, such as logits.npz",
    )
    parser.add_argument(
        "--taps",
        metavar="NAME,NAME",
        default="",
        help="features to write with the logits, such as pooled,stage3",
    )
    flags.add_trust(parser)
    flags.add_processes(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Evaluates, and prints the figures."""
    flags.join_processes(arguments, stop_together=False)
    from distill_jax import reports
    from distill_jax.runs import experiment

    values = experiment.evaluate(
        arguments.workdir,
        arguments.split,
        arguments.which,
        overrides,
        data_of=arguments.config,
        dump=arguments.dump,
        taps=tuple(name for name in arguments.taps.split(",") if name),
    )
    flags.print_once(reports.metrics_text(values))
    return 0
