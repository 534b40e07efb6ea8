"""Opens, checks and places on the mesh all that a run on images is made of; writes no file.

What a config alone can tell is checked in `distill_jax.config`; what depends on the data, the
teacher or the devices is checked here.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import data, methods, models, parallel, storage
from distill_jax.quantization.aware import Quantizer
from distill_jax.tasks import quantized
from distill_jax.tasks.base import Feed, MakeRecord, Parts
from distill_jax.tasks.images import build
from distill_jax.tasks.images.data import ImageData, is_resident, notes_on, open_data, pixels_of
from distill_jax.tasks.images.evaluation import ImageEvaluator
from distill_jax.tasks.images.feed import StoredAnswersFeed, training_feed
from distill_jax.tasks.images.provenance import notes_on_validation, training_examples
from distill_jax.tasks.images.recipe import ImageRecipe
from distill_jax.tasks.images.record import record_of
from distill_jax.tasks.images.teachers import OpenTeachers, open_teachers
from distill_jax.tasks.licences import start_of_student, with_licences
from distill_jax.tasks.setup import initial_state, make_mesh
from distill_jax.teachers import StoredTeacher
from distill_jax.training.state import Frozen, TrainState


@dataclasses.dataclass(frozen=True)
class ImageModelFiles:
    """Students as model folders.

    Attributes:
      spec: the student's.
      layout: the shardings of the state.
      trained_on: what describes their training examples.
      quantizer: of a student that was trained with quantized kernels, whose codes are written.
    """

    spec: models.Spec
    layout: TrainState
    trained_on: dict[str, Any]
    quantizer: Quantizer | None = None

    def save(self, folder: str | os.PathLike, params: models.Flat, stats: models.Flat) -> str:
        with storage.staging_folder(folder, "model.json") as staging:
            return models.save(
                staging,
                self.spec,
                params,
                stats,
                trained_on=self.trained_on,
                grids=self.quantizer.grids if self.quantizer else None,
            )

    def load(self, folder: str | os.PathLike) -> tuple[models.Flat, models.Flat]:
        saved = models.load(folder, key="--workdir")
        return parallel.put((saved.params, saved.stats), (self.layout.params, self.layout.stats))


def prepare(config: ConfigDict) -> Parts:
    """Opens and checks all that a resolved config names; writes nothing.

    Raises:
      UsageError: when the data, the teacher, the mesh or the method do not fit.
    """
    mesh = make_mesh(config)
    opened = open_data(config)
    method = methods.create(config.method.name, **configs.method_options(config))
    teachers = open_teachers(config, mesh, method, opened)
    steps_per_epoch = len(opened.train_ids) / config.training.batch_size
    recipes, arrays = build.build_recipes(
        config,
        mesh,
        method,
        teachers,
        info=opened.train.info,
        pixels=pixels_of(config, opened),
        labels=opened.train.labels(),
        steps_per_epoch=steps_per_epoch,
    )
    quantizer = cast(Quantizer | None, recipes[0].quantize)
    resident = _resident(config, mesh, opened.train)
    initial = initial_state(config, mesh, recipes[0], arrays)
    feed = training_feed(config, mesh, opened, resident=bool(resident))
    evaluators = _evaluators(config, mesh, opened, recipes[0], teachers, resident)
    fingerprint = data.fingerprint(opened.train)
    seen = notes_on_validation(config, opened, fingerprint, teachers.trained_on)
    return Parts(
        config=config,
        mesh=mesh,
        recipes=recipes,
        initial=initial,
        frozen=Frozen(teachers=teachers.variables),
        resident=resident,
        order=feed.order,
        feed=_with_answers(config, feed, teachers),
        evaluators=evaluators,
        record=_record(evaluators, opened, teachers),
        files=ImageModelFiles(
            recipes[0].spec,
            jax.tree.map(lambda a: a.sharding, initial),
            training_examples(config, fingerprint),
            quantizer,
        ),
        steps_per_epoch=steps_per_epoch,
        description={
            **_description(config, opened, teachers, fingerprint),
            **quantized.description(quantizer, arrays.params),
        },
        notes=(*notes_on(config, opened), *teachers.notes, *seen),
    )


def _resident(config: ConfigDict, mesh: Mesh, examples: data.Examples) -> dict[str, jax.Array]:
    """A split on the devices; {} where it is read batch by batch."""
    if not is_resident(config, examples.nbytes):
        return {}
    return parallel.put(data.resident_arrays(examples), parallel.replicated(mesh))


def _with_answers(config: ConfigDict, feed: data.TrainingFeed, opened: OpenTeachers) -> Feed:
    """The feed, with the teacher's answers where a store streams them."""
    if not isinstance(opened.teacher, StoredTeacher) or opened.variables:
        return feed
    augment = data.Augment(**config.data.augment)
    return StoredAnswersFeed(feed, opened.teacher, augment, config.seed)


def _evaluators(
    config: ConfigDict,
    mesh: Mesh,
    opened: ImageData,
    recipe: ImageRecipe,
    teachers: OpenTeachers,
    resident: dict[str, jax.Array],
) -> dict[str, ImageEvaluator]:
    process, processes = parallel.process_share(mesh)

    def evaluator(
        split: str, examples: data.Examples, ids: np.ndarray, on_devices: dict[str, jax.Array]
    ) -> ImageEvaluator:
        batches = data.evaluation_feed(
            examples,
            ids,
            config.evaluation.batch_size,
            resident=bool(on_devices),
            process=process,
            processes=processes,
        )
        logits = teachers.logits(split) if teachers.logits else None
        return ImageEvaluator(recipe.spec, recipe.graphdef, mesh, batches, on_devices, logits)

    found: dict[str, ImageEvaluator] = {}
    if len(opened.validation_ids):
        found["validation"] = evaluator("validation", opened.train, opened.validation_ids, resident)
    if len(opened.test):
        ids = np.arange(len(opened.test), dtype=np.int32)
        on_devices = _resident(config, mesh, opened.test)
        found["test"] = evaluator("test", opened.test, ids, on_devices)
    return found


def _record(
    evaluators: Mapping[str, ImageEvaluator], opened: ImageData, teachers: OpenTeachers
) -> MakeRecord | None:
    """What makes the record of the test split; None without one."""
    if "test" not in evaluators:
        return None
    return functools.partial(
        record_of, evaluators["test"], opened.test, teachers.teacher, teachers.variables
    )


def _description(
    config: ConfigDict, opened: ImageData, teachers: OpenTeachers, fingerprint: str
) -> dict[str, Any]:
    """What the manifest records of the teachers and the data."""
    return {
        "teachers": with_licences(config, teachers.entries),
        **({"started_from": start} if (start := start_of_student(config)) else {}),
        "data": {
            "name": config.data.name,
            "fingerprint": fingerprint,
            "train": len(opened.train_ids),
            "validation": len(opened.validation_ids),
            "test": len(opened.test),
            "class_names": opened.train.info.class_names,
        },
    }
