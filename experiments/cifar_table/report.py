"""From the records of runs to the README's tables and plots; short schedules are kept separate."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.reports import figure_style, figures, tables
from distill_jax.reports.tables import Column
from experiments import markers
from experiments.cifar_table import plan, records

TIME, AGREEMENT = "accuracy_against_time.svg", "agreement_against_accuracy.svg"
NOTHING = "No run at the published schedule is on record yet.\n"


def table(found: Sequence[Mapping[str, Any]]) -> tables.Table:
    """Published figure | ours, mean ± sd (n) | difference, for each row in the plan's order."""
    order = {row.name: index for index, row in enumerate(plan.every_row())}
    rows = []
    for one in sorted(found, key=lambda record: (order[record["row"]], record["seed"])):
        row = plan.Row(one["dataset"], one["student"], one["teacher"], one["method"])
        published = row.published
        accuracy = 100 * one["last_epoch"]["accuracy"]
        rows.append(
            {
                **one,
                "published": f"{published[0]:.2f}" if published else tables.MISSING,
                "source": published[1] if published else tables.MISSING,
                "difference": accuracy - published[0] if published else None,
            }
        )
    return tables.over_seeds(
        rows,
        by=(
            Column("dataset", "Data"),
            Column("teacher", "Teacher"),
            Column("student", "Student"),
            Column("method", "Method"),
            Column("published", "Published %"),
            Column("source", "Source"),
        ),
        columns=(
            Column("last_epoch.accuracy", "Last epoch %", "percent"),
            Column("difference", "Difference", "decimal", 2),
            Column("best_epoch.accuracy", "Best epoch on the test set %", "percent"),
            Column("validation_chosen.accuracy", "Chosen on validation %", "percent"),
            Column("last_epoch.agreement", "Agreement %", "percent"),
            Column("last_epoch.ece", "ECE %", "percent"),
            Column("training_time_s", "Training, s", "integer"),
            Column("epochs", "Epochs", "general", 3),
        ),
    )


def draw(found: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> list[str]:
    """Draws accuracy against training time and agreement against accuracy; returns file names."""
    distilled = [one for one in found if "agreement" in one["last_epoch"]]
    drawn = []
    plots = (
        (TIME, found, lambda one: one["training_time_s"] / 60, "Training time (min, log scale)"),
        (AGREEMENT, distilled, lambda one: 100 * one["last_epoch"]["agreement"], "Agreement (%)"),
    )
    for name, members, value, title in plots:
        if not members:
            continue
        points: dict[str, list[tuple[float, float]]] = {}
        for one in members:
            label = one["method"] or "labels alone"
            accuracy = 100 * one["last_epoch"]["accuracy"]
            point = (value(one), accuracy) if name == TIME else (accuracy, value(one))
            points.setdefault(label, []).append(point)
        axes = (title, "Test accuracy (%)") if name == TIME else ("Test accuracy (%)", title)
        figure = figures.scatter(points, xlabel=axes[0], ylabel=axes[1], log_x=name == TIME)
        figure_style.save(figure, folder / name)
        drawn.append(name)
    return drawn


def write(target: pathlib.Path) -> pathlib.Path:
    """Updates README.md of a folder from the records in its results/.

    Args:
      target: the study's folder, whose README has the two markers, or another one.

    Raises:
      UsageError: results/ has records of full and of short schedules, or the README no markers.
    """
    results = target / "results"
    results.mkdir(parents=True, exist_ok=True)
    found = records.read(results)
    if len({one["short"] for one in found}) > 1:
        raise UsageError(f"{results}: runs of full and of short schedules; expected one kind")
    body = NOTHING
    if found:
        body = _body(found, draw(found, results))
    return markers.fill(target / "README.md", lambda: body, title="# CIFAR table\n\n")


def _body(found: Sequence[Mapping[str, Any]], drawn: Sequence[str]) -> str:
    parts = []
    if found[0]["short"]:
        parts.append(
            "**Short schedules: these figures show that everything runs, and compare with nothing "
            "that is published.**\n"
        )
    devices = ", ".join(sorted({one["device"] for one in found}))
    dates = sorted({one["date"] for one in found})
    commands = sorted({one["command"] for one in found})
    parts.append(f"{len(found)} runs on {devices}, {dates[0]} to {dates[-1]}, by\n")
    parts += [f"    {command}\n" for command in commands]
    parts.append("\n" + tables.markdown(table(found)))
    parts += [f"\n![{name}](results/{name})\n" for name in drawn]
    return "\n".join(parts)
