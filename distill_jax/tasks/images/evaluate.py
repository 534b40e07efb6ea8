"""Evaluation of a student, beside its teacher where there is one, on a whole split.

Every example counts exactly once: the last batch is padded and masked. The teacher's answers to a
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
from distill_jax.parallel import batch_sharding, fetch, put_rows, replicated
from distill_jax.tasks.images.recipe import examples_of
from distill_jax.teachers import Teachers, mean_probabilities

Answer = Callable[[dict[str, jax.Array], dict[str, jax.Array]], jax.Array]


def online_answer(teachers: Teachers, variables: Any, num_classes: int) -> Answer:
    """The function (store, batch) -> logits [B, K] of networks that answer online.

    The logits of several teachers are those of their mean distribution.
    """

    @jax.jit
    def answer(variables, store, batch):
        images, _ = data.identity(*examples_of(batch, store), num_classes)
        logits = [outputs.logits for outputs in teachers(variables, images)]
        return mean_probabilities(logits, teachers.weights, 1.0)

    return lambda store, batch: answer(variables, store, batch)


class Evaluator:
    """Evaluates on one split, again and again during a run.

    Args:
      spec: the student's.
      graphdef: its static structure.
      mesh: the devices.
      batches: gives the split's host batches in order, the last one padded, with "mask".
      store: the resident set of the split, on the device, or {}.
      answer: gives the teacher's logits [B, K] for a batch as `batches` gives it, or None.
    """

    def __init__(
        self,
        spec: Spec,
        graphdef: Any,
        mesh: Mesh,
        batches: Callable[[], Iterable[dict[str, np.ndarray]]],
        store: dict[str, jax.Array],
        answer: Answer | None = None,
    ):
        self._batches = batches
        self._store = store
        self._mesh = mesh
        self._answer = answer
        self._answers: list[jax.Array] = []

        def logits_of(params, stats, store, batch):
            images, _ = data.identity(*examples_of(batch, store), spec.num_classes)
            inputs = models.normalise(images, spec.mean, spec.std)
            params = parallel.gather_tree(params, mesh)
            return models.apply(graphdef, params, stats, inputs, train=False)[0].logits

        def sums(params, stats, answer, store, batch):
            logits = logits_of(params, stats, store, batch)
            labels = examples_of(batch, store)[1]
            return classification.batch_sums(logits, labels, batch["mask"], answer)

        self._logits_of = jax.jit(logits_of)
        self._sums = jax.jit(sums, out_shardings=replicated(mesh))

    def _placed(self) -> Iterable[dict[str, jax.Array]]:
        for batch in self._batches():
            yield put_rows(batch, batch_sharding(self._mesh))

    def __call__(self, params: models.Flat, stats: models.Flat) -> dict[str, Any]:
        """Every figure of `metrics.summarise` on the split."""
        parts = []
        for index, batch in enumerate(self._placed()):
            if self._answer is not None and index == len(self._answers):
                self._answers.append(self._answer(self._store, batch))
            answer = self._answers[index] if self._answer is not None else None
            parts.append(self._sums(params, stats, answer, self._store, batch))
        totals = None
        for part in jax.device_get(parts):
            part = {name: np.asarray(value, np.float64) for name, value in part.items()}
            totals = part if totals is None else {k: totals[k] + v for k, v in part.items()}
        return classification.summarise(totals)

    def logits(self, params: models.Flat, stats: models.Flat) -> tuple[np.ndarray, np.ndarray]:
        """The student's logits [N, K] and the labels [N], in the order of the split."""
        logits, labels = [], []
        for batch in self._placed():
            out = self._logits_of(params, stats, self._store, batch)
            found = out, examples_of(batch, self._store)[1], batch["mask"]
            of_batch, of_labels, mask = fetch(found)
            logits.append(of_batch[mask])
            labels.append(of_labels[mask])
        return np.concatenate(logits), np.concatenate(labels)
