"""From a resolved config to the parts of a run: everything opened, checked, placed on the mesh.

Nothing is written here. What a config alone can tell is checked in `config.py`; what needs the
data, the teacher or the devices is checked here, in one line each.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import data, methods, models, parallel, storage, teachers
from distill_jax.errors import UsageError
from distill_jax.optim import optimizers, schedules
from distill_jax.tasks.base import Parts
from distill_jax.tasks.images import pairing
from distill_jax.tasks.images.evaluate import Evaluator
from distill_jax.tasks.images.recipe import ImageRecipe
from distill_jax.tasks.images.teacher import Opened, open_teacher
from distill_jax.training import state, step
from distill_jax.training.recipe import Recipe

LOOK_AHEAD_EXAMPLES = 512  # in one forward pass of the teacher, where the config leaves it open
RESIDENT_LIMIT = 4 * 2**30  # bytes of images that data.resident="auto" puts on the device


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageParts(Parts):
    """The parts of a run on images.

    Attributes:
      train: examples of the training split (the validation examples among them).
      train_ids: ids that are trained on.
    """

    train: data.Examples
    train_ids: np.ndarray

    @property
    def _order(self) -> data.Order:
        return data.Order(self.train_ids, self.config.seed)

    def ids(self, step: int) -> np.ndarray:
        size = self.config.training.batch_size
        return self._order.ids(step * size, size)

    def _crops(self, seed: int) -> data.Crops | None:
        return data.Crops.of(self.config.data.augment.resized_crop, seed)

    def save(self, folder: str | os.PathLike, params: Any, stats: Any) -> str:
        with storage.staging_folder(folder, "model.json") as here:
            return models.save(here, self.recipe.spec, params, stats)

    def load(self, folder: str | os.PathLike) -> tuple[models.Flat, models.Flat]:
        saved = models.load(folder, key="--workdir")
        where = self.layout.params, self.layout.stats
        return parallel.put((saved.params, saved.stats), where)

    def batches(self, position: int) -> Iterator[dict[str, np.ndarray]]:
        process, processes = parallel.process_share(self.mesh)
        feed = data.training_feed(
            self.train,
            self._order,
            self.config.training.batch_size,
            resident=bool(self.resident),
            workers=self.config.data.workers,
            process=process,
            processes=processes,
            crops=self._crops(self.config.seed),
        )
        if isinstance(self.recipe.teachers, teachers.StoredTeacher) and not self.frozen.teachers:
            return self._with_answers(feed, position)
        return feed.at(position)

    def _with_answers(
        self, feed: data.TrainingFeed, position: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches with the stored answers to their views; of a store of steps, its own batches."""
        recipe, size = self.recipe, self.config.training.batch_size
        teacher, first, part = recipe.teachers, position // size, feed.part
        if isinstance(teacher.scheme, teachers.Finite):
            for step_of, batch in enumerate(feed.at(position), start=first):
                draws = teachers.host_draws(self.config.seed, step_of, size, recipe.augment)
                draws = {name: each[part] for name, each in draws.items()}  # all of them [B]
                yield {**batch, **teacher.gather(batch["id"], draws)}
        crops = self._crops(teacher.scheme.seed)
        for step_of in itertools.count(first):
            (ids,), (key,), answers = teacher.rows(step_of, 1)
            answers = {name: a[0][part] for name, a in answers.items()}
            batch = {"id": ids[part]}
            if not self.resident:
                position = step_of % teacher.scheme.steps * size
                batch = data.load_rows(self.train, ids, part, crops, position)
            yield {**batch, "view_key": key, **answers}


