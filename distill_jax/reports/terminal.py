"""Tables on a terminal: drawn with rich where there is one, aligned text in a pipe or a file."""

import os
from typing import TextIO

import rich.box
import rich.console
import rich.table
from rich.text import Text

from distill_jax.reports import tables
from distill_jax.reports.tables import Table


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # no such method, or a stream that is closed
        return False


def show(table: Table, stream: TextIO) -> None:
    """Writes a table, without the columns that are empty.

    Args:
      table: of formatted cells; control characters in them, which a terminal would obey, are shown
        as a replacement character.
      stream: a terminal gets lines and colours, anything else plain text.
    """
    table = printable(table)
    if not is_terminal(stream):
        stream.write(tables.text(table))
        return
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(
            Text(column.heading),
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    rich.console.Console(file=stream, highlight=False).print(drawn)


def printable(table: Table) -> Table:
    """The table without columns that have no value, and without control characters."""
    kept = [
        j
        for j in range(len(table.columns))
        if not table.rows or any(row[j] not in ("", tables.MISSING) for row in table.rows)
    ]
    return Table(
        tuple(table.columns[j] for j in kept),
        tuple(tuple(_printable(row[j]) for j in kept) for row in table.rows),
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
