"""From packed rows to batches: in training order, or each row once for an evaluation.

In a run of several processes, each is given the same arguments and its own number and makes its own
rows of every batch, so that a position means the same in all of them. Batches are gathered on
demand, which takes far less than a step, so nothing is prefetched. Left out on purpose: putting
batches on devices, which is the training loop's work.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from distill_jax.data.order import Order, process_rows
from distill_jax.data.text.packing import Batch, Rows


@dataclasses.dataclass(frozen=True)
class TrainingFeed:
    """An endless feed of training batches that can be entered at any position."""

    rows: Rows
    order: Order
    batch_size: int
    part: slice

    def at(self, position: int) -> Iterator[Batch]:
        """Batches from the row at `position` of the order on.

        Args:
          position: how many rows all processes together used before, at least 0.

        Returns:
          An endless iterator of what `Rows.batch` gives, for B / processes rows, and "id", int32,
          the numbers of the rows.
        """
        while True:
            ids = self.order.ids(position, self.batch_size)[self.part]
            yield {"id": ids, **self.rows.batch(ids)}
            position += self.batch_size


def training_feed(
    rows: Rows, order: Order, batch_size: int, *, process: int = 0, processes: int = 1
) -> TrainingFeed:
    """The feed of a training run.

    Args:
      rows: the packed training documents.
      order: the order over the rows, usually `Order(np.arange(len(rows)), seed)`: a permutation of
        its own for each epoch.
      batch_size: B, over all processes.
      process, processes: which of how many this is.

    Returns:
      The feed; begin with `.at(position)`.

    Raises:
      UsageError: B is not a multiple of `processes`.
    """
    return TrainingFeed(rows, order, batch_size, process_rows(batch_size, process, processes))


@dataclasses.dataclass(frozen=True)
class EvaluationFeed:
    """Every row exactly once, in order; can be iterated any number of times."""

    rows: Rows
    batch_size: int
    part: slice

    def __len__(self) -> int:
        """The number of batches, the same in every process."""
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        ids = np.arange(index * self.batch_size, (index + 1) * self.batch_size)[self.part]
        real = ids < len(self.rows)
        # The last row stands in for what is missing: real text, masked out.
        ids = np.minimum(ids, len(self.rows) - 1).astype(np.int32)
        batch = self.rows.batch(ids)
        return {"id": ids, **batch, "mask": batch["mask"] & real[:, None]}

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


def evaluation_feed(
    rows: Rows, batch_size: int, *, process: int = 0, processes: int = 1
) -> EvaluationFeed:
    """The feed of an evaluation.

    Args:
      rows: the packed documents.
      batch_size: B, over all processes.
      process, processes: which of how many this is.

    Returns:
      A sequence of batches as in `TrainingFeed.at`; the last is padded with rows whose mask is
      False everywhere.

    Raises:
      UsageError: B is not a multiple of `processes`.
    """
    return EvaluationFeed(rows, batch_size, process_rows(batch_size, process, processes))
