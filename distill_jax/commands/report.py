"""`distill-jax report`: writes the HTML page of a run."""

import argparse
import pathlib
import webbrowser
from collections.abc import Mapping

from distill_jax.commands import flags
from distill_jax.errors import UsageError
from distill_jax.storage import is_remote


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `report`."""
    parser.description = (
        "Writes report.html into the folder of a run, finished or not: figures and curves in one "
        "file that needs no server."
    )
    parser.epilog = "example: distill-jax report --workdir=runs/a --open"
    flags.add_workdir(parser, "folder of the run")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    flags.add_path(
        parser,
        "--figures",
        remote=False,
        metavar="DIR",
        help="also write the figures of the run for a paper, each as .svg and .pdf, such as "
        "figures; the same run gives the same bytes",
    )
    flags.add_trust(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Writes the page, and the figures where they are asked for, and prints their paths."""
    from distill_jax import reports
    from distill_jax.runs import figures
    from distill_jax.runs.workdir import Workdir

    Workdir(arguments.workdir).required_config()
    if arguments.figures:
        flags.check_folder(arguments.figures, "--figures")
    page = reports.run_report(arguments.workdir)
    print(page)
    if arguments.figures:
        for path in figures.write(arguments.workdir, arguments.figures):
            print(path)
    if arguments.open:
        _open(page)
    return 0


def _open(page: pathlib.Path) -> None:
    """Opens the page in the reader's browser; UsageError where there is none, the page remains."""
    if is_remote(page):
        raise UsageError(f"--open: {page} is in a bucket; expected a workdir on this machine")
    if not webbrowser.open(page.absolute().as_uri()):
        raise UsageError(f"--open: found no browser here; the page is {page}")
