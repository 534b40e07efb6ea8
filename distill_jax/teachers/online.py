"""Frozen networks that compute their outputs inside the step, one or several."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models import Outputs, Spec
from distill_jax.teachers.classes import with_classes_of
from distill_jax.teachers.views import View

Variables = tuple[dict[str, jax.Array], dict[str, jax.Array]]  # parameters, batch statistics


@dataclasses.dataclass(frozen=True)
class Teachers:
    """The structure of the teachers; their arrays are separate arguments of the step.

    Attributes:
      specs: what each was made from.
      graphdefs: the static structure of each.
      weights: weights that sum to 1, one a teacher.
      fingerprints: SHA-256 of each.
      parameters: number of parameters of each.
      trained_on: what describes the training examples of each; {} for unknown.
      notes: lines about what could not be told of them.
    """

    specs: tuple[Spec, ...]
    graphdefs: tuple[Any, ...]
    weights: tuple[float, ...]
    fingerprints: tuple[str, ...]
    parameters: tuple[int, ...]
    trained_on: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    own_average = False
    precomputed = False

    def params(self, variables: Sequence[Variables]) -> dict[str, jax.Array]:
        """The first teacher's parameters, for methods that reuse a part of it."""
        return variables[0][0]

    def outputs(self, variables: Sequence[Variables], view: View) -> list[Outputs]:
        """The outputs of all teachers for a view, in evaluation mode and without gradient."""
        return self(variables, view.images)

    def __call__(self, variables: Sequence[Variables], images: jax.Array) -> list[Outputs]:
        """The outputs of all teachers for images, in evaluation mode and without gradient.

        Args:
          variables: parameters and batch statistics of each, as `load` gave them.
          images: the view [B, H, W, C] in [0, 1]; each teacher normalises it with its own
            mean and standard deviation.
        """
        found = []
        for spec, graphdef, (params, stats) in zip(
            self.specs, self.graphdefs, variables, strict=True
        ):
            inputs = models.normalise(images, spec.mean, spec.std)
            outputs, _ = models.apply(graphdef, params, stats, inputs, train=False)
            found.append(jax.lax.stop_gradient(outputs))
        return found


def load(
    paths: Sequence[str],
    *,
    weights: Sequence[float] = (),
    input_shape: tuple[int, ...],
    num_classes: int,
    class_names: Sequence[str] = (),
    classes: str = "same",
    compute_dtype: str = "float32",
) -> tuple[Teachers, list[Variables]]:
    """Reads the teachers of a run.

    Args:
      paths: workdirs of finished runs, or model folders.
      weights: one a teacher, >= 0; () for equal ones.
      input_shape: (H, W, C) of the data.
      num_classes: of the data.
      class_names: of the data; () for unknown.
      classes: how they correspond to a teacher's, one of `models.class_names.CHOICES`.
      compute_dtype: "float32" or "bfloat16".

    Returns:
      The structure and the arrays.

    Raises:
      UsageError: when one is missing, unreadable or damaged, or has other classes, the same in
        another order, or another input.
    """
    saved, notes = [], []
    for path in paths:
        teacher = models.load(path, key="teacher.path")
        spec = teacher.spec
        if spec.num_classes != num_classes:
            raise UsageError(
                f"teacher.path={path!r}: the teacher has {spec.num_classes} classes; "
                f"expected the {num_classes} of the data"
            )
        if tuple(spec.input_shape) != tuple(input_shape):
            raise UsageError(
                f"teacher.path={path!r}: the teacher takes {tuple(spec.input_shape)} images; "
                f"expected the {tuple(input_shape)} of the data"
            )
        location = f"teacher.path={path!r}"
        teacher, note = with_classes_of(teacher, class_names, how=classes, location=location)
        saved.append(teacher)
        notes.append(note)
    raw = list(weights) or [1.0] * len(saved)
    modules = [
        models.abstract(
            teacher.spec.name,
            input_shape=teacher.spec.input_shape,
            num_classes=num_classes,
            dtype=jnp.dtype(compute_dtype),
            **teacher.spec.options,
        )
        for teacher in saved
    ]
    teachers = Teachers(
        specs=tuple(teacher.spec for teacher in saved),
        graphdefs=tuple(models.split(module)[0] for module in modules),
        weights=tuple(weight / sum(raw) for weight in raw),
        fingerprints=tuple(teacher.fingerprint for teacher in saved),
        parameters=tuple(models.parameter_count(teacher.params) for teacher in saved),
        trained_on=tuple(teacher.trained_on for teacher in saved),
        notes=tuple(filter(None, notes)),
    )
    return teachers, [(teacher.params, teacher.stats) for teacher in saved]


def mean_probabilities(
    logits: Sequence[jax.Array], weights: Sequence[float], temperature: jax.Array | float
) -> jax.Array:
    """Logits whose softmax at `temperature` is the weighted mean of the teachers' distributions.

    z = T · log Σ_i w_i softmax(z_i / T) (Hinton, Vinyals & Dean 2015, section 2: the arithmetic
    mean of the individual predictive distributions).

    Args:
      logits: one [..., K] a teacher.
      weights: one a teacher, summing to 1.
      temperature: scalar > 0.

    Returns:
      [..., K] float32.
    """
    terms = [
        jnp.log(jnp.float32(weight)) + jax.nn.log_softmax(z.astype(jnp.float32) / temperature)
        for z, weight in zip(logits, weights, strict=True)
        if weight > 0
    ]
    return temperature * jax.nn.logsumexp(jnp.stack(terms), axis=0)
