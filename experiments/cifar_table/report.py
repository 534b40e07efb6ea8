"""From the records of runs to the README's tables and plots; short schedules are kept separate.

The runs at published schedules are also the table of the front page; a ranking has a page apart.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.reports import figure_style, figures, tables
from distill_jax.reports.tables import Column
from experiments import markers
from experiments.cifar_table import plan, published, records

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIME, AGREEMENT = "accuracy_against_time.svg", "agreement_against_accuracy.svg"
NOTHING = "No run at the published schedule is on record yet.\n"


def table(found: Sequence[Mapping[str, Any]]) -> tables.Table:
    """Published | ours, mean ± sd (n) | difference | hours, for each row in the plan's order."""
    return tables.over_seeds(
        [_with_texts(one) for one in _in_order(found)],
        by=(
            Column("dataset", "Data"),
            Column("teacher", "Teacher"),
            Column("student", "Student"),
            Column("method", "Method"),
            Column("published", "Published %"),
            Column("source", "Source"),
            Column("teacher_text", "Teacher %, published / ours"),
            Column("hardware", "Hardware"),
        ),
        columns=(
            Column("last_epoch.accuracy", "Ours, last epoch %", "percent"),
            Column("difference", "Difference", "decimal", 2),
            Column("best_epoch.accuracy", "Best epoch on the test set %", "percent"),
            Column("validation_chosen.accuracy", "Chosen on validation %", "percent"),
            Column("last_epoch.agreement", "Agreement %", "percent"),
            Column("last_epoch.ece", "ECE %", "percent"),
            Column("hours", "Hours", "decimal", 1),
            Column("cpu_hours", "Processor hours", "decimal", 1),
            Column("answers.cpu_hours", "Processor hours of the answers", "decimal", 1),
            Column("resumes", "Resumes", "decimal", 0),
            Column("epochs", "Epochs", "general", 3),
        ),
    )


