"""Evaluates a student on a whole split, together with its teacher where there is one.

Every example counts exactly once: the last batch is padded and masked. The teacher's logits on a
split never change, so they are computed once and kept.
"""

from collections.abc import Callable, Iterable, Iterator
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

    Attributes:
      outputs_of: (parameters, statistics, images in [0, 1]) -> the student's outputs.
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

        def outputs_of(params, stats, images):
            inputs = models.normalise(images, spec.mean, spec.std)
            params = parallel.gather_tree(params, mesh)
            return models.apply(graphdef, params, stats, inputs, train=False)[0]

        def images_of(resident, batch):
            return data.identity(*examples_of(batch, resident), spec.num_classes)[0]

        def logits_of(params, stats, resident, batch):
            return outputs_of(params, stats, images_of(resident, batch)).logits

        def sums(params, stats, teacher, resident, batch):
            logits = logits_of(params, stats, resident, batch)
            labels = examples_of(batch, resident)[1]
            return classification.batch_sums(logits, labels, batch["mask"], teacher)

        self.outputs_of = outputs_of
        self._images_of = jax.jit(images_of)
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
        labels, logits, _ = zip(*self.each(params, stats), strict=True)
        return np.concatenate(logits), np.concatenate(labels)

    def each(
        self, params: models.Flat, stats: models.Flat
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Labels [B], the student's logits [B, K] and the teacher's, in the order of the split."""
        for index, batch in enumerate(batches_on(self._mesh, self._batches)):
            teacher = self._teacher_on(index, batch)
            student = self._logits_of(params, stats, self._resident, batch)
            found = examples_of(batch, self._resident)[1], student, teacher, batch["mask"]
            of_labels, of_student, of_teacher, mask = parallel.fetch(found)
            kept = None if of_teacher is None else of_teacher[mask]
            yield of_labels[mask], of_student[mask], kept

    def images(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Images [B, H, W, C] in [0, 1] and their mask [B], on the devices, batch by batch."""
        for batch in batches_on(self._mesh, self._batches):
            yield self._images_of(self._resident, batch), batch["mask"]
