"""The record of a run: every round of every contender, and how it was measured."""

import argparse
import datetime
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.provenance import git_revision, versions
from experiments.throughput.plan import BASE, HUGE, NEEDS


def record(
    arguments: argparse.Namespace, found: Mapping[str, Any], *, command: str
) -> dict[str, Any]:
    """The record of a run.

    Args:
      arguments: the checked arguments of the command line.
      found: from `run.measure`.
      command: the command line for the record.
    """
    about = found["about"]
    return {
        "study": "throughput",
        "teacher": arguments.pair[0],
        "student": arguments.pair[1],
        "batch_size": arguments.batch_size,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "data": "random" if arguments.data == "random" else "cifar100",
        "workers": arguments.workers,
        "contenders": {
            name: {"left_out": found["left_out"][name]}
            if name in found["left_out"]
            else {
                **summary(found["speeds"][name], found["speeds"].get(BASE)),
                **{key: value for key, value in about[name].items() if key != "ready"},
            }
            for name in sorted(arguments.contenders, key=_order)
        },
        "device": _device(about),
        "cores": os.cpu_count(),
        "busy_with_others": max(found["busy"]),
        "load": found["load"],
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "command": command,
        "git_revision": git_revision(),
    }


def _order(name: str) -> tuple[int, bool]:
    return list(NEEDS).index(name.removesuffix(HUGE)), name.endswith(HUGE)


def summary(speeds: Sequence[float], base: Sequence[float] | None) -> dict[str, Any]:
    """The rounds of a contender and their statistics.

    Args:
      speeds: images a second, one for each round.
      base: those of `plan.BASE` in the same rounds.

    Returns:
      {"rounds", "median", "min", "max", "ratio"}; the ratio is the median of the rounds' ratios,
      None without a base.
    """
    ratio = None
    if base is not None:
        pairs = zip(speeds, base, strict=True)
        ratio = round(statistics.median(mine / theirs for mine, theirs in pairs), 3)
    return {
        "rounds": [round(value, 1) for value in speeds],
        "median": round(statistics.median(speeds), 1),
        "min": round(min(speeds), 1),
        "max": round(max(speeds), 1),
        "ratio": ratio,
    }


def name_of(found: Mapping[str, Any]) -> str:
    """The name of the record's file, from what distinguishes the runs of the study."""
    parts = [found["teacher"], found["student"], f"batch{found['batch_size']}", found["data"]]
    if found["workers"] != 2:
        parts.append(f"workers{found['workers']}")
    return "-".join([*parts, re.sub(r"[^a-z0-9]+", "-", found["device"].lower())])


def _device(about: Mapping[str, Mapping[str, Any]]) -> str:
    devices = {one["device"] for one in about.values() if one["platform"] != "cpu"}
    if devices:
        return ", ".join(sorted(devices))
    return f"{os.cpu_count()} {platform.machine().replace('_', '-')} cores"
