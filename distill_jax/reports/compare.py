"""The page, the table and the files of a comparison of runs.

What is compared, and how, is in `distill_jax.runs.comparison`; here it is only laid out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from distill_jax.evaluation import paired
from distill_jax.reports import html, tables
from distill_jax.reports.tables import Column, Table, format_value

TABLE = "comparison"
_LOW_IS_BETTER = ("errors", "nll", "perplexity", "ece", "brier", "kl")
_COSTS = ("parameters", "model_bytes", "flops_a_step", "training_time_s")
_FIRST_COLUMNS = 8  # of the table that are shown at first

METHOD = (
    f"Differences from the first setting over the same test examples, with a {paired.LEVEL:.0%} "
    f"percentile bootstrap interval: {paired.RESAMPLES:,} resamples of the examples, seed 0. They "
    "tell whether other examples would have changed the result, not whether another seed would. "
    "McNemar's exact test compares the two counts of examples that one of both alone has right. No "
    "correction is made for the number of comparisons."
)


class Group(Protocol):
    """A setting with its seeds; `runs.comparison.Group` is one."""

    @property
    def label(self) -> str: ...
    @property
    def runs(self) -> Sequence[Any]: ...
    def mean(self, key: str) -> float | None: ...
    def deviation(self, key: str) -> float | None: ...


def table(groups: Sequence[Group], columns: Sequence[Column]) -> Table:
    """A line for each setting: its name, n, and mean ± sample deviation of each column."""
    rows = (
        (group.label, str(len(group.runs)), *(_cell(group, column) for column in columns))
        for group in groups
    )
    return Table((Column("label", "Run"), Column("n", "n", "integer"), *columns), tuple(rows))


def _cell(group: Group, column: Column) -> str:
    mean, deviation = group.mean(column.key), group.deviation(column.key)
    spread = f" ± {format_value(deviation, column)}" if deviation else ""
    return format_value(mean, column) + spread


def raw_rows(
    groups: Sequence[Group], columns: Sequence[Column]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Names and unrounded values for a CSV file: "label", "n", and mean and sd of each column."""
    names = ["label", "n"]
    for column in columns:
        names += [column.key, f"{column.key}_sd"]
    rows = []
    for group in groups:
        row: dict[str, Any] = {"label": group.label, "n": len(group.runs)}
        for column in columns:
            row[column.key] = group.mean(column.key)
            row[f"{column.key}_sd"] = group.deviation(column.key)
        rows.append(row)
    return names, rows


def page(comparison: Any, runs: Sequence[Mapping[str, Any]]) -> str:
    """The page of a comparison.

    Args:
      comparison: a `runs.comparison.Comparison`.
      runs: every run in plain values, see `runs.listing.describe`.

    Returns:
      The HTML.
    """
    groups, columns = comparison.groups, comparison.metrics
    count = sum(len(group.runs) for group in groups)
    names = section_of_names(groups)
    sections: list[tuple[str, Sequence[html.Block]]] = [
        ("Figures", _figures(comparison)),
        ("Against cost", _costs(groups, columns)),
        ("Differences on the same examples", _differences(comparison)),
        ("What differs in the configs", _config(comparison)),
        ("Every run", [_every_run(runs)]),
        ("Left out", [_left_out(comparison.unfinished)] if comparison.unfinished else []),
    ]
    return html.page(
        f"Comparison: {names}",
        [(title, blocks) for title, blocks in sections if blocks],
        subtitle=f"{count} runs in {len(groups)} settings · {comparison.kind} · "
        "test split after the last step",
    )


def section_of_names(groups: Sequence[Group]) -> str:
    """The first settings' names, and how many more there are."""
    names = [group.label for group in groups]
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[: 3 if more else 4]) + more


def _figures(comparison: Any) -> list[html.Block]:
    cells = table(comparison.groups, comparison.metrics)
    titles = [column.heading for column in cells.columns]
    chosen = {
        "table": TABLE,
        "columns": [
            [j, title, j < _FIRST_COLUMNS or cells.columns[j].key in _COSTS]
            for j, title in enumerate(titles)
            if j >= 2
        ],
    }
    caption = "Mean ± sample standard deviation (n − 1) over n seeds; one run has no deviation."
    blocks: list[html.Block] = [
        html.Panel("columns", chosen, "Columns of the table", "All columns are shown."),
        html.table(cells.rows, cells.columns, caption=caption, interactive=True, name=TABLE),
        *comparison.notes,
    ]
    return blocks


