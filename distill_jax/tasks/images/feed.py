"""Training batches that carry the stored answers of a teacher to their views."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import data, parallel
from distill_jax.data.images import augment
from distill_jax.tasks.images.data import ImageData
from distill_jax.teachers import Finite, Seeded, StoredTeacher, host_draws


def training_feed(
    config: ConfigDict, mesh: Mesh, opened: ImageData, *, resident: bool
) -> data.TrainingFeed:
    """The batches of a run, of which this process gets its own rows.

    Args:
      config: resolved.
      mesh: the devices, which decide on the rows of each process.
      opened: the images.
      resident: whether the images are on the devices, so that a batch holds ids alone.
    """
    process, processes = parallel.process_share(mesh)
    return data.training_feed(
        opened.train,
        data.Order(opened.train_ids, config.seed),
        config.training.batch_size,
        resident=resident,
        workers=config.data.workers,
        process=process,
        processes=processes,
        crops=data.Crops.of(config.data.augment.resized_crop, config.seed),
    )


@dataclasses.dataclass(frozen=True)
class StoredAnswersFeed:
    """Batches with a teacher's stored answers to their views.

    Attributes:
      feed: the batches of the run.
      teacher: the store of views, or of the steps of one run.
      augment: how the run draws its views.
      seed: of the run.
    """

    feed: data.TrainingFeed
    teacher: StoredTeacher
    augment: augment.Augment
    seed: int

    def at(self, position: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches from the example at `position` on; a store of steps has batches of its own."""
        scheme, step = self.teacher.scheme, position // self.feed.batch_size
        if isinstance(scheme, Finite):
            return self._with_views(position, step)
        return self._stored_steps(scheme, step)

    def _with_views(self, position: int, first: int) -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(self.feed.at(position), start=first):
            draws = host_draws(self.seed, step, self.feed.batch_size, self.augment)
            own = {name: each[self.feed.part] for name, each in draws.items()}  # all of them [B]
            yield {**batch, **self.teacher.gather(batch["id"], own)}

    def _stored_steps(self, scheme: Seeded, first: int) -> Iterator[dict[str, np.ndarray]]:
        feed = self.feed
        crops = data.Crops.of(self.augment.resized_crop, scheme.seed)
        for step in itertools.count(first):
            stored = self.teacher.rows(step, 1)
            ids = stored.ids[0]
            answers = {name: each[0][feed.part] for name, each in stored.answers.items()}
            batch = {"id": ids[feed.part]}
            if not feed.resident:
                position = step % scheme.steps * feed.batch_size
                batch = data.load_rows(feed.examples, ids, feed.part, crops, position)
            yield {**batch, "view_key": stored.keys[0], **answers}
