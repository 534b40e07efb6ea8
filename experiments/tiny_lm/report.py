"""From the summary to the study's files: tables and answers in the README, and a figure.

The block between the two markers of the README is made from results/summary.json, so that its
numbers cannot drift from the measured ones. Left out on purpose: training and measuring.
"""

import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from distill_jax.reports import figure_style, tables
from distill_jax.reports.tables import Column
from experiments import markers
from experiments.tiny_lm import plan

SUMMARY = "summary.json"
SHOWN = 110  # characters of an answer
CURVES = "curves.svg"
CAPTION = (
    "Held-out NLL against the tokens of the text that a student has read; mean over seeds, in a "
    "band of ± one standard deviation"
)

Summary = Mapping[str, Any]


def main_table(summary: Summary) -> tables.Table:
    """The teacher's row, then one row for each arm in the order of the plan."""
    teacher = summary["teacher"]
    rows = [
        {
            "title": "teacher",
            "documents": summary["data"]["documents"]["teacher.jsonl"],
            "seconds": teacher["training_time_s"],
            "thousands": teacher["learned_tokens"] / 1000,
            **teacher["test"],
        }
    ]
    rows += [
        {
            **run["test"],
            "title": arm.title,
            "documents": run["documents"],
            "seed": run["seed"],
            "seconds": run["training_time_s"],
            "thousands": run["learned_tokens"] / 1000,
        }
        for arm in plan.ARMS
        for run in summary["runs"]
        if run["arm"] == arm.name
    ]
    return tables.over_seeds(
        rows,
        by=(Column("title", "Trained by"), Column("documents", "Documents", "integer")),
        columns=(
            Column("perplexity", "Perplexity", "decimal", 3),
            Column("kl", "KL from the teacher", "decimal", 3),
            Column("agreement", "Agreement (%)", "percent"),
            Column("rouge_l", "ROUGE-L (%)", "percent"),
            Column("thousands", "Tokens learned (thousands)", "integer"),
            Column("seconds", "Seconds", "integer"),
        ),
    )


def against_the_text(summary: Summary) -> tables.Table:
    """Held-out NLL of each arm minus that of the text alone with the same seed and documents."""
    nll = {(run["arm"], run["seed"]): run["test"]["nll"] for run in summary["runs"]}
    rows = []
    for arm in plan.ARMS:
        baseline = "few_hard" if arm.name.startswith("few_") else "hard"
        rows += [
            {
                "title": arm.title,
                "seed": seed,
                "gain": nll[name, seed] - nll[baseline, seed],
            }
            for name, seed in nll
            if name == arm.name != baseline
        ]
    return tables.over_seeds(
        rows,
        by=(Column("title", "Trained by"),),
        columns=(Column("gain", "Test NLL, less that of the text alone", "decimal", 4),),
    )


def _evidence(summary: Summary) -> str:
    """One paragraph on the runs: their number, hardware, date and duration."""
    libraries = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    data, written, teacher = summary["data"], summary["written"], summary["teacher"]
    label = f"**{summary['label']}**\n\n" if summary["label"] else ""
    students = summary["runs"]
    return (
        f"{label}A teacher of {teacher['parameters']:,} parameters and {len(students)} students of "
        f"{students[0]['parameters']:,}, {students[0]['steps']} steps of {plan.ROWS} documents "
        f"each; {summary['wall_time_s'] / 60:.0f} minutes in all on {summary['hardware']}, "
        f"finished on {summary['date']}, by\n\n    {summary['command']}\n\n"
        f"{data['test_tokens']:,} test tokens of {data['documents']['test.jsonl']} documents, "
        f"{data['answered_prompts']} of which are answered (ROUGE-L). The teacher wrote "
        f"{written['written']:,} solutions in {written['seconds']:.0f} seconds, and ended "
        f"{written['kept']:,} of them itself. {libraries}; revision "
        f"{summary['git_revision'] or 'not recorded'}.\n"
    )


