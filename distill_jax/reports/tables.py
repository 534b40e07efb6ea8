"""Tables of results: mean ± standard deviation over seeds, as Markdown or as aligned text.

A `Table` is cells of finished text under columns; `markdown`, `text` and `html.table` only lay the
same cells out. Left out on purpose: significance tests and sorting by result, which invites
choosing the winner by test data.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "integer", "decimal", "percent", "general"]


@dataclass(frozen=True)
class Column:
    """One column: where its values are found and how they are written.

    Attributes:
      key: name of the value in a row; dots reach into nested dicts ("final.test.accuracy"), unless
        the row has a key of exactly that name.
      title: the heading; empty takes the key.
      kind: "text"; "integer" (with thousands separators); "decimal" (`digits` after the point);
        "percent" (a fraction times 100, `digits` after the point, the sign left to the heading);
        "general" (at least `digits` significant ones, no exponent for large numbers).
      digits: see kind.
    """

    key: str
    title: str = ""
    kind: Kind = "text"
    digits: int = 2

    @property
    def heading(self) -> str:
        return self.title or self.key

    @property
    def numeric(self) -> bool:
        return self.kind != "text"


@dataclass(frozen=True)
class Table:
    """Cells of text: `rows[i][j]` stands under `columns[j]`."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


MISSING = "–"

EVALUATION = (
    Column("accuracy", "Accuracy (%)", "percent"),
    Column("top5", "Top-5 (%)", "percent"),
    Column("errors", "Errors", "integer"),
    Column("nll", "NLL", "decimal", 4),
    Column("perplexity", "Perplexity", "decimal", 2),
    Column("rouge_l", "ROUGE-L (%)", "percent"),
    Column("exact_match", "Exact match (%)", "percent"),
    Column("ece", "ECE (%)", "percent"),
    Column("brier", "Brier", "decimal", 4),
    Column("agreement", "Agreement (%)", "percent"),
    Column("kl", "KL from teacher", "decimal", 4),
)
"""The figures of an evaluation that are single numbers, as `training.metrics` names them."""


def listing(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Table:
    """A table with one line a row.

    Args:
      rows: results, possibly nested.
      columns: what to show of each; a missing value and None are shown as "–".
    """
    columns = tuple(columns)
    return Table(
        columns,
        tuple(tuple(format_value(lookup(row, c.key), c) for c in columns) for row in rows),
    )


def over_seeds(
    results: Sequence[Mapping[str, Any]],
    *,
    by: Sequence[str | Column],
    columns: Sequence[Column],
    seed: str = "seed",
) -> Table:
    """A table with one line a setting: mean ± standard deviation (number of seeds).

    The deviation is that of a sample, sqrt(sum (x - mean)^2 / (n - 1)); with one seed it is left
    out. A seed that lacks a value (or has None) is not counted in that cell; one that is NaN makes
    the mean NaN, so that a diverged run cannot hide.

    Args:
      results: one result a run, possibly nested.
      by: the columns that make up a setting, in order; results that agree in all of them share a
        line. Lines stand in the order of first appearance.
      columns: numeric columns to average.
      seed: where a result holds its seed.

    Raises:
      ValueError: a setting has the same seed twice, which would count one run as two.
    """
    by = tuple(column if isinstance(column, Column) else Column(column) for column in by)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        # By what the values are, not by what their cells say: rounding must not join two settings.
        setting = repr([lookup(result, column.key) for column in by])
        groups.setdefault(setting, []).append(result)
    rows = []
    for members in groups.values():
        setting = tuple(format_value(lookup(members[0], column.key), column) for column in by)
        seeds = [lookup(member, seed) for member in members]
        seeds = [value for value in seeds if value is not None]
        if len(set(seeds)) < len(seeds):
            named = ", ".join(f"{c.heading}={cell}" for c, cell in zip(by, setting, strict=True))
            raise ValueError(f"{named}: the same seed twice among {seeds}")
        rows.append(setting + tuple(_mean_cell(members, column) for column in columns))
    return Table(by + tuple(columns), tuple(rows))


def evaluation(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """The figures of several evaluations, one line each, without the columns that nobody has.

    Args:
      figures: label -> figures as `training.metrics.summarise` names them.
    """
    rows = [{**values, "model": label} for label, values in figures.items()]
    had = [column for column in EVALUATION if any(row.get(column.key) is not None for row in rows)]
    return listing(rows, [Column("model", "Model"), *had])


def teacher_metrics(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's figures out of a student's, under their own names; {} without a teacher."""
    prefix = "teacher_"
    return {k.removeprefix(prefix): v for k, v in figures.items() if k.startswith(prefix)}


def metrics_text(figures: Mapping[str, Any]) -> str:
    """The figures of one evaluation as aligned text, the teacher's below the student's.

    Args:
      figures: as returned by `training.metrics.summarise`.
    """
    networks = {"student": figures, "teacher": teacher_metrics(figures)}
    lines = text(evaluation({name: values for name, values in networks.items() if values}))
    return f"{lines}on {count_text(figures)}"


def count_text(figures: Mapping[str, Any]) -> str:
    """How many examples, or tokens of text and prompts, an evaluation counted, in words."""
    prompts = f" and {figures['prompts']:,} prompts" if "prompts" in figures else ""
    return f"{figures['count']:,} {figures.get('unit', 'examples')}{prompts}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the latter None for a single value.

    Args:
      values: at least one number.
    """
    if not all(map(math.isfinite, values)):
        return math.nan, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def lookup(row: Mapping[str, Any], key: str) -> Any:
    """The value at a key, or at a path of keys joined by dots; None when it is missing."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def format_value(value: Any, column: Column) -> str:
    """One value as the text of its cell."""
    if value is None:
        return MISSING
    if column.kind == "text" or isinstance(value, str):
        return str(value)
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if column.kind == "integer" or (column.kind == "general" and abs(value) >= 10**column.digits):
        return f"{value:,.0f}"
    if column.kind == "general":
        return f"{value:,.{column.digits}g}"
    return f"{100 * value if column.kind == 'percent' else value:.{column.digits}f}"


def markdown(table: Table) -> str:
    """The table in Markdown, numbers to the right, with a line end after the last row."""
    head = [_escaped(column.heading) for column in table.columns]
    rule = ["---:" if column.numeric else ":---" for column in table.columns]
    body = [[_escaped(cell) for cell in row] for row in table.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *body])


def text(table: Table) -> str:
    """The table as aligned plain text, numbers to the right, with a line end after the last row."""
    head = [column.heading for column in table.columns]
    lines = [head, *table.rows]
    widths = [max(len(line[j]) for line in lines) for j in range(len(head))]
    rule = ["-" * width for width in widths]
    laid_out = []
    for line in [head, rule, *table.rows]:
        cells = [
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ]
        laid_out.append("  ".join(cells).rstrip() + "\n")
    return "".join(laid_out)


def _mean_cell(members: Sequence[Mapping[str, Any]], column: Column) -> str:
    found = (lookup(member, column.key) for member in members)
    values = [float(value) for value in found if value is not None]
    if not values:
        return MISSING
    mean, deviation = mean_and_deviation(values)
    spread = "" if deviation is None else f" ± {format_value(deviation, column)}"
    return f"{format_value(mean, column)}{spread} ({len(values)})"


def _escaped(cell: str) -> str:
    cell = cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(cell.split())
