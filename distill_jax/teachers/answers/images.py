"""Precomputes a frozen teacher's answers: to every view of every training image, or to whole steps.

Where the augmentation has finitely many views (a crop and a flip), `precompute_views` stores the
answers to all of them; otherwise `precompute_steps` stores those of the first steps of a training.
Files are described in `store`; `stored_teacher` reads them.
"""

import contextlib
import dataclasses
import os

import numpy as np

from distill_jax import data
from distill_jax.storage.sharded import Manifest
from distill_jax.teachers.answers import manifest as manifests
from distill_jax.teachers.answers.computing import AnswerComputation
from distill_jax.teachers.answers.manifest import Arrays
from distill_jax.teachers.answers.schemes import Finite, Seeded, key_implementation
from distill_jax.teachers.answers.store import AnswerFolder, Note
from distill_jax.training.logging.progress import Style


def precompute_views(
    path: str | os.PathLike[str],
    computation: AnswerComputation,
    *,
    part_size: int = 0,
    note: Note = print,
    style: Style = "off",
) -> Manifest:
    """Stores a teacher's answers to all views of a training split, or resumes an unfinished store.

    Args:
      path: the folder: a new one, or a store of the same answers.
      computation: the teacher, the data and an augmentation by a crop and a flip, or less.
      part_size: images a part; 0 for about 64 MiB, or for what an unfinished store has.
      note: called with one line for each part that is written.
      style: how the progress is shown, see `Progress`.

    Returns:
      The manifest.

    Raises:
      UsageError: the augmentation has endlessly many views, the folder holds something else, the
        disk is too small, or an answer is not finite or does not fit the stored dtype.
    """
    train, test = computation.train, computation.test
    scheme = Finite.of(computation.augment)
    manifest = computation.manifest(
        {"scheme": scheme.kind, "padding": scheme.padding, "flip": scheme.flip},
        items=len(train),
        answers_per_item=scheme.count,
        part_size=part_size,
    )
    folder = AnswerFolder(path, manifest)
    answers = computation.all_views(scheme, folder.computed)

    def compute(first: int, count: int) -> Arrays:
        images, _ = train.batch(np.arange(first, first + count))
        # A last part of fewer images is padded, so that one compiled program computes all parts.
        # A part of small answers has room for more images than there are.
        most = min(folder.part_size, len(train))
        padding = images[-1:].repeat(most - count, axis=0)
        return answers(np.concatenate([images, padding]), count)

    test_answers = {"test": lambda: computation.unaugmented(test, np.arange(len(test)))}
    return folder.write(compute, unaugmented=test_answers, note=note, style=style)


def precompute_steps(
    path: str | os.PathLike[str],
    computation: AnswerComputation,
    *,
    train_ids: np.ndarray,
    seed: int,
    steps: int,
    part_size: int = 0,
    note: Note = print,
    style: Style = "off",
) -> Manifest:
    """Stores a teacher's answers to the first steps of a training, whatever the augmentation.

    Args:
      computation: as in `precompute_views`; its batch size is the training's.
      train_ids: int32 [n], the examples that are trained on, in their order; the rest is held out.
      seed: of the training.
      steps: S; a training cycles through them.
      part_size: steps a part; 0 as in `precompute_views`.

    The other arguments, the result and the errors are those of `precompute_views`.
    """
    train, test, augment = computation.train, computation.test, computation.augment
    batch_size = computation.batch_size
    scheme = Seeded(steps, batch_size, seed)
    held_out = np.setdiff1d(np.arange(len(train), dtype=np.int32), train_ids)
    manifest = computation.manifest(
        {
            "scheme": scheme.kind,
            **dataclasses.asdict(scheme),
            "train_ids": manifests.hash_of_ids(train_ids),
            "key_implementation": key_implementation(),
            "probe": scheme.probe(augment),
        },
        items=steps,
        answers_per_item=batch_size,
        part_size=part_size,
        held_out=len(held_out),
    )
    folder = AnswerFolder(path, manifest)
    answers = computation.steps(folder.computed)
    order = data.Order(train_ids, seed)
    crops = data.Crops.of(augment.resized_crop, seed)
    feed = data.training_feed(train, order, batch_size, resident=False, workers=0, crops=crops)

    def compute(first: int, count: int) -> Arrays:
        ids = order.ids(first * batch_size, count * batch_size).reshape(count, batch_size)
        keys = scheme.keys(first, count)
        with contextlib.closing(feed.at(first * batch_size)) as batches:
            found = answers((batch["image"] for batch in batches), keys)
        return {**found, "ids": ids, "keys": keys}

    unaugmented = {
        "test": lambda: computation.unaugmented(test, np.arange(len(test))),
        "held_out": lambda: {"ids": held_out, **computation.unaugmented(train, held_out)},
    }
    return folder.write(compute, unaugmented=unaugmented, note=note, style=style)
