"""The figures of one run, for papers and for trackers: arrays of its files in, figures out.

They are those of the page, without a script, in the one style of `figure_style`. Left out on
purpose: figures that need a reader's choice, which the page has.
"""

import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from distill_jax.reports import figure_style, figures
from distill_jax.storage import write_atomically

MOST_CONFUSED_CLASSES = 100  # in a confusion matrix
SHOWN_EXAMPLES = 6  # of soft targets
TEMPERATURE = 4.0  # of soft targets
FORMATS = ("svg", "pdf")

Record = Mapping[str, np.ndarray]


def all_figures(
    metrics: Sequence[Mapping[str, Any]],
    shown: Mapping[str, Any],
    names: Sequence[Any],
    record: Record,
) -> dict[str, Figure]:
    """Every figure that the files of a run have the numbers for.

    Args:
      metrics: the records of metrics.jsonl.
      shown: the metrics of an evaluation, as in result.json.
      names: of the classes; () of text.
      record: the arrays of evaluation/test.npz; {} where there is none.

    Returns:
      "learning_curves", "reliability", "class_accuracy", "confusion" and "soft_targets", as far as
      they can be drawn.
    """
    found: dict[str, Figure] = {}
    if metrics:
        found["learning_curves"] = figures.learning_curves({"run": metrics})
    return found | evaluation_figures(shown, names, record)


def evaluation_figures(
    shown: Mapping[str, Any], names: Sequence[Any], record: Record
) -> dict[str, Figure]:
    """The figures of one evaluation; see `all_figures`."""
    found: dict[str, Figure] = {}
    networks = {"Student": "", "Teacher": "teacher_"}
    bins = {label: shown.get(f"{prefix}reliability") for label, prefix in networks.items()}
    if drawn := {label: values for label, values in bins.items() if values}:
        found["reliability"] = figures.reliability_diagram(drawn)
    rows = {label: shown.get(f"{prefix}per_class") for label, prefix in networks.items()}
    if drawn := {label: values for label, values in rows.items() if values}:
        found["class_accuracy"] = figures.class_accuracy(drawn, names)
    matrix = confusion(record, len(names))
    if matrix is not None and len(names) <= MOST_CONFUSED_CLASSES:
        found["confusion"] = figures.confusion_matrix(matrix, names)
    soft = _soft_targets(record, names)
    return found | ({"soft_targets": soft} if soft else {})


def confusion(record: Record, classes: int) -> np.ndarray | None:
    """Counts [K, K] of true (row) and predicted class of the student; None without a record."""
    if "pairs_student" not in record or not classes:
        return None
    true, predicted, count = record["pairs_student"]
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (true, predicted), count)
    return matrix


def _soft_targets(record: Record, names: Sequence[Any]) -> Figure | None:
    """The soft targets on a few examples, of as many classes as there are rows.

    Of the examples of each class, the one on which the teacher is least certain; of these, those of
    the highest entropy.
    """
    if not {"student", "teacher", "labels", "thumbnails", "thumbnail_ends"} <= record.keys():
        return None
    ends = record["thumbnail_ends"]
    begins = np.concatenate([[0], ends[:-1]])
    teacher = np.float64(record["teacher"]) / TEMPERATURE
    likely = np.exp(teacher - teacher.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    entropy = -np.sum(likely * np.log(np.maximum(likely, 1e-300)), axis=1)
    rows: list[int] = []
    for row in np.argsort(-entropy, kind="stable"):
        seen = record["labels"][row] in record["labels"][rows]
        if ends[row] > begins[row] and not seen:
            rows.append(int(row))
    rows = rows[:SHOWN_EXAMPLES]
    if not rows:
        return None
    files = record["thumbnails"].tobytes()
    images = [_decode(files[begins[row] : ends[row]]) for row in rows]
    size = max(image.size for image in images)
    return figures.soft_target_grid(
        np.stack([np.asarray(image.resize(size, Image.Resampling.NEAREST)) for image in images]),
        record["labels"][rows],
        record["teacher"][rows],
        [str(name) for name in names],
        (TEMPERATURE,),
        student_logits=record["student"][rows],
    )


def _decode(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file), formats=("WEBP", "PNG")).convert("RGB")


def write_all(found: Mapping[str, Figure], folder: pathlib.Path) -> Iterable[pathlib.Path]:
    """Writes each figure as .svg and .pdf; the same run gives the same bytes.

    Args:
      found: by name.
      folder: which exists.

    Returns:
      The files.
    """
    written = []
    for name, figure in found.items():
        for suffix in FORMATS:
            written.append(folder / f"{name}.{suffix}")
            write_atomically(written[-1], figure_style.encoded(figure, suffix))
    return written