def mesh_of(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices of a run.

    Args:
      config: resolved.
      devices: those to use; all that are here by default.

    Raises:
      UsageError: there are others, or a batch or a part of one does not divide by them.
    """
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    for key in ("training.batch_size", "evaluation.batch_size"):
        parallel.check_divides(mesh, key, configs.flatten(config)[key])
    part = config.training.batch_size // config.training.accumulate
    if part % parallel.batch_ways(mesh):
        raise UsageError(
            f"training.accumulate={config.training.accumulate}: parts of {part} examples do "
            f"not divide by the {parallel.batch_ways(mesh)} devices that share a batch; expected a "
            "smaller number"
        )
    return mesh


def prepare(config: ConfigDict) -> ImageParts:
    """Opens and checks all that a resolved config names; writes nothing.

    Raises:
      UsageError: when the data, the teacher, the mesh or the method do not fit.
    """
    mesh = mesh_of(config)
    splits = load_splits(config)
    train, info = splits["train"], splits["train"].info
    if splits["test"].info.image_shape != info.image_shape:
        raise UsageError(
            f"data.name={config.data.name!r}: the training images are {info.image_shape}, the test "
            f"images {splits['test'].info.image_shape}; expected one shape"
        )
    _check_classes(config, info)
    train_ids, validation_ids = train_ids_of(config, train)
    method = methods.create(config.method.name, **configs.method_options(config))
    opened = open_teacher(config, method, mesh, splits, train_ids, RESIDENT_LIMIT)
    pixels = _normalisation(config, train, train_ids)
    steps_per_epoch = len(train_ids) / config.training.batch_size
    recipes, arrays = fit(
        config, mesh, info, pixels, method, opened, train.labels(), steps_per_epoch
    )
    spec, graphdef = recipes[0].spec, recipes[0].graphdef
    whole = parallel.replicated(mesh)
    resident = {split: is_resident(config, examples.nbytes) for split, examples in splits.items()}
    store = parallel.put(data.resident_arrays(train), whole) if resident["train"] else {}
    evaluators = {}
    for name, examples, ids in (
        ("validation", train, validation_ids),
        ("test", splits["test"], np.arange(len(splits["test"]), dtype=np.int32)),
    ):
        if len(ids):
            split = "train" if examples is train else "test"
            evaluators[name] = _evaluator(
                config, spec, graphdef, mesh, examples, ids, resident[split],
                store if examples is train else None,
                opened.answer and opened.answer(name),
            )  # fmt: skip
    return ImageParts(
        config=config,
        mesh=mesh,
        train=train,
        train_ids=train_ids,
        recipes=recipes,
        initial=initial_state(config, mesh, recipes[0], arrays),
        frozen=state.Frozen(teachers=opened.variables),
        resident=store,
        evaluators=evaluators,
        steps_per_epoch=steps_per_epoch,
        description={
            "teachers": opened.entries,
            "data": {
                "name": config.data.name,
                "fingerprint": data.fingerprint(train),
                "train": len(train_ids),
                "validation": len(validation_ids),
                "test": len(splits["test"]),
                "class_names": info.class_names,
            },
        },
    )


def fit(
    config: ConfigDict,
    mesh: Mesh,
    info: data.Info,
    pixels: tuple[Sequence[float], Sequence[float]],
    method: methods.Method,
    opened: Opened,
    labels: np.ndarray,
    steps_per_epoch: float,
) -> tuple[tuple[ImageRecipe, ...], tuple[models.Flat, ...]]:
    """The student and the method's arrays, fitted to the teacher and the data.

    Args:
      config: resolved.
      mesh: the devices.
      info: of the data.
      pixels: mean and deviation by channel.
      method: of the config.
      opened: the teacher; its arrays may be those that `jax.eval_shape` traces.
      labels: of the training split, by id.
      steps_per_epoch: examples over batch size.

    Returns:
      A recipe a stage, and the initial (parameters, statistics, adapters, memory).
    """
    student = models.create(
        config.student.name,
        input_shape=info.image_shape,
        num_classes=info.num_classes,
        seed=config.seed,
        dtype=jnp.dtype(config.training.compute_dtype),
        **configs.student_options(config),
    )
    graphdef, params, stats = models.split(student)
    mean, std = pixels
    spec = models.Spec(
        name=config.student.name,
        options=configs.student_options(config),
        input_shape=tuple(info.image_shape),
        num_classes=info.num_classes,
        mean=mean,
        std=std,
    )
    outputs = pairing.outputs_of(graphdef, params, stats, spec.input_shape)
    teacher, answers = opened.teacher, opened.outputs
    if config.teacher.own_average:
        teacher, answers = teachers.AverageTeacher(spec, graphdef), [outputs]
    paired = pairing.pair_up(
        method,
        config.method.name,
        (spec, outputs, params),
        answers if method.needs_teacher else [],
        opened.params,
        labels,
        config.seed,
        sum_losses=config.teacher.combine == "sum_losses",
    )
    recipes = _recipes(config, method, spec, graphdef, teacher, paired, steps_per_epoch, mesh)
    return recipes, (paired.params, stats, paired.adapters, paired.memory)


def initial_state(
    config: ConfigDict, mesh: Mesh, recipe: Recipe, arrays: tuple[models.Flat, ...]
) -> state.TrainState:
    """The state before the first step of a run.

    Args:
      config: resolved.
      mesh: the devices.
      recipe: of the first stage.
      arrays: (parameters, statistics, adapters, memory), or `jax.ShapeDtypeStruct`s of them.
    """
    return state.initial(
        *arrays,
        recipe.optimizer,
        mesh=mesh,
        replicate=config.mesh.replicate,
        seed=config.seed,
        averaged=config.training.ema_decay > 0,
        metrics=recipe.metrics,
    )


def load_splits(config: ConfigDict) -> dict[str, data.Examples]:
    """The splits "train" and "test" that a resolved config names.

    Raises:
      UsageError: they are not there, or cannot be cut as the config says.
    """
    splits = {
        split: data.load(
            config.data.name,
            split,
            tfds_dir=config.data.tfds_dir,
            path=config.data.path,
            image_size=config.data.image_size,
        )
        for split in ("train", "test")
    }
    least = config.data.augment.resized_crop
    if least and not splits["train"].crops:
        raise UsageError(
            f"data.augment.resized_crop={least}: data.name={config.data.name!r} does not decode "
            "images when they are read; expected 0, or a set that does: 'folder', or one of TFDS"
        )
    return splits


def train_ids_of(config: ConfigDict, train: data.Examples) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the training split that are trained on, and those that are held out."""
    return data.splits(
        train,
        validation=config.data.validation,
        split_seed=config.data.split_seed,
        fraction=config.data.fraction,
        only_classes=config.data.only_classes,
        exclude_classes=config.data.exclude_classes,
    )


def _check_classes(config: ConfigDict, info: data.Info) -> None:
    for key in ("only_classes", "exclude_classes"):
        for index in config.data[key]:
            if index >= info.num_classes:
                raise UsageError(
                    f"data.{key}={config.data[key]}: {info.name} has no class {index}; "
                    f"expected indices below {info.num_classes}"
                )


def _normalisation(config: ConfigDict, train: data.Examples, ids: np.ndarray) -> tuple:
    """Mean and deviation of the pixels by channel: the config's, else measured where it says ()."""
    given = {"mean": config.data.mean, "std": config.data.std}
    channels = train.info.image_shape[-1]
    for key, values in given.items():
        if values and len(values) != channels:
            raise UsageError(f"data.{key}={values}: expected {channels} numbers, one a channel")
    if given["mean"] and given["std"]:
        return given["mean"], given["std"]
    mean, std = data.statistics(train, ids)
    return given["mean"] or mean, given["std"] or std


def _recipes(
    config, method, spec, graphdef, teacher, paired, steps_per_epoch, mesh
) -> tuple[ImageRecipe, ...]:
    """One recipe a stage of the method."""
    recipes, begin = [], 0
    one = schedules.parse(1.0)
    stages = method.stages()
    for stage, taps in zip(stages, paired.teacher_taps, strict=True):
        main = stage is stages[-1]
        epochs = config.training.epochs if main else stage.epochs
        steps = math.ceil(epochs * steps_per_epoch - 1e-9)
        if main and config.training.steps:
            steps = config.training.steps
        if main:
            rate = optimizers.learning_rate(
                config.schedule, config.optimizer.learning_rate, steps, steps_per_epoch
            )
        else:
            rate = optax.constant_schedule(stage.learning_rate or config.optimizer.learning_rate)
        hard = config.method.hard_weight if stage.hard else 0.0
        recipes.append(
            ImageRecipe(
                spec=spec,
                graphdef=graphdef,
                augment=data.Augment(**config.data.augment),
                method=method,
                stage=stage,
                begin=begin,
                steps=steps,
                steps_per_epoch=steps_per_epoch,
                teachers=teacher,
                teacher_taps=taps,
                sum_losses=config.teacher.combine == "sum_losses",
                look_ahead=_look_ahead(config, mesh),
                mesh=mesh,
                hard_weight=schedules.parse(hard),
                soft_weight=schedules.parse(config.method.soft_weight) if main else one,
                temperature=schedules.parse(config.method.temperature),
                label_smoothing=config.method.label_smoothing,
                optimizer=optimizers.create(config.optimizer, rate),
                learning_rate=rate,
                max_norm=config.optimizer.max_norm,
                ema_decay=config.training.ema_decay,
                accumulate=config.training.accumulate,
                log_every=config.logging.every_steps,
            )
        )
        begin += steps
    return tuple(recipes)


def _look_ahead(config: ConfigDict, mesh: Mesh) -> int:
    """Steps whose teacher answers are computed together."""
    if config.teacher.look_ahead:
        return config.teacher.look_ahead
    if step.on_cpu(mesh):
        return 1
    return max(LOOK_AHEAD_EXAMPLES // config.training.batch_size, 1)


def is_resident(config: ConfigDict, nbytes: int) -> bool:
    """Whether a split of so many bytes is kept on the devices."""
    if config.data.resident == "auto":
        return nbytes <= RESIDENT_LIMIT and not config.data.augment.resized_crop
    return config.data.resident == "yes"


def _evaluator(config, spec, graphdef, mesh, examples, ids, resident, store, answer) -> Evaluator:
    if resident and not store:
        store = parallel.put(data.resident_arrays(examples), parallel.replicated(mesh))
    process, processes = parallel.process_share(mesh)
    feed = data.evaluation_feed(
        examples,
        ids,
        config.evaluation.batch_size,
        resident=resident,
        process=process,
        processes=processes,
    )
    return Evaluator(spec, graphdef, mesh, lambda: feed, store if resident else {}, answer)
