"""Evaluates a student on a split of text, together with its teachers where there are any."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.parallel import replicated
from distill_jax.tasks.evaluation import Batch, HostBatch, batches_on, sum_over_split
from distill_jax.tasks.language.comparison import Comparison
from distill_jax.training.recipe import Flat
from distill_jax.training.state import Frozen


class TextEvaluator:
    """Evaluates on one split of text, any number of times during a run.

    Args:
      comparison: the networks.
      frozen: as in `Comparison.token_sums`, on the devices.
      mesh: the devices.
      batches: the split's host batches; rows that pad the last one are masked throughout.
    """

    def __init__(
        self, comparison: Comparison, frozen: Frozen, mesh: Mesh, batches: Iterable[HostBatch]
    ):
        self._frozen = frozen
        self._mesh = mesh
        self._batches = batches

        def sums(params, frozen, batch):
            mask = batch["mask"].astype(jnp.float32)
            _, metrics = comparison.token_sums(params, frozen, batch, mask)
            return {**metrics, "tokens": jnp.sum(mask)}

        self._sums = jax.jit(sums, out_shardings=replicated(mesh))

    def __call__(self, params: Flat, stats: Flat) -> dict[str, Any]:
        """The figures of the split; see `summarise`."""
        del stats

        def sums(index: int, batch: Batch) -> dict[str, jax.Array]:
            del index
            return self._sums(params, self._frozen, batch)

        return summarise(sum_over_split(sums, batches_on(self._mesh, self._batches)))


def summarise(totals: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a split from its sums over tokens: means in nats a token, and perplexities.

    Returns:
      "count" of tokens and "unit", "nll" and "perplexity", "accuracy", "entropy"; with a teacher
      also "teacher_nll", "teacher_perplexity", "teacher_entropy", "kl" and "agreement".
    """
    count = max(float(totals["tokens"]), 1.0)
    mean = {name: float(value) / count for name, value in totals.items() if name != "tokens"}
    figures = {
        "count": int(totals["tokens"]),
        "unit": "tokens",
        "nll": mean["hard_loss"],
        "perplexity": float(np.exp(mean["hard_loss"])),
        "accuracy": mean["accuracy"],
        "entropy": mean["student_entropy"],
    }
    if "kl" in mean:
        figures |= {
            "teacher_nll": mean["teacher_loss"],
            "teacher_perplexity": float(np.exp(mean["teacher_loss"])),
            "teacher_entropy": mean["teacher_entropy"],
            "kl": mean["kl"],
            "agreement": mean["agreement"],
        }
    return figures
