"""Sums over a split: computed on the devices batch by batch, added in float64 on the host."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.parallel import batch_sharding, put_rows

HostBatch = dict[str, np.ndarray]
Batch = dict[str, jax.Array]


def batches_on(mesh: Mesh, batches: Iterable[HostBatch]) -> Iterator[Batch]:
    """The batches of a split on the devices; each process gives its own rows."""
    for batch in batches:
        yield put_rows(batch, batch_sharding(mesh))


def sum_over_split(
    sums: Callable[[int, Batch], dict[str, jax.Array]], batches: Iterable[Batch]
) -> dict[str, Any]:
    """Adds what `sums` measures over all batches.

    All batches are dispatched before the first result is fetched.

    Args:
      sums: (number of the batch, batch) -> sums over its examples or tokens, by name.
      batches: on the devices.

    Returns:
      The totals by name, float64.
    """
    measured = [sums(index, batch) for index, batch in enumerate(batches)]
    totals: dict[str, Any] = {}
    for part in jax.device_get(measured):
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)
    return totals
