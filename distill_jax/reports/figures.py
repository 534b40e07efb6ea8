"""Figures of a run or a study: arrays in, `matplotlib.figure.Figure` out.

Equal arrays give equal bytes of SVG (`svg`, `save`). Left out on purpose: computing what is drawn,
and selecting a best run.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib.colors
import numpy as np
from matplotlib.artist import Artist
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from distill_jax.reports.figure_style import (
    ACCENT,
    GRID,
    INK,
    MARKERS,
    MUTED,
    SERIES,
    label_text,
    save,
    style,
    svg,
)
from distill_jax.reports.soft_targets import soft_target_grid
from distill_jax.reports.tables import mean_and_deviation

__all__ = [
    "class_accuracy",
    "confusion_matrix",
    "error_against_temperature",
    "learning_curves",
    "reliability_diagram",
    "save",
    "soft_target_grid",
    "style",
    "svg",
]

Run = Sequence[Mapping[str, Any]]
"""The records of a metrics.jsonl."""


def learning_curves(metrics_by_run: Mapping[str, Run | Sequence[Run]]) -> Figure:
    """Training loss, and validation accuracy, NLL and answer scores, against the step.

    Args:
      metrics_by_run: label -> the records of its metrics.jsonl, or a list of these, one for each
        seed. Several seeds are drawn as their mean with a band of ± one sample standard deviation,
        at the steps that all of them have.

    Returns:
      One panel for each metric that any run has measured, at least one panel.
    """
    panels = [
        ("train", "loss", "Training loss", 1.0),
        ("validation", "accuracy", "Validation accuracy (%)", 100.0),
        ("validation", "nll", "Validation NLL", 1.0),
        ("validation", "rouge_l", "Validation ROUGE-L (%)", 100.0),
        ("validation", "exact_match", "Validation exact match (%)", 100.0),
    ]
    curves = {
        label: [_curve_over_seeds(_seeds(runs), *panel[:2]) for panel in panels]
        for label, runs in metrics_by_run.items()
    }
    shown = [
        j for j in range(len(panels)) if any(len(curve[j][0]) for curve in curves.values())
    ] or [0]
    with style():
        figure = Figure(figsize=(3.1 * max(len(shown), 2), 2.9))
        all_axes = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, j in zip(all_axes, shown, strict=True):
            axes.set_title(panels[j][2])
            axes.set_xlabel("Step")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            for i, label in enumerate(metrics_by_run):
                steps, mean, deviation = curves[label][j]
                mean, deviation = panels[j][3] * mean, panels[j][3] * deviation
                colour = SERIES[i % len(SERIES)]
                few = {"marker": MARKERS[i % len(MARKERS)]} if len(steps) <= 15 else {}
                axes.plot(steps, mean, color=colour, label=label_text(label), **few)
                if deviation.any():
                    axes.fill_between(
                        steps, mean - deviation, mean + deviation, color=colour, alpha=0.18, lw=0
                    )
        if len(metrics_by_run) > 1:
            _legend(figure, all_axes[0].lines)
    return figure


def reliability_diagram(reliability: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Accuracy against confidence in bins, and the number of predictions in each bin.

    The title of each panel gives the expected calibration error, sum_b (n_b / N) |accuracy_b -
    confidence_b| over the bins drawn (Guo et al. 2017, equation 3).

    Args:
      reliability: label -> {"count", "confidence", "accuracy"}, each [B] over B equal bins of
        [0, 1]: the number of predictions in the bin, their mean confidence, and the share that is
        correct. Empty bins are skipped, whatever their means.

    Returns:
      One column for each label: the diagram above, the counts below.
    """
    with style():
        figure = Figure(figsize=(max(3.5 * len(reliability), 3.5), 4.1))
        grid = figure.subplots(
            2, len(reliability), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1]
        )
        for i, (label, bins) in enumerate(reliability.items()):
            upper, lower = grid[0][i], grid[1][i]
            count = _numbers(bins["count"])
            accuracy, confidence = _numbers(bins["accuracy"]), _numbers(bins["confidence"])
            width = 1 / len(count)
            centre = (np.arange(len(count)) + 0.5) * width
            full = count > 0
            share = count[full] / max(count.sum(), 1)
            gap = np.abs(accuracy - confidence)[full]
            upper.set_title(f"{label_text(label)}: ECE {100 * np.sum(share * gap):.2f} %")
            upper.bar(centre[full], accuracy[full], width * 0.92, color=SERIES[0], alpha=0.6, lw=0)
            upper.plot([0, 1], [0, 1], color=INK, lw=1, ls=(0, (4, 3)))
            upper.plot(confidence[full], accuracy[full], ls="none", marker="o", ms=4, color=ACCENT)
            upper.set(xlim=(0, 1), ylim=(0, 1.02))
            lower.bar(centre, count, width * 0.92, color=MUTED, alpha=0.7, lw=0)
            lower.set_xlabel("Confidence")
            lower.grid(axis="x", visible=False)
        grid[0][0].set_ylabel("Accuracy")
        grid[1][0].set_ylabel("Predictions")
    return figure


