"""The curves of a run as a panel: losses and figures, speed and memory, on any horizontal axis."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.reports import html

Records = Sequence[Mapping[str, Any]]

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
    splits: dict[str, list[Mapping[str, Any]]] = {"performance": list(performance)}
    for record in metrics:
        splits.setdefault(record["split"], []).append(record)
    place = _Place(splits.get("train", []), performance, batch_size)
    charts = []
    for title, unit, factor, wanted in CHARTS:
        series = []
        for colour, (split, key, label) in enumerate(wanted):
            found = [record for record in splits.get(split, ()) if key in record]
            if any(record[key] is not None for record in found):
                steps = [record["step"] for record in found]
                values = [None if r[key] is None else factor * r[key] for r in found]
                series.append(
                    {"label": label, "x": place.axes(steps), "y": values, "colour": colour}
                )
        if series:
            charts.append({"title": title, "unit": unit, "series": series})
    if not charts:
        return None
    data = {"axes": place.titles(), "smoothing": True, "charts": charts}
    return html.Panel("chart", data, "Learning curves")


class _Place:
    """Where a step is on each horizontal axis.

    Args:
      train: the lines of the training log.
      performance: those of the speed.
      batch_size: of a step.
    """

    def __init__(self, train: Records, performance: Records, batch_size: int | None):
        self._batch_size = batch_size
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

    def axes(self, steps: Sequence[int]) -> dict[str, Any]:
        at: dict[str, Any] = {"step": steps}
        if self._epochs_a_step:
            at["epoch"] = [round(step * self._epochs_a_step, 6) for step in steps]
        if self._batch_size:
            at["examples"] = [step * self._batch_size for step in steps]
        if len(self._timed[0]) > 1:
            at["time"] = np.interp(steps, *self._timed).round(3)
        return at
