"""`distill-jax runs`: lists the runs in a folder with their state."""

import argparse
import json
import sys
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `runs`."""
    parser.description = (
        "Lists every run in a folder and in the folders below it: whether it has finished, is "
        "running and by which process, was stopped at which step, failed, or is damaged, with its "
        "student, method, seed and main figure. Reads alone; no run is touched."
    )
    parser.epilog = "example: distill-jax runs runs --csv=runs.csv"
    flags.add_path(
        parser,
        "folder",
        remote=True,
        metavar="FOLDER",
        help="folder of runs at any depth, such as runs or gs://bucket/runs",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object a line, with every figure unrounded, in place of the table",
    )
    flags.add_output(parser, "--csv", "also write the list as CSV, such as runs.csv")


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Prints the list."""
    from distill_jax.reports import exports, terminal
    from distill_jax.runs import listing, records

    flags.check_outputs(arguments, "csv")
    found = [
        listing.describe(record, arguments.folder) for record in records.find(arguments.folder)
    ]
    if arguments.json:
        for values in found:
            print(json.dumps(values))
    elif found:
        terminal.show(listing.table(found), sys.stdout)
    if not found:
        print(f"{arguments.folder}: no run there", file=sys.stderr)
    if arguments.csv:
        names = [name for name in listing.FIELDS if name != "progress"]
        flags.write_output(arguments.csv, "--csv", exports.csv_text(found, names))
    return 0