def confusion_matrix(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """How often each class was predicted for each true class.

    Args:
      matrix: counts [K, K]; row: true class, column: predicted class.
      class_names: K names.

    Returns:
      A square whose cells are shaded by their share of the true class; up to 20 classes also show
      the counts.
    """
    matrix = np.asarray(matrix, np.int64)
    names = [label_text(name) for name in class_names]
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"matrix {matrix.shape}: expected {(len(names), len(names))}")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shade = np.empty((*matrix.shape, 4))
    shade[..., :3] = matplotlib.colors.to_rgb(SERIES[0])
    shade[..., 3] = share**0.6  # brightens rare confusions, the interesting ones
    few = len(names) <= 20
    longest = max(map(len, names))
    size = (0.9 + 0.36 * len(names) if few else 5.5) + 0.07 * longest
    with style():
        figure = Figure(figsize=(size + 0.2, size))
        axes = figure.subplots()
        axes.imshow(shade, interpolation="none")
        axes.set(xlabel="Predicted class", ylabel="True class")
        axes.grid(visible=False)
        axes.spines[:].set(visible=True, color=GRID)
        ticks = np.arange(len(names)) if len(names) <= 40 else np.arange(0, len(names), 10)
        axes.set_xticks(ticks, [names[k] for k in ticks], rotation=90 if longest > 2 else 0)
        axes.set_yticks(ticks, [names[k] for k in ticks])
        axes.tick_params(length=0, labelsize=8 if few else 6.5)
        for i, j in np.argwhere(matrix > 0) if few else ():
            colour = "#ffffff" if shade[i, j, 3] > 0.8 else INK
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", size=7.5, color=colour)
    return figure


def class_accuracy(
    accuracy: Mapping[str, Sequence[float | None]], class_names: Sequence[str], *, most: int = 25
) -> Figure:
    """The accuracy on each class, with a dot for each network.

    Args:
      accuracy: label (student, teacher) -> [K] fractions; None for a class without examples.
      class_names: K names.
      most: the most classes that are drawn; of more, those with the lowest accuracy of the first
        network.

    Returns:
      One line for each class, in the order of the classes, or from the lowest accuracy if classes
      were omitted.
    """
    values = {label: np.array(row, np.float64) for label, row in accuracy.items()}
    first = next(iter(values.values()))
    shown = np.arange(len(first))
    if len(first) > most:
        shown = np.argsort(first, kind="stable")[:most]  # NaN comes last
    with style():
        figure = Figure(figsize=(6.4, 0.9 + 0.21 * len(shown)))
        axes = figure.subplots()
        height = np.arange(len(shown))
        for i, (label, row) in enumerate(values.items()):
            axes.plot(
                100 * row[shown],
                height,
                ls="none",
                marker=MARKERS[i],
                ms=6,
                mew=1.4,
                color=SERIES[i],
                mfc=SERIES[i] if i == 0 else "none",  # keeps equal values visible
                label=label_text(label),
            )
        axes.set_yticks(height, [label_text(class_names[int(k)]) for k in shown])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(xlabel="Accuracy (%)")
        axes.margins(x=0.04, y=0.6 / max(len(shown), 1))
        _legend(figure, axes.lines)
    return figure


