"""Tables of results: mean ± standard deviation over seeds, as Markdown or as aligned text.

A `Table` holds formatted cells under columns; `markdown`, `text` and `html.table` only lay them
out. Left out on purpose: significance tests, and sorting by result, which invites selecting a
winner on test data.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "integer", "decimal", "percent", "general"]


@dataclass(frozen=True)
class Column:
    """One column: the key of its values and their format.

    Attributes:
      key: the name of the value in a row; dots reach into nested dicts ("final.test.accuracy"),
        unless the row has a key of exactly that name.
      title: the heading; empty for the key.
      kind: "text"; "integer" (with thousands separators); "decimal" (`digits` after the point);
        "percent" (a fraction times 100, `digits` after the point, without the sign, which belongs
        in the heading); "general" (at least `digits` significant digits, no exponent for large
        numbers).
      digits: see `kind`.
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
    """Formatted cells: `rows[i][j]` belongs to `columns[j]`."""

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
"""The metrics of an evaluation that are single numbers, by their names in result.json."""


def listing(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Table:
    """A table with one line for each row.

    Args:
      rows: results, possibly nested.
      columns: the columns; a missing value and None are shown as "–".
    """
    return Table(
        tuple(columns),
        tuple(tuple(format_value(lookup(row, c.key), c) for c in columns) for row in rows),
    )


def over_seeds(
    results: Sequence[Mapping[str, Any]],
    *,
    by: Sequence[str | Column],
    columns: Sequence[Column],
    seed: str = "seed",
) -> Table:
    """A table with one line for each setting: mean ± standard deviation (number of seeds).

    The deviation is the sample standard deviation, sqrt(sum (x - mean)^2 / (n - 1)); it is omitted
    for one seed. A cell skips the seeds that lack its value or have None. A NaN makes the mean NaN,
    so that a diverged run shows.

    Args:
      results: one result a run, possibly nested.
      by: the columns that define a setting; results with equal values in all of them share a line.
        Lines are in the order of first appearance.
      columns: numeric columns to average.
      seed: the key of a result's seed.

    Raises:
      ValueError: a setting has the same seed twice, which would count one run as two.
    """
    keys = tuple(column if isinstance(column, Column) else Column(column) for column in by)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        # Grouped by values, not by formatted cells: rounding must not join two settings.
        group = repr([lookup(result, column.key) for column in keys])
        groups.setdefault(group, []).append(result)
    rows = []
    for members in groups.values():
        setting = tuple(format_value(lookup(members[0], column.key), column) for column in keys)
        seeds = [lookup(member, seed) for member in members]
        seeds = [value for value in seeds if value is not None]
        if len(set(seeds)) < len(seeds):
            name = ", ".join(f"{c.heading}={cell}" for c, cell in zip(keys, setting, strict=True))
            raise ValueError(f"{name}: the same seed twice among {seeds}")
        rows.append(setting + tuple(_mean_cell(members, column) for column in columns))
    return Table(keys + tuple(columns), tuple(rows))


def evaluation(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """The metrics of several evaluations, one line each, without columns that have no value.

    Args:
      metrics: label -> metrics, as in result.json.
    """
    rows = [{**values, "model": label} for label, values in metrics.items()]
    used = [column for column in EVALUATION if any(row.get(column.key) is not None for row in rows)]
    return listing(rows, [Column("model", "Model"), *used])


def transposed(table: Table) -> Table:
    """The table with a line for each column but the first, whose cells become the headings.

    Such a table of many metrics of a few models is narrow enough for any terminal.
    """
    first, *others = table.columns
    headings = [Column(row[0], row[0], "general") for row in table.rows]
    rows = (
        (column.heading, *(row[j] for row in table.rows))
        for j, column in enumerate(others, start=1)
    )
    return Table((Column(first.key, " "), *headings), tuple(rows))


def teacher_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The "teacher_..." metrics of an evaluation, without that prefix; {} without a teacher."""
    prefix = "teacher_"
    return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """The metrics of one evaluation as aligned text, the teacher's below the student's.

    Args:
      metrics: as in result.json.
    """
    networks = {"student": metrics, "teacher": teacher_metrics(metrics)}
    lines = text(evaluation({name: values for name, values in networks.items() if values}))
    return f"{lines}on {count_text(metrics)}"


def count_text(metrics: Mapping[str, Any]) -> str:
    """The number of examples of an evaluation, or of its tokens and prompts, with their unit."""
    prompts = f" and {metrics['prompts']:,} prompts" if "prompts" in metrics else ""
    return f"{metrics['count']:,} {metrics.get('unit', 'examples')}{prompts}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the latter None for a single value.

    Args:
      values: at least one number.
    """
    if not all(map(math.isfinite, values)):
        return math.nan, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def lookup(row: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or of a path of keys joined by dots; None if it is missing."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def format_value(value: Any, column: Column) -> str:
    """One value as a cell of a column."""
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
    """The table in Markdown, numbers right-aligned, with a newline after the last row."""
    head = [_escaped(column.heading) for column in table.columns]
    rule = ["---:" if column.numeric else ":---" for column in table.columns]
    body = [[_escaped(cell) for cell in row] for row in table.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *body])


def text(table: Table) -> str:
    """The table as plain text, numbers right-aligned, with a newline after the last row."""
    head = [column.heading for column in table.columns]
    lines = [head, *table.rows]
    widths = [max(len(line[j]) for line in lines) for j in range(len(head))]
    rule = ["-" * width for width in widths]
    written = []
    for line in [head, rule, *table.rows]:
        cells = [
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ]
        written.append("  ".join(cells).rstrip() + "\n")
    return "".join(written)


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
