"""Tables for other programs: CSV for spreadsheets, LaTeX for papers.

Markdown and plain text are in `distill_jax.reports.tables`. A name that a user chose is data in
each of them: a spreadsheet does not take it for a formula, LaTeX not for a command.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill_jax.reports.tables import Table

# A spreadsheet takes a cell for a formula by its first character, blanks skipped.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20|%]|[\t\r\n]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "→": r"$\to$",
    "‖": r"$\Vert$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_TEXT_ESCAPE = str.maketrans(_LATEX)


def csv_text(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Values as CSV (RFC 4180, UTF-8, lines that end in CR LF), one line for each row.

    Numbers are written with all their digits, None as an empty cell. A text that a spreadsheet
    would run as a formula begins with an apostrophe.

    Args:
      rows: by name; a missing name is None.
      names: the columns, in order.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([_csv_cell(name) for name in names])
    for row in rows:
        writer.writerow([_csv_cell(row.get(name)) for name in names])
    return buffer.getvalue()


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\0", "\N{REPLACEMENT CHARACTER}")
    return f"'{text}" if _FORMULA.match(text) else text


def latex(table: Table, *, caption: str = "") -> str:
    r"""The table as LaTeX, for \usepackage{booktabs}.

    Args:
      table: of formatted cells.
      caption: of a table environment; empty for the tabular alone.
    """
    kinds = "".join("r" if column.numeric else "l" for column in table.columns)
    head = " & ".join(latex_text(column.heading) for column in table.columns)
    lines = [
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *(rf"{' & '.join(map(latex_text, row))} \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if caption:
        around = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(caption)}}}"]
        lines = [*around, *lines, r"\end{table}"]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """Text in which LaTeX sees no command, and no blank line."""
    text = "".join(c if c.isprintable() else " " for c in text)
    # A row that begins with "[" would be read as the argument of the \\ before it.
    escaped = " ".join(text.split()).translate(_TEXT_ESCAPE)
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped.startswith(("[", "*")) else escaped
