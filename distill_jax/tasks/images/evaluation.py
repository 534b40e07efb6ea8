"""Evaluates a student on a whole split, together with its teacher where there is one.

Every example counts exactly once: the last batch is padded and masked. The teacher's logits on a
split never change, so they are computed once and kept.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax import data, models, parallel
from distill_jax.evaluation import classification
from distill_jax.models import Spec
from distill_jax.tasks.evaluation import Batch, HostBatch, batches_on, sum_over_split
from distill_jax.tasks.images.recipe import examples_of
from distill_jax.teachers import Teachers, mean_probabilities

#: (resident set, batch) -> logits [B, K].
TeacherLogits = Callable[[Batch, Batch], jax.Array]


def online_logits(teachers: Teachers, variables: Any, num_classes: int) -> TeacherLogits:
    """Logits that networks compute batch by batch; those of several are of their mean."""

    @jax.jit
    def logits(variables, resident, batch):
        images, _ = data.identity(*examples_of(batch, resident), num_classes)
        each = [outputs.logits for outputs in teachers(variables, images)]
        return mean_probabilities(each, teachers.weights, 1.0)

    return lambda resident, batch: logits(variables, resident, batch)


class ImageEvaluator:
    """Evaluates on one split, any number of times during a run.

    Args:
      spec: the student's.
      graphdef: its static structure.
      mesh: the devices.
      batches: the split's host batches in order, the last one padded, with "mask".
      resident: the split on the devices, or {}.
      teacher_logits: gives the teacher's logits for a batch; None without a teacher.
    """

    def __init__(
        self,
        spec: Spec,
        graphdef: Any,
        mesh: Mesh,
        batches: Iterable[HostBatch],
        resident: Batch,
        teacher_logits: TeacherLogits | None = None,
    ):
        self._batches = batches
        self._resident = resident
        self._mesh = mesh
        self._teacher_logits = teacher_logits
        self._kept: list[jax.Array] = []  # the teacher's logits on each batch

        def logits_of(params, stats, resident, batch):
            images, _ = data.identity(*examples_of(batch, resident), spec.num_classes)
            inputs = models.normalise(images, spec.mean, spec.std)
            params = parallel.gather_tree(params, mesh)
            return models.apply(graphdef, params, stats, inputs, train=False)[0].logits

        def sums(params, stats, teacher, resident, batch):
            logits = logits_of(params, stats, resident, batch)
            labels = examples_of(batch, resident)[1]
            return classification.batch_sums(logits, labels, batch["mask"], teacher)

        self._logits_of = jax.jit(logits_of)
        self._sums = jax.jit(sums, out_shardings=parallel.replicated(mesh))

    def _teacher_on(self, index: int, batch: Batch) -> jax.Array | None:
        if self._teacher_logits is None:
            return None
        if index == len(self._kept):
            self._kept.append(self._teacher_logits(self._resident, batch))
        return self._kept[index]

    def __call__(self, params: models.Flat, stats: models.Flat) -> dict[str, Any]:
        """Every figure of `classification.summarise` on the split."""

        def sums(index: int, batch: Batch) -> dict[str, jax.Array]:
            teacher = self._teacher_on(index, batch)
            return self._sums(params, stats, teacher, self._resident, batch)

        totals = sum_over_split(sums, batches_on(self._mesh, self._batches))
        return classification.summarise(totals)

    def logits(self, params: models.Flat, stats: models.Flat) -> tuple[np.ndarray, np.ndarray]:
        """The student's logits [N, K] and the labels [N], in the order of the split."""
        logits, labels = [], []
        for batch in batches_on(self._mesh, self._batches):
            out = self._logits_of(params, stats, self._resident, batch)
            found = out, examples_of(batch, self._resident)[1], batch["mask"]
            of_batch, of_labels, mask = parallel.fetch(found)
            logits.append(of_batch[mask])
            labels.append(of_labels[mask])
        return np.concatenate(logits), np.concatenate(labels)
