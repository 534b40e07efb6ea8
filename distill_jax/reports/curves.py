"""The curves of a run as a panel: losses and figures, speed and memory, on any horizontal axis."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.reports import html

Records = Sequence[Mapping[str, Any]]

MOST_LINES = 1500  # of a log that are drawn

#: Title, unit, factor, and the series: (split or "performance", key, label).
CHARTS: tuple[tuple[str, str, float, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Cross-entropy with the labels",
        "nats",
        1.0,
        (
            ("train", "hard_loss", "train"),
            ("validation", "nll", "validation"),
            ("test", "nll", "test"),
        ),
    ),
    (
        "Training loss",
        "as optimised",
        1.0,
        (("train", "loss", "total"), ("train", "soft_loss", "soft, unweighted")),
    ),
    (
        "Accuracy",
        "%",
        100.0,
        (
            ("train", "accuracy", "train"),
            ("validation", "accuracy", "validation"),
            ("test", "accuracy", "test"),
        ),
    ),
    (
        "KL(teacher ‖ student)",
        "nats, T = 1",
        1.0,
        (("train", "kl", "train"), ("validation", "kl", "validation"), ("test", "kl", "test")),
    ),
    (
        "Agreement with the teacher",
        "%",
        100.0,
        (
            ("train", "agreement", "train"),
            ("validation", "agreement", "validation"),
            ("test", "agreement", "test"),
        ),
    ),
    (
        "Answers",
        "%",
        100.0,
        (
            ("validation", "rouge_l", "ROUGE-L, validation"),
            ("test", "rouge_l", "ROUGE-L, test"),
            ("validation", "exact_match", "exact match, validation"),
            ("test", "exact_match", "exact match, test"),
        ),
    ),
    ("Written by the student", "% of steps", 100.0, (("train", "on_policy", "on-policy"),)),
    ("Learning rate", "", 1.0, (("train", "learning_rate", "learning rate"),)),
    ("Gradient norm", "", 1.0, (("train", "gradient_norm", "norm"),)),
    ("Throughput", "examples per second", 1.0, (("performance", "examples_per_second", "train"),)),
    (
        "Peak memory",
        "MiB",
        2.0**-20,
        (
            ("performance", "device_memory_bytes", "device"),
            ("performance", "host_memory_bytes", "host"),
        ),
    ),
)


def panel(metrics: Records, performance: Records, *, batch_size: int | None) -> html.Panel | None:
    """The curves of a run; None where nothing was logged.

    Args:
      metrics: the records of metrics.jsonl.
      performance: those of performance.jsonl.
      batch_size: examples in a step; None for unknown, without an axis of examples.
    """
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for record in metrics:
        splits.setdefault(record["split"], []).append(record)
    place = _Place(splits.get("train", []), performance, batch_size)
    splits["performance"] = list(performance)
    splits = {split: thinned(records) for split, records in splits.items()}
    charts = []
    for title, unit, factor, wanted in CHARTS:
        series = []
        for colour, (split, key, label) in enumerate(wanted):
            found = [record for record in splits.get(split, ()) if key in record]
            if any(record[key] is not None for record in found):
                values = [_short(record[key], factor) for record in found]
                x = place.number([record["step"] for record in found])
                series.append({"label": label, "x": x, "y": values, "colour": colour})
        if series:
            charts.append({"title": title, "unit": unit, "series": series})
    if not charts:
        return None
    axes = place.titles()
    return html.Panel(
        "chart",
        {"axes": axes, "smoothing": True, "xs": place.all, "charts": charts},
        "Learning curves",
    )


def thinned(records: Records) -> list[Mapping[str, Any]]:
    """At most `MOST_LINES` records: of more of them every n-th, counted back from the last."""
    every = -(-len(records) // MOST_LINES)
    return list(records[:: -max(every, 1)])[::-1]


def _short(value: float | None, factor: float) -> float | None:
    """To six digits, which are more than a chart shows."""
    return None if value is None else float(f"{factor * value:.6g}")


class _Place:
    """Where a step is on each horizontal axis.

    Args:
      train: the lines of the training log.
      performance: those of the speed.
      batch_size: of a step.

    Attributes:
      all: each sequence of steps that was asked for, on every axis.
    """

    def __init__(self, train: Records, performance: Records, batch_size: int | None):
        self._batch_size = batch_size
        self.all: list[dict[str, Any]] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        known = [(r["epoch"], r["step"]) for r in train if r.get("epoch") and r["step"]]
        self._epochs_a_step = known[-1][0] / known[-1][1] if known else None
        timed = [r for r in performance if r.get("step_time_s") is not None]
        steps = [0, *(r["step"] for r in timed)]
        lengths = [later - earlier for earlier, later in itertools.pairwise(steps)]
        spent = [n * r["step_time_s"] for n, r in zip(lengths, timed, strict=True)]
        self._timed = np.array(steps), np.cumsum([0.0, *spent])

    def titles(self) -> list[tuple[str, str]]:
        found = [("step", "Steps")]
        found += [("epoch", "Epochs")] if self._epochs_a_step else []
        found += [("examples", "Examples")] if self._batch_size else []
        return found + ([("time", "Training time (s)")] if len(self._timed[0]) > 1 else [])

    def number(self, steps: Sequence[int]) -> int:
        """Which of `all` these steps are; added where they are new."""
        key = tuple(steps)
        if key not in self._numbers:
            self._numbers[key] = len(self.all)
            self.all.append(self._axes(steps))
        return self._numbers[key]

    def _axes(self, steps: Sequence[int]) -> dict[str, Any]:
        at: dict[str, Any] = {"step": steps}
        if self._epochs_a_step:
            at["epoch"] = [round(step * self._epochs_a_step, 6) for step in steps]
        if self._batch_size:
            at["examples"] = [step * self._batch_size for step in steps]
        if len(self._timed[0]) > 1:
            at["time"] = np.interp(steps, *self._timed).round(3)
        return at
