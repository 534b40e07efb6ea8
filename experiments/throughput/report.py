"""From the records of runs to the README's tables."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from distill_jax.reports import tables
from distill_jax.reports.tables import Column
from experiments import markers
from experiments.throughput import contest
from experiments.throughput.plan import BASE, HUGE

NOTHING = "No run is on record yet.\n"
TITLES = {
    "ours": "ours, teacher online, a forward pass a step",
    "ours_xla": "ours, teacher online, XLA's kernels",
    "ours_ahead": "ours, teacher online, 8 steps ahead",
    "ours_bf16_teacher": "ours, teacher online in bfloat16",
    "ours_stored": "ours, teacher's answers stored",
    "torch_eager": "PyTorch, eager",
    "torch_channels_last": "PyTorch, eager, channels last",
    "torch_compile": "PyTorch, compiled",
    "torch_compile_channels_last": "PyTorch, compiled, channels last",
    "torch_bf16_teacher": "PyTorch, eager, channels last, teacher in bfloat16",
    "torch_compile_bf16_teacher": "PyTorch, compiled, channels last, teacher in bfloat16",
    "torch_bf16": "PyTorch, compiled, bfloat16, channels last",
    "torchdistill": "torchdistill's loss and hooks, eager",
}


def table(record: Mapping[str, Any]) -> tables.Table:
    """Images/s of each contender over the rounds, and the ratio to PyTorch's eager loop."""
    rows = []
    for name, values in record["contenders"].items():
        title = TITLES[name.removesuffix(HUGE)] + (", huge pages" if name.endswith(HUGE) else "")
        if "left_out" in values:
            title = f"{title}: {values['left_out']}"
        rows.append({**values, "title": title})
    return tables.listing(
        rows,
        (
            Column("title", "Contender"),
            Column("median", "Images/s, median", "integer"),
            Column("min", "Least", "integer"),
            Column("max", "Most", "integer"),
            Column("ratio", f"Times {TITLES[BASE]}", "decimal", 2),
            Column("warm_up_s", "Warm-up, s", "integer"),
        ),
    )


def _section(record: Mapping[str, Any]) -> str:
    """The table of a run and how it was measured."""
    pixels = {"random": "random pixels", "cifar100": "CIFAR-100"}[record["data"]]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    stored = next((c["store"] for c in record["contenders"].values() if "store" in c), None)
    store = ""
    if stored:
        store = (
            f" Storing {stored['views']} views of {stored['images']} images took "
            f"{stored['seconds']:.0f} s, outside of the figures."
        )
    warning = ""
    if record["busy_with_others"] > contest.QUIET:
        warning = f"**Not a result: {contest.not_quiet(record['busy_with_others'])}.**\n\n"
    return (
        f"### {record['teacher']} → {record['student']}, batch {record['batch_size']}, "
        f"{record['device']}\n\n"
        f"{warning}"
        f"{record['rounds']} rounds of {record['seconds']:g} s each, {pixels}, {record['cores']} "
        f"cores, {record['workers']} loader processes for PyTorch; {record['date']}, by\n\n"
        f"    {record['command']}\n\n"
        f"{versions}; revision {record['git_revision'] or 'not recorded'}.\n\n"
        f"{tables.markdown(table(record))}\n"
        f"Times PyTorch's eager loop: the median of the rounds' own ratios.{store}\n"
    )


def write_readme(target: pathlib.Path) -> pathlib.Path:
    """Updates README.md of a folder from the records in its results/.

    Args:
      target: the study's folder, whose README has the two markers, or another one.

    Returns:
      The README.

    Raises:
      UsageError: the README has no markers.
    """
    found = [json.loads(path.read_text()) for path in sorted((target / "results").glob("*.json"))]
    body = "\n".join(map(_section, found)) or NOTHING
    return markers.fill(target / "README.md", lambda: body, title="# Throughput\n\n")
