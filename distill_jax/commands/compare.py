"""`distill-jax compare`: several runs on one page, as a table, and as files for papers."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from distill_jax.commands import flags
from distill_jax.errors import UsageError, unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `compare`."""
    parser.description = (
        "Compares runs on images, or runs on text: figures with mean and deviation over seeds, "
        "which it recognises by their configs, costs, paired differences on the same test examples "
        "with intervals, and what differs in the configs. Prints the table; --out writes a page. "
        "The first run is the one that the others are compared with."
    )
    parser.epilog = (
        "example: distill-jax compare runs/baseline runs/student --out=compare.html "
        "--latex=table.tex --columns=accuracy,nll"
    )
    flags.add_path(
        parser,
        "runs",
        remote=True,
        metavar="RUN",
        nargs="+",
        help="folders of runs, such as runs/a",
    )
    flags.add_output(parser, "--out", "file for the page, such as compare.html")
    flags.add_output(parser, "--csv", "file for the table as CSV, with unrounded means and sd")
    flags.add_output(parser, "--markdown", "file for the table as Markdown")
    flags.add_output(parser, "--latex", "file for the table as LaTeX (booktabs)")
    parser.add_argument(
        "--columns",
        metavar="NAME,NAME",
        default="",
        help="columns of the table and of the files, in order, by their names in result.json, such "
        "as accuracy,nll,parameters (default: all that a run has)",
    )


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Compares, writes what is asked for, and prints the table."""
    from distill_jax.reports import compare, exports, tables, terminal
    from distill_jax.runs import comparison, listing

    flags.check_outputs(arguments, "out", "csv", "markdown", "latex")
    found = comparison.compare(arguments.runs)
    columns = _columns(arguments.columns, found.metrics)
    table = compare.table(found.groups, columns)
    if arguments.out:
        rows = [
            {**listing.describe(each), "device": each.result.get("device")}
            for group in found.groups
            for each in group.runs
        ]
        flags.write_output(arguments.out, "--out", compare.page(found, rows))
    if arguments.csv:
        names, raw = compare.raw_rows(found.groups, columns)
        flags.write_output(arguments.csv, "--csv", exports.csv_text(raw, names))
    if arguments.markdown:
        flags.write_output(arguments.markdown, "--markdown", tables.markdown(table))
    if arguments.latex:
        flags.write_output(arguments.latex, "--latex", exports.latex(table))
    terminal.show(table, sys.stdout)
    for each in found.unfinished:
        print(f"left out: {each.path}: {each.progress}", file=sys.stderr)
    for name in ("out", "csv", "markdown", "latex"):
        if path := getattr(arguments, name):
            print(path)
    return 0


def _columns(text: str, known: Sequence) -> Sequence:
    """The columns that --columns names; all without it."""
    by_key = {column.key: column for column in known}
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in by_key:
            raise unknown("--columns", name, by_key, "column of these runs")
    if len(set(names)) < len(names):
        raise UsageError(f"--columns={text}: expected each column once")
    return [by_key[name] for name in names] if names else known
