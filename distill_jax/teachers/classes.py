"""A teacher with its classes in the order of the data, compared and mapped by their names."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models.class_names import match

_CLASSIFIER = ("classifier/kernel", "classifier/bias")  # [D, K] and [K]


def with_classes_of(
    saved: models.Saved, class_names: Sequence[str], *, how: str, location: str
) -> tuple[models.Saved, str]:
    """The teacher whose class k is class k of the data.

    Its classifier is permuted rather than its logits, so that methods which take over the
    classifier get it in the order of the data too. The fingerprint stays that of the file.

    Args:
      saved: the teacher as it was read.
      class_names: of the data; () for unknown.
      how: one of `models.class_names.CHOICES`.
      location: what errors and the note begin with, such as "teacher.path='runs/a'".

    Returns:
      (teacher, note): the note is one line where names are unknown, else "".

    Raises:
      UsageError: the classes are others, or cannot be mapped.
    """
    found = match(saved.spec.class_names, class_names, how=how, location=location)
    if how == "by_position":
        return _renamed(saved, class_names), found.note
    if not found.order:
        return saved, found.note
    missing = [name for name in _CLASSIFIER if name not in saved.params]
    if missing:
        raise UsageError(
            f"teacher.classes='by_name': {location}: {saved.spec.name} has no {missing[0]} whose "
            "classes could be put in the order of the data; expected a network with a classifier"
        )
    order = np.array(found.order)
    moved = {name: jnp.asarray(saved.params[name])[..., order] for name in _CLASSIFIER}
    return _renamed(
        dataclasses.replace(saved, params={**saved.params, **moved}), class_names
    ), found.note


def _renamed(saved: models.Saved, class_names: Sequence[str]) -> models.Saved:
    spec = dataclasses.replace(saved.spec, class_names=tuple(class_names))
    return dataclasses.replace(saved, spec=spec)