def _costs(groups: Sequence[Group], columns: Sequence[Column]) -> list[html.Block]:
    across = [c for c in columns if c.key in _COSTS]
    up = [c for c in columns if c.key not in _COSTS]
    if not across or not up or len(groups) < 2:
        return []
    points = [
        {
            "label": group.label,
            "n": len(group.runs),
            "values": {c.key: [group.mean(c.key), group.deviation(c.key)] for c in columns},
        }
        for group in groups
    ]
    data = {
        "points": points,
        "x": [[c.key, c.heading, c.key != "training_time_s"] for c in across],
        "y": [
            [
                c.key,
                c.heading,
                "low" if c.key in _LOW_IS_BETTER else "high",
                100 if c.kind == "percent" else 1,
            ]
            for c in up
        ],
    }
    return [
        html.Panel("scatter", data, "Figures against costs"),
        "Bytes are those of the saved weights, times those of training alone on the device named "
        "below; FLOPs are shown where `distill-jax plan` has left plan.json in a workdir. Energy "
        "is not measured.",
    ]


def _differences(comparison: Any) -> list[html.Block]:
    if not comparison.differences:
        return []
    if not any(difference.interval for difference in comparison.differences):
        # The reason is most often the same for all.
        return list(
            dict.fromkeys(f"{d.note[:1].upper()}{d.note[1:]}." for d in comparison.differences)
        )
    by_key = {column.key: column for column in tables.EVALUATION}
    rows = []
    for difference in comparison.differences:
        column = by_key[difference.metric]
        interval = difference.interval
        signed = [] if interval is None else [_signed(value, column) for value in interval]
        rows.append(
            (
                difference.label,
                column.heading,
                signed[0] if signed else tables.MISSING,
                f"{signed[1]} to {signed[2]}" if signed else tables.MISSING,
                " : ".join(map(str, difference.alone)) if difference.alone else tables.MISSING,
                tables.MISSING if difference.p_value is None else f"{difference.p_value:.2g}",
                difference.note,
            )
        )
    columns = [
        Column("label", "Run"),
        Column("metric", "Figure"),
        Column("value", f"Difference from {comparison.groups[0].label}", "general"),
        Column("interval", f"{paired.LEVEL:.0%} interval"),
        Column("alone", "Right alone (this : first)"),
        Column("p", "McNemar p", "general"),
        Column("note", "Over"),
    ]
    return [html.table(rows, columns), METHOD]


def _signed(value: float, column: Column) -> str:
    text = format_value(value, column)
    return text if text.startswith("-") else f"+{text}"


def _config(comparison: Any) -> list[html.Block]:
    if len(comparison.groups) < 2:
        return []
    if not comparison.config:
        return ["Nothing but the data, the devices or a repetition of the same seed differs."]
    columns = [Column("key", "Key")]
    columns += [Column(str(j), group.label) for j, group in enumerate(comparison.groups)]
    rows = [(key, *values) for key, values in comparison.config.items()]
    return [html.table(rows, columns, caption="Keys of the configs that are not equal in all.")]


def _every_run(runs: Sequence[Mapping[str, Any]]) -> html.Markup:
    columns = [
        Column("path", "Folder"),
        Column("student", "Student"),
        Column("method", "Method"),
        Column("seed", "Seed", "general"),
        Column("metric", "Figure"),
        Column("value", "Value", "general", 6),
        Column("device", "Device"),
        Column("started", "Started (UTC)"),
    ]
    return html.table(runs, columns, interactive=True, name="runs")


def _left_out(unfinished: Sequence[Any]) -> html.Markup:
    rows = [(str(run.path), run.progress, run.detail) for run in unfinished]
    columns = [Column("path", "Folder"), Column("state", "State"), Column("why", "Note")]
    return html.table(rows, columns, caption="Runs that have not finished have no test figures.")
