"""Draws the figure of the front page from the committed results of ten seeds.

    python -m experiments.demo.figure      # writes docs/figures/demo.svg

A dot is a seed, a bar the mean; accuracy on the left, the negative log-likelihood on the right.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill_jax.reports import figure_style

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "experiments/demo/results/ten_seeds.json"
FIGURE = ROOT / "docs/figures/demo.svg"

STUDENTS = {
    "student": "with the teacher",
    "smoothed": "smoothed labels",
    "baseline": "labels alone",
}
PANELS = (("accuracy", 100.0, "Test accuracy (%)"), ("nll", 1.0, "Test NLL"))

Results = Sequence[dict[str, Any]]


def students(results: Results) -> Figure:
    """Test accuracy and NLL of the three students: a dot a seed, a bar at the mean."""
    with figure_style.style():
        figure = Figure(figsize=(7.2, 2.0))
        for axes, (metric, factor, title) in zip(
            figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True
        ):
            axes.set_title(title)
            for row, role in enumerate(STUDENTS):
                values = [
                    factor * result["final"]["test"][metric]
                    for result in results
                    if result["role"] == role
                ]
                _draw_seeds(axes, row, values, figure_style.SERIES[row])
            axes.set_yticks(range(len(STUDENTS)), list(STUDENTS.values()))
            axes.set_ylim(-0.5, len(STUDENTS) - 0.5)
            axes.grid(axis="y", visible=False)
    return figure


def _draw_seeds(axes: Axes, row: int, values: Sequence[float], colour: str) -> None:
    """The seeds side by side, so that equal values stay visible, and their mean."""
    offsets = np.linspace(-0.22, 0.22, len(values))
    axes.plot(values, row + offsets, "o", color=colour, alpha=0.6, markeredgewidth=0)
    axes.vlines(np.mean(values), row - 0.32, row + 0.32, color=colour, linewidth=2)


def main() -> None:
    """Draws the committed results."""
    FIGURE.parent.mkdir(exist_ok=True)
    figure_style.save(students(json.loads(RESULTS.read_text())), FIGURE)


if __name__ == "__main__":
    main()