def _answers(summary: Summary) -> str:
    """The greedy answers to the first prompts, side by side."""
    parts = []
    for sample in summary["samples"]:
        parts.append(f"> {_line(sample['prompt'])}\n")
        lines = [("the text itself", sample["reference"]), ("teacher", sample["teacher"])]
        lines += [(arm.title, sample[arm.name]) for arm in plan.ARMS if arm.name in sample]
        parts.append(
            tables.markdown(
                tables.listing(
                    [{"who": who, "answer": _line(answer)} for who, answer in lines],
                    (Column("who", "Trained by"), Column("answer", "Greedy answer")),
                )
            )
        )
    return "\n".join(parts)


def _line(answer: str) -> str:
    """A text on one line, and no more than shows how it goes on: most of these repeat."""
    line = " / ".join(answer.strip().split("\n"))
    return line if len(line) <= SHOWN else line[:SHOWN] + " …"


def block(summary: Summary) -> str:
    """The block between the markers of the README."""
    return "\n".join(
        [
            _evidence(summary),
            tables.markdown(main_table(summary)),
            "Test documents after the last step; mean ± sample standard deviation over seeds "
            "(number of seeds). Tokens learned: of the text, with the batches that a student wrote "
            "in place of it counted as the text's; the teacher's are those of its fine-tuning. "
            "Seconds: of training alone.\n",
            tables.markdown(against_the_text(summary)),
            "Seed by seed, the same documents; below zero is better.\n",
            f"![{CAPTION}](results/{CURVES})\n\n{CAPTION}.\n",
            _answers(summary),
        ]
    )


def curves(summary: Summary) -> Figure:
    """Held-out NLL against tokens read: one panel for all the text, one for an eighth of it."""
    panels = {
        "All the text": [arm for arm in plan.ARMS if not arm.name.startswith("few_")],
        "An eighth of it": [arm for arm in plan.ARMS if arm.name.startswith("few_")],
    }
    with figure_style.style():
        figure = Figure(figsize=(8.4, 4.6))
        for axes, (title, arms) in zip(
            figure.subplots(1, 2, sharey=True), panels.items(), strict=True
        ):
            axes.set_title(title)
            axes.set_xlabel("Tokens learned (thousands)")
            for index, arm in enumerate(arms):
                runs = [run for run in summary["runs"] if run["arm"] == arm.name]
                if not runs:
                    continue
                per_step = statistics.fmean(run["learned_tokens"] / run["steps"] for run in runs)
                points = list(zip(*(run["curve"] for run in runs), strict=True))
                places = [at[0]["step"] * per_step / 1000 for at in points]
                spread = [tables.mean_and_deviation([one["nll"] for one in at]) for at in points]
                colour = figure_style.SERIES[index % len(figure_style.SERIES)]
                marker = figure_style.MARKERS[index // len(figure_style.SERIES)]
                mean = [value for value, _ in spread]
                axes.plot(places, mean, color=colour, marker=marker, label=arm.title)
                low, high = (
                    [value + sign * (deviation or 0.0) for value, deviation in spread]
                    for sign in (-1, 1)
                )
                axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)
            axes.axhline(
                summary["teacher"]["test"]["nll"],
                color=figure_style.MUTED,
                ls="--",
                label="teacher",
            )
        first = figure.axes[0]
        first.set_ylabel("NLL (nats a token)")
        # The arms of the second panel have the colours of their like in the first.
        figure.legend(*first.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def draw(summary: Summary, folder: pathlib.Path) -> None:
    """Writes the figure."""
    figure_style.save(curves(summary), folder / CURVES)


def write_readme(summary: Summary, readme: pathlib.Path) -> pathlib.Path:
    """Replaces the block between the markers of the README; the prose around it is kept.

    Args:
      summary: the content of summary.json.
      readme: the file; if it does not exist, it is made of the markers alone.

    Returns:
      The path of the README.

    Raises:
      UsageError: the file has no pair of markers.
    """
    return markers.fill(readme, lambda: block(summary))