def _in_order(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    order = {row.name: index for index, row in enumerate(plan.every_row())}
    return sorted(found, key=lambda record: (order[record["row"]], record["seed"]))


def _with_texts(one: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the texts by which its row is known."""
    theirs, taught_by = one["published"], one["taught_by"]
    texts = dict.fromkeys(("published", "source", "teacher_text"), tables.MISSING)
    if theirs:
        texts["published"] = f"{100 * theirs['accuracy']:.2f}"
        texts["source"] = theirs["source"]
    if taught_by:
        teacher = (theirs or {}).get("teacher_accuracy")
        before = f"{100 * teacher:.2f}" if teacher else tables.MISSING
        ours = f"{100 * taught_by['accuracy']:.2f} ({taught_by['source']})"
        texts["teacher_text"] = f"{before} / {ours}"
    return {**one, **texts}


def front_page(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of the project's front page: figure published, figure ours, command, hours."""
    if not found:
        return f"{NOTHING}\n"
    rows = []
    for one in map(_with_texts, _in_order(found)):
        method = f"{one['method']} from {one['teacher']}" if one["method"] else "labels alone"
        seed = f", seed {one['seed']}"
        rows.append(
            {
                **one,
                "what": f"{one['dataset']}, {one['student']}, {method}{seed}",
                "rows": f"`--rows={one['row']}`",
                "time": f"{one['hours']:.1f} ({one['cpu_hours']:.1f})",
                "short_revision": (one["git_revision"] or "")[:9],
            }
        )
    columns = (
        Column("what", "Test accuracy, last epoch"),
        Column("published", "Published %"),
        Column("last_epoch.accuracy", "Ours %", "percent"),
        Column("rows", "By `python -m experiments.cifar_table.run`"),
        Column("time", "Hours, wall (processor)"),
        Column("hardware", "Hardware"),
        Column("short_revision", "Revision"),
    )
    page = "[experiments/cifar_table](experiments/cifar_table/README.md)"
    return f"{tables.markdown(tables.listing(rows, columns))}\nWhole commands, teachers: {page}.\n"


def ranking(found: Sequence[Mapping[str, Any]]) -> tables.Table:
    """Methods by their accuracy after one short schedule, with the cost of a step of each."""
    alone = {(one["dataset"], one["student"]): one for one in found if not one["method"]}
    rows = []
    for one in sorted(found, key=lambda record: -record["last_epoch"]["accuracy"]):
        base = alone.get((one["dataset"], one["student"]))
        gain, cost = None, None
        if base and base is not one:
            gain = 100 * (one["last_epoch"]["accuracy"] - base["last_epoch"]["accuracy"])
            cost = one["step"]["step_cpu_time_s"] / max(base["step"]["step_cpu_time_s"], 1e-9)
        rows.append(
            {
                **_with_texts(one),
                "method": one["method"] or "labels alone",
                "gain": gain,
                "cost": cost,
                "step_cpu_ms": 1000 * one["step"]["step_cpu_time_s"],
                "step_ms": 1000 * one["step"]["step_time_s"],
            }
        )
    columns = (
        Column("method", "Method"),
        Column("seed", "Seed"),
        Column("last_epoch.accuracy", "Last epoch %", "percent"),
        Column("gain", "Over labels alone", "decimal", 2),
        Column("last_epoch.agreement", "Agreement %", "percent"),
        Column("step_cpu_ms", "Step, processor ms", "decimal", 0),
        Column("cost", "x labels alone", "decimal", 2),
        Column("step_ms", "Step, wall ms", "decimal", 0),
        Column("hours", "Hours", "decimal", 2),
    )
    return tables.listing(rows, columns)


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
    if target == HERE:
        markers.fill(ROOT / "README.md", lambda: front_page(found))
    body = NOTHING
    if found and found[0]["ranking"]:
        body = _ranking_body(found)
    elif found:
        body = _body(found, draw(found, results))
    return markers.fill(target / "README.md", lambda: body, title="# CIFAR table\n\n")


def _ranking_body(found: Sequence[Mapping[str, Any]]) -> str:
    epochs = sorted({f"{one['config']['training.epochs']:g}" for one in found})
    taught = sorted({_with_texts(one)["teacher_text"] for one in found if one["taught_by"]})
    return "\n".join(
        [
            f"**{' and '.join(epochs)} epochs: figures to compare with each other, and with "
            "nothing that is published.**\n",
            _runs(found),
            f"Teacher: {', '.join(taught)}.\n",
            tables.markdown(ranking(found)),
        ]
    )


def _runs(found: Sequence[Mapping[str, Any]]) -> str:
    """How many runs, on what, when, at which revisions and by which commands."""
    hardware = ", ".join(sorted({one["hardware"] for one in found}))
    dates = sorted({one["date"] for one in found})
    revisions = {one["git_revision"] or "no repository" for one in found}
    revisions |= {other for one in found for other in one["other_revisions"] if other}
    commands = sorted({one["command"] for one in found})
    at = ", ".join(sorted(revision[:9] for revision in revisions))
    lines = [f"{len(found)} runs on {hardware}, {dates[0]} to {dates[-1]}, at {at}, by\n"]
    lines += [f"    {command}\n" for command in commands]
    return "\n".join(lines)


def _body(found: Sequence[Mapping[str, Any]], drawn: Sequence[str]) -> str:
    parts = []
    if found[0]["short"]:
        parts.append(
            "**Short schedules: these figures show that everything runs, and compare with nothing "
            "that is published.**\n"
        )
    parts += [_runs(found), tables.markdown(table(found))]
    sources = {one["published"]["source"] for one in found if one["published"]}
    parts += [f"- {name}: {published.SOURCES[name]}.\n" for name in sorted(sources)]
    notes = {one["row"]: one["published"]["note"] for one in found if one["published"]}
    parts += [f"- {row}: {note}.\n" for row, note in notes.items() if note]
    parts += [f"\n![{name}](results/{name})\n" for name in drawn]
    return "\n".join(parts)
