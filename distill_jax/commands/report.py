"""`distill-jax report`: writes the HTML page of a run."""

import argparse
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `report`."""
    parser.description = (
        "Writes report.html into the folder of a run, finished or not: figures and curves in one "
        "file that needs no server."
    )
    parser.epilog = "example: distill-jax report --workdir=runs/a"
    flags.add_workdir(parser, "folder of the run")
    flags.add_trust(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Writes the page and prints its path."""
    from distill_jax import reports
    from distill_jax.runs.workdir import Workdir

    Workdir(arguments.workdir).required_config()
    print(reports.run_report(arguments.workdir))
    return 0
