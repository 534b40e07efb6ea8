"""The table and the pictures of the study, from results/."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from distill_jax.errors import UsageError
from distill_jax.reports import figure_style
from distill_jax.storage import write_atomically
from experiments import markers
from experiments.smaller_twice import plan

_MIB = 2**20
_TYPES = {"f16": "float16", "q8_0": "int8 (Q8_0)", "q4_0": "int4 (Q4_0)"}


def save(summary: Mapping[str, Any], home: pathlib.Path) -> None:
    """Writes results/tokens-N.json, one file for each budget, and everything made of it."""
    (home / "results").mkdir(parents=True, exist_ok=True)
    content = json.dumps(summary, indent=1, sort_keys=True) + "\n"
    write_atomically(home / "results" / f"tokens-{summary['tokens']}.json", content)
    write(home)


def write(home: pathlib.Path) -> None:
    """Writes the table of README.md and the pictures, of the largest budget that is there."""
    files = sorted((home / "results").glob("tokens-*.json"), key=_budget)
    if not files:
        raise UsageError(f"{home / 'results'}: expected tokens-N.json, which the study writes")
    summary = json.loads(files[-1].read_text())
    markers.fill(home / "README.md", lambda: table(summary), title="# Smaller twice\n\n")
    for quantity, label in (("bytes", "MiB on disk"), ("tokens_per_second", "tokens a second")):
        figure_style.save(draw(summary, quantity, label), home / "results" / f"{quantity}.svg")


def _budget(file: pathlib.Path) -> int:
    return int(file.stem.removeprefix("tokens-"))


def joined(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows with their speeds, and in parts of the teacher's float16 file."""
    rows = [{**row, **summary["speeds"][row["name"]]} for row in summary["rows"]]
    first = next(row for row in rows if row["model"] == "teacher" and row["type"] == "f16")
    for row in rows:
        row["part_of_bytes"] = row["bytes"] / first["bytes"]
        row["part_of_time"] = first["tokens_per_second"] / row["tokens_per_second"]
        row["part_of_rouge"] = row["rouge_l"] / first["rouge_l"]
    return rows


def title(row: Mapping[str, Any]) -> str:
    """What a row is called in table and pictures."""
    model = row["model"]
    if model != "teacher":
        layers, method, seed = model.split("-")
        how = {"text": "the text alone", "stored": "the teacher's stored answers"}[method]
        model = f"{layers} layers, {how}" + ("" if seed == "seed0" else f", {seed}")
    kind = _TYPES[row["type"]]
    trained = row["model"] != "teacher" and row["type"] == "q4_0"
    how = ", quantization-aware" if row["aware"] else ", after training" if trained else ""
    return f"{model}: {kind}{how}"


def table(summary: Mapping[str, Any]) -> str:
    """The block between the markers of README.md."""
    rows = joined(summary)
    label = f"Students of {summary['tokens']:,} tokens each"
    if summary["tokens"] < plan.TOKENS:
        label += f", of the {plan.TOKENS:,} that are planned: a trial of the whole way, no result"
    label += f". {len(rows)} of {summary['planned']} planned files are measured."
    lines = [
        label,
        "",
        "| file | perplexity | KL | agreement | ROUGE-L | MiB | tokens/s | memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {title(row)} | {row['perplexity']:.2f} | {row['kl']:.4f} | {row['agreement']:.1%} | "
        f"{row['rouge_l']:.1f} | {row['bytes'] / _MIB:.1f} | {row['tokens_per_second']:.1f} | "
        f"{row['memory_mib']:.0f} |"
        for row in rows
    ]
    lines += ["", "What each step bought, against the teacher's float16 file:", ""]
    lines += [f"- {sentence(row)}" for row in rows[1:]]
    lines += [
        "",
        "![Perplexity against bytes](results/bytes.svg)",
        "![Perplexity against speed](results/tokens_per_second.svg)",
        "",
        f"`{summary['command']}`, revision {summary['revision']}; perplexity, KL and agreement on "
        f"{summary['test_tokens']:,} tokens of wikitext-2's test text, ROUGE-L on "
        f"{summary['prompts']} prompts, speed: the median of {summary['rounds']} rounds.",
    ]
    return "\n".join(lines) + "\n"


def sentence(row: Mapping[str, Any]) -> str:
    """What a file keeps of the teacher, and at which cost."""
    return (
        f"{title(row)}: {row['agreement']:.0%} of the teacher's next tokens, "
        f"{row['part_of_rouge']:.0%} of its ROUGE-L, at {row['part_of_bytes']:.0%} of its bytes "
        f"and {row['part_of_time']:.0%} of its time a token."
    )


def frontier(points: Sequence[tuple[float, float]], *, larger: bool) -> list[tuple[float, float]]:
    """The points that no other beats in both: a lower perplexity, and fewer bytes or more speed.

    Args:
      points: (bytes or speed, perplexity).
      larger: whether a larger first number is better.
    """
    sign = -1 if larger else 1
    kept: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda each: (sign * each[0], each[1])):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def draw(summary: Mapping[str, Any], quantity: str, label: str) -> Figure:
    """Perplexity against bytes or speed, with the frontier."""
    rows = joined(summary)
    scale = _MIB if quantity == "bytes" else 1
    points = [(row[quantity] / scale, row["perplexity"]) for row in rows]
    with figure_style.style():
        figure = Figure(figsize=(7, 4))
        axes = figure.add_subplot()
        models = list(dict.fromkeys(row["model"] for row in rows))
        for number, model in enumerate(models):
            own = [point for row, point in zip(rows, points, strict=True) if row["model"] == model]
            style = {
                "color": figure_style.SERIES[number % len(figure_style.SERIES)],
                "marker": figure_style.MARKERS[number % len(figure_style.MARKERS)],
            }
            axes.plot(*zip(*own, strict=True), linestyle="", label=model, **style)
        best = frontier(points, larger=quantity != "bytes")
        axes.plot(*zip(*best, strict=True), color=figure_style.MUTED, linewidth=1, zorder=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("perplexity of wikitext-2, test")
        axes.set_title(f"Frontier; students of {summary['tokens']:,} tokens")
        axes.legend()
    return figure
