"""What a model was trained on, and whether a teacher has seen what its student holds out.

A teacher's figures on examples that it was trained on stand next to the student's without being
comparable. Where the teacher's record names the same data, its training examples are drawn again
and compared; where it does not, only the user knows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from distill_jax import data
from distill_jax.errors import UsageError
from distill_jax.tasks import notes
from distill_jax.tasks.images.data import ImageData

# The keys of the section data that choose, from a split, the examples that are trained on.
_CHOOSING = ("validation", "split_seed", "fraction", "only_classes", "exclude_classes")


def training_examples(config: ConfigDict, fingerprint: str) -> dict[str, Any]:
    """What describes the training examples of a run, as JSON holds it.

    Args:
      config: resolved.
      fingerprint: of the training split.
    """
    chosen = {key: config.data[key] for key in _CHOOSING}
    listed = {key: list(v) if isinstance(v, tuple) else v for key, v in chosen.items()}
    return {"name": config.data.name, "fingerprint": fingerprint, **listed}


def notes_on_validation(
    config: ConfigDict,
    opened: ImageData,
    fingerprint: str,
    teachers: Sequence[tuple[str, Mapping[str, Any]]],
) -> tuple[str, ...]:
    """A line for each teacher that was, or may have been, trained on the validation examples.

    Args:
      config: resolved.
      opened: the data of the run.
      fingerprint: of their training split.
      teachers: (path, what describes its training examples, {} for unknown) of each.
    """
    held_out = len(opened.validation_ids)
    answer = config.teacher.saw_validation
    if not held_out or answer == "no":
        return ()
    lines = []
    for path, trained_on in teachers:
        seen = held_out if answer == "yes" else _seen(opened, fingerprint, trained_on)
        lines.append(notes.on_validation(path, seen, held_out, "examples"))
    return tuple(filter(None, lines))


def _seen(opened: ImageData, fingerprint: str, trained_on: Mapping[str, Any]) -> int | None:
    """How many validation examples a teacher was trained on; None for unknown."""
    if trained_on.get("fingerprint") != fingerprint:
        return None
    try:
        ids, _ = data.splits(opened.train, **{key: trained_on[key] for key in _CHOOSING})
    except (KeyError, TypeError, UsageError):
        return None
    return len(np.intersect1d(ids, opened.validation_ids))
