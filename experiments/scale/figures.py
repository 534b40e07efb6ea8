"""The study's two figures: the parts of a step by target, and what a million tokens cost."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from distill_jax.reports import figure_style
from experiments.scale import plan

STEPS, COST = "steps.svg", "cost.svg"
STEPS_CAPTION = (
    "Seconds that compute, HBM and interconnect take in a step at the chip's peaks, each alone: "
    "the highest is the bound, which no step can beat; a cross does not fit, a dash was not planned"
)
COST_CAPTION = (
    "Chip-seconds a million tokens, at the step's bound: against chips, and against the teacher's "
    "parameters on " + plan.HUB
)
_PARTS = {"compute": "compute", "hbm": "HBM", "interconnect": "interconnect"}
_WIDTH = 0.26  # of a bar

Row = Mapping[str, Any]


def steps(rows: Sequence[Row]) -> Figure:
    """One panel for each pair, with a group of bars for each target."""
    with figure_style.style():
        figure = Figure(figsize=(8.4, 6.4))
        every = figure.subplots(len(plan.PAIRS), 1, sharex=True, sharey=True)
        for axes, pair in zip(every, plan.PAIRS, strict=True):
            axes.set_title(pair)
            axes.set_ylabel("Seconds a step")
            found = {
                row["target"]: row for row in filter(plan.by_rule, rows) if row["pair"] == pair
            }
            for place, target in enumerate(plan.TARGETS):
                _bars(axes, place, found.get(target))
        every[-1].set_xticks(
            list(range(len(plan.TARGETS))),
            [name.partition(":")[2].replace(":", "\n") for name in plan.TARGETS],
        )
        _logarithmic(every[0])
        every[0].set_xlim(-0.6, len(plan.TARGETS) - 0.4)
        known = {}
        for axes in every:
            handles, labels = axes.get_legend_handles_labels()
            known |= dict(zip(labels, handles, strict=True))
        figure.legend(known.values(), known.keys(), loc="outside upper left", ncols=len(_PARTS))
    return figure


def _bars(axes: Axes, place: int, row: Row | None) -> None:
    """The bars of one target; all are labelled, because a panel may lack some."""
    if row and row["step"]:
        for index, (part, label) in enumerate(_PARTS.items()):
            colour = figure_style.SERIES[index]
            axes.bar(place + (index - 1) * _WIDTH, row[part], _WIDTH, color=colour, label=label)
        return
    axes.annotate(
        "×" if row else "–",
        (place, 0),
        (0, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        color=figure_style.MUTED,
    )


def cost(rows: Sequence[Row]) -> Figure:
    """Cost against chips, by pair and chip, and against the teacher's size, by student."""
    with figure_style.style():
        figure = Figure(figsize=(8.4, 4.4))
        left, right = figure.subplots(1, 2)
        left.set_title("Chips")
        left.set_xlabel("Chips")
        left.set_ylabel("Chip-seconds a million tokens")
        left.set_xscale("log", base=2)
        _logarithmic(left)
        kinds = list(dict.fromkeys(_kind(target) for target in plan.TARGETS))
        for marker, pair in zip(figure_style.MARKERS, plan.PAIRS, strict=False):
            for colour, kind in zip(figure_style.SERIES, kinds, strict=False):
                line = [
                    row
                    for row in filter(plan.by_rule, rows)
                    if row["pair"] == pair and _kind(row["target"]) == kind and row["cost"]
                ]
                if line:
                    line.sort(key=lambda row: row["chips"])
                    left.plot(
                        [row["chips"] for row in line],
                        [row["cost"] for row in line],
                        color=colour,
                        marker=marker,
                        label=f"{pair}, {kind}",
                    )
        left.set_xticks(sorted(set(plan.TARGETS.values())), sorted(set(plan.TARGETS.values())))
        _legend(left)
        right.set_title("The teacher")
        right.set_xlabel("Teacher's parameters (10⁹; 0: none)")
        for index, pair in enumerate(plan.PAIRS):
            line = [
                row
                for row in rows
                if (row["pair"], row["target"], row["rows"])
                == (pair, plan.HUB, plan.rows(plan.HUB))
                and row["cost"]
                and plan.plain(row)
            ]
            if line:
                line.sort(key=lambda row: row["teacher_parameters"])
                right.plot(
                    [row["teacher_billions"] for row in line],
                    [row["cost"] for row in line],
                    color=figure_style.SERIES[index],
                    marker=figure_style.MARKERS[index],
                    label=f"{pair}: student {line[0]['student_billions']:.1f}",
                )
        right.set_xlim(left=-2)
        right.set_ylim(bottom=0)
        _legend(right)
    return figure


def _logarithmic(axes: Axes) -> None:
    """Makes the vertical axis logarithmic, with plain numbers as ticks."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6.5)


def _kind(target: str) -> str:
    return target.split(":")[1]


def draw(rows: Sequence[Row], folder: pathlib.Path) -> None:
    """Writes both figures."""
    figure_style.save(steps(rows), folder / STEPS)
    figure_style.save(cost(rows), folder / COST)