def error_against_temperature(
    errors: Mapping[str, Mapping[float, Sequence[float]]],
    *,
    baselines: Mapping[str, float] | None = None,
    ylabel: str = "Test error (%)",
) -> Figure:
    """The student's error against the distillation temperature, one line for each width.

    Args:
      errors: label (a student's width) -> temperature -> the error of each seed. Several seeds are
        drawn as their mean with an error bar of ± one sample standard deviation.
      baselines: label -> an error drawn as a horizontal line, such as the teacher's.
      ylabel: the label of the errors, with their unit.

    Returns:
      One panel with a logarithmic temperature axis.
    """
    with style():
        figure = Figure(figsize=(6.4, 3.7))
        axes = figure.subplots()
        drawn: set[float] = set()
        for i, (label, by_temperature) in enumerate(errors.items()):
            temperatures = sorted(by_temperature)
            drawn.update(temperatures)
            spread = [mean_and_deviation(list(by_temperature[t])) for t in temperatures]
            axes.errorbar(
                temperatures,
                [mean for mean, _ in spread],
                yerr=[deviation or 0.0 for _, deviation in spread],
                color=SERIES[i % len(SERIES)],
                marker=MARKERS[i % len(MARKERS)],
                capsize=2.5,
                elinewidth=1,
                label=label_text(label),
            )
        for label, level in (baselines or {}).items():
            axes.axhline(level, color=MUTED, lw=1, ls=(0, (4, 3)))
            axes.annotate(
                label_text(label),
                (1, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                size=8,
                color=MUTED,
            )
        axes.set_xscale("log")
        axes.set_xticks(sorted(drawn), [f"{t:g}" for t in sorted(drawn)])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="Temperature T (log scale)", ylabel=ylabel)
        _legend(figure, axes.containers)
    return figure


def scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
) -> Figure:
    """One point for each run; each label has its own colour and marker.

    Args:
      points: label -> (x, y) of each of its runs.
      xlabel: the label of the horizontal axis, with its unit.
      ylabel: the label of the vertical axis.
      log_x: whether the horizontal axis is logarithmic.
    """
    with style():
        figure = Figure(figsize=(6.4, 4.4))
        axes = figure.subplots()
        for i, (label, members) in enumerate(points.items()):
            axes.plot(
                *zip(*members, strict=True),
                ls="none",
                color=SERIES[i % len(SERIES)],
                marker=MARKERS[i // len(SERIES) % len(MARKERS)],
                label=label_text(label),
            )
        if log_x:
            axes.set_xscale("log")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend(figure, axes.lines)
    return figure


def _legend(figure: Figure, handles: Sequence[Artist | Container]) -> None:
    # The labels are explicit because matplotlib's automatic legend skips those that begin with "_".
    labels = [str(handle.get_label()) for handle in handles]
    artists = cast(Sequence[Artist], handles)  # a legend takes containers too
    figure.legend(artists, labels, loc="outside upper left", ncols=min(len(labels), 4))


def _seeds(runs: Run | Sequence[Run]) -> Sequence[Run]:
    """The runs of several seeds; a single run as a list of one."""
    if not runs or isinstance(runs[0], Mapping):
        return [cast(Run, runs)]
    return cast(Sequence[Run], runs)


def _curve_over_seeds(
    runs: Sequence[Run], split: str, key: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and deviation [S] of one metric at the steps that all runs have."""
    by_step = [
        {r["step"]: r[key] for r in run if r.get("split") == split and key in r} for run in runs
    ]
    steps = sorted(set.intersection(*map(set, by_step)))
    values = np.array([_numbers([one[step] for step in steps]) for one in by_step])
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
    return np.array(steps), values.mean(axis=0), deviation


def _numbers(values: ArrayLike) -> np.ndarray:
    """float64 [...]; None, which stands for non-finite values in a log, becomes NaN."""
    return np.array(values, dtype=np.float64)
