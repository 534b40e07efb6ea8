"""From the measured rows to the study's files: tables in the README, figures, one JSON.

The block between the two markers of the README is made from results/summary.json, so that its
numbers cannot drift from the measured ones. Left out on purpose: training and measuring.
"""

import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.reports import figures, tables
from distill_jax.reports.tables import Column
from experiments import markers
from experiments.hinton2015 import plan

SUMMARY = "summary.json"
DIGITS = tuple("0123456789")

# Section 3 of the paper, in addition to the test errors of the plan: (test errors, errors on the
# digit left out) before and after the correction of the biases, and the offset.
PAPER_BIASES = {
    "without3": {"before": (206, 133), "offset": 3.5, "after": (109, 14)},
    "only78": {"before": (4730, None), "offset": -7.6, "after": (1320, None)},
}
LEFT_OUT = {"without3": 3}

FIGURES = {
    "temperature_30.svg": "Students with 30 units in both layers: test errors against the "
    "temperature; the level line is what hard targets give",
    "temperature_300.svg": "The same with 300 units a layer",
    "without3_before.svg": "A student that never saw a 3, as trained (seed 0, test split)",
    "without3_after.svg": "The same student with the bias of 3 corrected",
    "soft_targets.svg": "Digits, none of them trained on, that the teacher finds most like another "
    "digit, and its probabilities at T = 1 and T = 4",
}

Summary = Mapping[str, Any]


def _rows_of(summary: Summary, settings: Iterable[plan.Setting]) -> list[dict[str, Any]]:
    """One flat row for each run, in the order of the settings."""
    return [
        {
            "title": setting.title,
            "paper": setting.paper,
            "seed": run["seed"],
            "test": run["test"]["errors"],
            "nll": run["test"]["nll"],
            "seconds": run["wall_time_s"],
        }
        for setting in settings
        for run in summary["runs"]
        if run["setting"] == setting.name
    ]


def main_table(summary: Summary) -> tables.Table:
    """The paper's test errors and ours, one row for each setting."""
    return tables.over_seeds(
        _rows_of(summary, plan.SETTINGS),
        by=(Column("title", "Network"), Column("paper", "Paper: test errors", "integer")),
        columns=(
            Column("test", "Test errors", "decimal", 1),
            Column("nll", "Test NLL", "decimal", 4),
            Column("seconds", "Seconds a run", "integer"),
        ),
    )


def bias_table(summary: Summary) -> tables.Table:
    """The networks trained without some digits, before and after the correction of their biases."""
    rows = []
    for setting in plan.SETTINGS:
        found = [run for run in summary["runs"] if run["setting"] == setting.name]
        for when in ("before", "after") if setting.biases else ():
            errors, of_them = PAPER_BIASES[setting.name][when]
            which = " and ".join(map(str, setting.biases))
            state = {"before": "as trained", "after": f"of {which} corrected"}[when]
            paper = {
                "title": setting.title,
                "biases": state,
                "paper": errors,
                "paper_left_out": of_them,
                "paper_offset": PAPER_BIASES[setting.name]["offset"] if when == "after" else None,
            }
            left_out = LEFT_OUT.get(setting.name)
            for run in found:
                matrix = np.array(run["biases"][when])
                wrong = matrix.sum(axis=1) - np.diag(matrix)
                rows.append(
                    {
                        **paper,
                        "seed": run["seed"],
                        "errors": int(wrong.sum()),
                        "left_out": None if left_out is None else int(wrong[left_out]),
                        "offset": run["biases"]["offset"] if when == "after" else None,
                    }
                )
    return tables.over_seeds(
        rows,
        by=(
            Column("title", "Student"),
            Column("biases", "Biases"),
            Column("paper_offset", "Paper: offset", "decimal", 1),
            Column("paper", "Paper: test errors", "integer"),
            Column("paper_left_out", "Paper: on threes", "integer"),
        ),
        columns=(
            Column("offset", "Offset", "decimal", 1),
            Column("errors", "Test errors", "decimal", 1),
            Column("left_out", "On threes", "decimal", 1),
        ),
    )


def _evidence(summary: Summary) -> str:
    """One paragraph on the runs: their number, hardware, date and duration."""
    libraries = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    data = summary["data"]
    label = f"**{summary['label']}**\n\n" if summary["label"] else ""
    return (
        f"{label}{len(summary['runs'])} runs, {summary['wall_time_s'] / 60:.0f} minutes on "
        f"{summary['hardware']}, finished on {summary['date']}, by\n\n    {summary['command']}\n\n"
        f"{data['train']:,} training and {data['test']:,} test images; {libraries}; "
        f"revision {summary['git_revision'] or 'not recorded'}.\n"
    )


def block(summary: Summary, drawn: Sequence[str]) -> str:
    """The block between the markers of the README.

    Args:
      summary: the content of summary.json.
      drawn: names of the figures that exist.
    """
    parts = [
        _evidence(summary),
        tables.markdown(main_table(summary)),
        "Mean ± sample standard deviation over seeds (number of seeds), of the last epoch. The "
        "test split has chosen nothing.\n",
    ]
    if any("biases" in run for run in summary["runs"]):
        parts += [
            tables.markdown(bias_table(summary)),
            "The offset was chosen on 5,000 held-out images: the one with the fewest errors among "
            "-20, -19.9 .. 20, the middle one of equals.\n",
        ]
    parts += [f"![{FIGURES[name]}](results/{name})\n\n{FIGURES[name]}.\n" for name in drawn]
    return "\n".join(parts)


def draw(summary: Summary, folder: pathlib.Path, digits: Mapping[str, np.ndarray] | None) -> None:
    """Writes every figure for which there are results; that of the digits only if they are given.

    Args:
      summary: the content of summary.json.
      folder: the folder of the figures.
      digits: from `analysis.ambiguous`.
    """
    errors: dict[str, list[int]] = {}
    for run in summary["runs"]:
        errors.setdefault(run["setting"], []).append(run["test"]["errors"])
        if run["setting"] == "without3" and run["seed"] == 0:
            for when in ("before", "after"):
                figure = figures.confusion_matrix(run["biases"][when], DIGITS)
                figures.save(figure, folder / f"without3_{when}.svg")
    for width, temperatures in plan.TEMPERATURES.items():
        part = f"units{width}"
        found = {t: errors[f"{part}-t{t:g}"] for t in temperatures if f"{part}-t{t:g}" in errors}
        if found:
            hard = errors.get(f"{part}-hard")
            figure = figures.error_against_temperature(
                {f"2x{width}": found},
                baselines={"hard targets": statistics.fmean(hard)} if hard else None,
                ylabel=f"Test errors (of {summary['data']['test']:,})",
            )
            figures.save(figure, folder / f"temperature_{width}.svg")
    if digits is not None and len(digits["images"]):
        figure = figures.soft_target_grid(
            digits["images"], digits["labels"], digits["logits"], DIGITS, temperatures=(1, 4)
        )
        figures.save(figure, folder / "soft_targets.svg")


def write_readme(summary: Summary, readme: pathlib.Path, results: pathlib.Path) -> pathlib.Path:
    """Replaces the block between the markers of the README; the prose around it is kept.

    Args:
      summary: the content of summary.json.
      readme: the file; if it does not exist, it is made of the markers alone.
      results: the folder of the figures.

    Returns:
      The path of the README.

    Raises:
      UsageError: the file has no pair of markers.
    """
    drawn = [name for name in FIGURES if (results / name).exists()]
    return markers.fill(readme, lambda: block(summary, drawn))
