"""Analyses of the logits of a trained network: corrected biases and ambiguous digits.

The search selects an offset on held-out images; the study applies it to the test split.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from distill_jax import data, models, parallel
from distill_jax.tasks.images.parts import prepare

OFFSETS = np.round(np.arange(-200, 201) / 10, 1)  # -20 to 20 in steps of 0.1

# For each pair, the image of the first digit that the teacher finds most similar to the second. The
# twos are the paper's example (section 1).
PAIRS = ((2, 3), (2, 7), (7, 1), (7, 9), (4, 9), (5, 3))


@dataclasses.dataclass(frozen=True)
class Answers:
    """A network's answers to one split.

    Attributes:
      images: uint8 [N, H, W, C].
      logits: float32 [N, K].
      labels: int32 [N].
    """

    images: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


def answers(config: ConfigDict, folder: pathlib.Path) -> dict[str, Answers]:
    """The last epoch's answers to "test", and to "validation" if there is one, of a run.

    Args:
      config: the config of the run.
      folder: its workdir.
    """
    parts = prepare(config)
    saved = models.load(folder)
    variables = jax.device_put((saved.params, saved.stats), parallel.replicated(parts.mesh))
    test = data.load(config.data.name, "test", tfds_dir=config.data.tfds_dir, path=config.data.path)
    images = {"test": test.arrays()[0]}
    if "validation" in parts.evaluators:
        keys = ("validation", "split_seed", "fraction", "only_classes", "exclude_classes")
        chosen = {key: config.data[key] for key in keys}
        validation_ids = data.splits(parts.feed.examples, **chosen)[1]
        images["validation"] = parts.feed.examples.batch(validation_ids)[0]
    return {
        split: Answers(images[split], *parts.evaluators[split].logits(*variables))
        for split in images
    }


def with_offset(logits: np.ndarray, classes: Sequence[int], offset: float) -> np.ndarray:
    """The logits [N, K] after `offset` is added to the biases of `classes`."""
    moved = np.array(logits, np.float64)
    moved[:, list(classes)] += offset
    return moved


def scan(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[int], offsets: np.ndarray = OFFSETS
) -> np.ndarray:
    """The errors, int [len(offsets)], with each offset added to the biases of `classes`.

    Args:
      logits: [N, K].
      labels: int [N].
      classes: which biases; they share one offset, as in the paper.
      offsets: [O].
    """
    counts = [
        np.sum(with_offset(logits, classes, offset).argmax(axis=1) != labels) for offset in offsets
    ]
    return np.array(counts, np.int64)


def best_offset(errors: np.ndarray, offsets: np.ndarray = OFFSETS) -> float:
    """The offset with the fewest errors; on a tie the middle one, the lower of two middle ones."""
    best = np.flatnonzero(errors == errors.min())
    return float(offsets[best[(len(best) - 1) // 2]])


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts, int [K, K]: row the true class, column the predicted one."""
    classes = logits.shape[1]
    pairs = labels.astype(np.int64) * classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def choose_offset(validation: Answers, classes: Sequence[int]) -> dict[str, Any]:
    """The offset of the biases of `classes` with the fewest errors on images that are held out.

    Returns:
      "offset", and "errors" [before, after].
    """
    errors = scan(validation.logits, validation.labels, classes)
    return {
        "offset": best_offset(errors),
        "errors": [int(errors[OFFSETS == 0][0]), int(errors.min())],
    }


def correct_biases(test: Answers, classes: Sequence[int], offset: float) -> dict[str, Any]:
    """Counts the test errors with `offset` added to the biases of `classes`.

    Returns:
      "classes", "offset", and "before" and "after", the confusion matrices.
    """
    return {
        "classes": list(classes),
        "offset": offset,
        "before": confusion(test.logits, test.labels).tolist(),
        "after": confusion(with_offset(test.logits, classes, offset), test.labels).tolist(),
    }


def ambiguous(found: Answers, pairs: Sequence[tuple[int, int]] = PAIRS) -> dict[str, np.ndarray]:
    """For each pair (a, b), the image of a correctly classified `a` that is most similar to `b`.

    Returns:
      "images" [P, H, W, C], "labels" [P] and "logits" [P, K], without the pairs for which there is
      no such image.
    """
    rows = []
    for label, other in pairs:
        right = (found.labels == label) & (found.logits.argmax(axis=1) == label)
        right[rows] = False  # each image is used for one pair
        if right.any():
            likeness = found.logits[:, other] - found.logits[:, label]
            rows.append(int(np.where(right, likeness, -np.inf).argmax()))
    return {
        "images": found.images[rows],
        "labels": found.labels[rows],
        "logits": found.logits[rows],
    }
