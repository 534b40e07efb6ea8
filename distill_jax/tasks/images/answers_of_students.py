"""What a student answers to every example of a split: its logits, and taps of it."""

from collections.abc import Sequence
from typing import cast

import jax
import numpy as np

from distill_jax import data, models, parallel
from distill_jax.errors import unknown
from distill_jax.models import Flat
from distill_jax.tasks.base import Parts
from distill_jax.tasks.evaluation import batches_on
from distill_jax.tasks.images.data import open_data
from distill_jax.tasks.images.recipe import ImageRecipe, examples_of

#: "logits" float32 [N, K], "labels" int32 [N], "ids" int32 [N] (positions in the split's source),
#: and each tap, float32 [N, ...].
Answers = dict[str, np.ndarray]


def answers_of(
    parts: Parts, split: str, params: Flat, stats: Flat, taps: Sequence[str] = ()
) -> Answers:
    """The answers to images that are not augmented, in the order of the split.

    Args:
      parts: of a run on images.
      split: "test" or "validation".
      params: of the student, on the devices.
      stats: likewise.
      taps: features to add.

    Raises:
      UsageError: an unknown tap.
    """
    recipe, mesh = cast(ImageRecipe, parts.recipe), parts.mesh
    spec, graphdef = recipe.spec, recipe.graphdef
    opened = open_data(parts.config)
    examples = opened.test if split == "test" else opened.train
    ids = np.arange(len(examples)) if split == "test" else opened.validation_ids

    def outputs(params: Flat, stats: Flat, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images, _ = data.identity(*examples_of(batch, {}), spec.num_classes)
        inputs = models.normalise(images, spec.mean, spec.std)
        found = models.apply(
            graphdef, parallel.gather_tree(params, mesh), stats, inputs, train=False
        )[0]
        for tap in taps:
            if tap not in found.taps:
                raise unknown("--taps", tap, found.taps, "tap")
        arrays = {"logits": found.logits, **{tap: found.taps[tap] for tap in taps}}
        return {"labels": examples_of(batch, {})[1], "mask": batch["mask"], **arrays}

    process, processes = parallel.process_share(mesh)
    batches = data.evaluation_feed(
        examples,
        ids.astype(np.int32),
        parts.config.evaluation.batch_size,
        resident=False,
        process=process,
        processes=processes,
    )
    compiled = jax.jit(outputs)
    fetched = [
        parallel.fetch(compiled(params, stats, batch)) for batch in batches_on(mesh, batches)
    ]
    joined = {
        name: np.concatenate([each[name][each["mask"]] for each in fetched])
        for name in fetched[0]
        if name != "mask"
    }
    return {**joined, "ids": ids.astype(np.int32)}
