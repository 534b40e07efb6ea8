"""A run of shapes: the step that a config makes, without its data, its weights or its memory.

The recipe is made by the same code as that of a run (`assembly.fit`, `text_pairing`), on arrays
that have a shape, a dtype and a sharding and no values. A decoder comes from the config.json of its
folder, another teacher from its workdir or from a model's name. Left out on purpose: evaluations,
which have programs of their own, with the teacher that they read in a run by stored answers; and
stored answers to images.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import data, methods, models, parallel, storage, teachers
from distill_jax.config import schema
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.planning import datasets
from distill_jax.tasks.images import parts as image_parts
from distill_jax.tasks.images.teacher import Opened
from distill_jax.tasks.language import objective
from distill_jax.teachers import ANSWER_PREFIX
from distill_jax.teachers.answers.sparse import KINDS
from distill_jax.training.recipe import Recipe
from distill_jax.training.state import Frozen


@dataclasses.dataclass(frozen=True)
class Abstract:
    """All that a step takes, as shapes with shardings.

    Attributes:
      config: resolved.
      mesh: the devices.
      recipe: of the last stage of the method, the training itself.
      state: the `TrainState`.
      frozen: the parameters that no step changes.
      resident: the data set on the devices, or {}.
      batches: of `recipe.ahead` steps, [n, B, ...].
      total_steps: of the run; None where only the data can tell.
      unit: what a batch has so many of, "tokens" or "images".
      units: of them a step.
      parameters: how many numbers "student" and "teacher" are.
    """

    config: ConfigDict
    mesh: Mesh
    recipe: Recipe
    state: Any
    frozen: Frozen
    resident: dict[str, Any]
    batches: dict[str, Any]
    total_steps: int | None
    unit: str
    units: int
    parameters: dict[str, int]


def prepare(config: ConfigDict, devices: Sequence[Any]) -> Abstract:
    """The step of a resolved config on some devices, which need not be here.

    Raises:
      UsageError: the teacher, the mesh, the data or the method do not fit.
    """
    mesh = image_parts.mesh_of(config, devices)
    make = _text if config.data.name == schema.TEXT else _images
    return make(config, mesh)


def _placed(tree: Any, layout: Any) -> Any:
    return jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree, layout
    )


def _batches(mesh: Mesh, shapes: dict[str, tuple[tuple[int, ...], Any]], ahead: int) -> dict:
    split = NamedSharding(mesh, PartitionSpec(None, parallel.BATCH))
    return {
        name: jax.ShapeDtypeStruct((ahead, *shape), dtype, sharding=split)
        for name, (shape, dtype) in shapes.items()
    }


def _text(config: ConfigDict, mesh: Mesh) -> Abstract:
    def make_teachers():
        return objective.open_teachers(config, mesh, language.load_zeros)

    def make_student(teachers):
        first = teachers[0] if teachers else None
        vocab_size = sizes[0] if sizes else 0
        return objective.open_own(config, mesh, first, vocab_size, language.load_zeros)

    opened = nnx.eval_shape(make_teachers)
    sizes = [teacher.config.vocab_size for teacher in opened]

    if not sizes and not config.student.path:
        raise UsageError(
            "student.path='': without a teacher a plan does not know the vocabulary; expected a "
            "folder with a config.json"
        )
    student = nnx.eval_shape(make_student, opened)
    shared = min([*sizes, student.config.vocab_size])
    stored = _stored_answers(config, shared)
    if stored is not None:
        opened, shared = (), stored.vocab_size
    comparison, params, frozen = objective.compare(config, mesh, opened, student, shared, stored)
    frozen = Frozen(
        student=_placed(frozen.student, objective.where(config, mesh, frozen.student, "student")),
        teachers=_placed(
            frozen.teachers, objective.where(config, mesh, frozen.teachers, "teacher")
        ),
    )
    adapters = jax.eval_shape(comparison.adapters, objective.adapters_key(config))
    rollout = objective.rollout_of(config, comparison, (), mesh)
    # How many steps are an epoch, the text would tell; the program does not depend on it.
    recipe = objective.recipe_of(config, comparison, 1.0, rollout)
    rows, length = config.training.batch_size, config.data.length
    whole = ((rows, length), jnp.dtype(jnp.int32))
    shapes = {name: whole for name in ("tokens", "segments", "positions", "targets")}
    shapes["mask"] = (whole[0], jnp.dtype(bool))  # a step on text has no use for the ids of rows
    for name, (shape, dtype) in (stored.arrays if stored else {}).items():
        shapes[ANSWER_PREFIX + name] = ((*whole[0], *shape), dtype)
    counted = {"student": models.parameter_count({**params, **frozen.student})}
    if opened:
        counted["teacher"] = sum(
            models.parameter_count(models.split(language.abstract(teacher.config))[1])
            for teacher in opened
        )
    return Abstract(
        config=config,
        mesh=mesh,
        recipe=recipe,
        state=image_parts.initial_state(config, mesh, recipe, (params, {}, adapters, {})),
        frozen=frozen,
        resident={},
        batches=_batches(mesh, shapes, recipe.ahead),
        total_steps=config.training.steps or None,
        unit="tokens",
        units=rows * length,
        parameters=counted,
    )


def _stored_answers(config: ConfigDict, vocab_size: int) -> teachers.SparseFormat | None:
    """What `teacher.store` keeps of each token: of a store that is there, or as it says."""
    said = config.teacher.store
    if not said:
        return None
    if pathlib.Path(said).is_dir():
        return teachers.describe_text_store(said)[0]
    if said.partition(":")[0] not in KINDS:
        raise UsageError(
            f"teacher.store={said!r}: no such folder; expected that of a store, sampled:DRAWS, or "
            "top_k:IDS"
        )
    return teachers.SparseFormat.parse(said, vocab_size, key="teacher.store")


def _images(config: ConfigDict, mesh: Mesh) -> Abstract:
    info, trained_on, count = datasets.describe(config)
    channels = info.image_shape[-1]
    pixels = (
        config.data.mean or (0.5,) * channels,
        config.data.std or (0.25,) * channels,
    )
    method = methods.create(config.method.name, **configs.method_options(config))
    opened = _teachers(config, info, pixels)
    labels = np.arange(count, dtype=np.int32) % info.num_classes
    made = []

    def fit(variables):
        params = opened.teacher.params(variables) if opened.teacher else {}
        given = dataclasses.replace(opened, variables=variables, params=params)
        steps_per_epoch = trained_on / config.training.batch_size
        recipes, arrays = image_parts.fit(
            config, mesh, info, pixels, method, given, labels, steps_per_epoch
        )
        made.append(recipes)
        return arrays

    arrays = jax.eval_shape(fit, opened.variables)
    recipe = made[-1][-1]
    variables = opened.variables
    if variables:
        layout = parallel.shardings({"teacher": variables}, mesh, config.mesh.replicate)
        variables = _placed(variables, layout["teacher"])
    rows, integers = config.training.batch_size, jnp.dtype(jnp.int32)
    image = (info.image_shape, jnp.dtype(jnp.uint8))
    shapes, store = {"id": ((rows,), integers)}, {}
    if image_parts.is_resident(
        config, count * (int(np.prod(info.image_shape)) + integers.itemsize)
    ):
        store = {"image": ((count, *image[0]), image[1]), "label": ((count,), integers)}
        store = {
            name: jax.ShapeDtypeStruct(*kind, sharding=parallel.replicated(mesh))
            for name, kind in store.items()
        }
    else:
        shapes |= {"image": ((rows, *image[0]), image[1]), "label": ((rows,), integers)}
    counted = {"student": models.parameter_count(arrays[0])}
    if variables:
        counted["teacher"] = sum(models.parameter_count(params) for params, _ in variables)
    return Abstract(
        config=config,
        mesh=mesh,
        recipe=recipe,
        state=image_parts.initial_state(config, mesh, recipe, arrays),
        frozen=Frozen(teachers=variables),
        resident=store,
        batches=_batches(mesh, shapes, recipe.ahead),
        total_steps=recipe.begin + recipe.steps,
        unit="images",
        units=rows,
        parameters=counted,
    )


def _spec(said: str, info: data.Info, pixels: tuple) -> models.Spec:
    """Of a saved model, or of NAME:option=value:... for one that need not be there."""
    if storage.resolve_path(said, "teacher.path").exists():
        return models.load(said, key="teacher.path").spec
    name, *options = said.split(":")
    if name not in models.names():
        raise UsageError(
            f"teacher.path={said!r}: no such workdir and no such model; expected a workdir, or "
            "NAME:option=value for a plan, NAME one of " + ", ".join(models.names())
        )
    given = {}
    for option in options:
        key, _, value = option.partition("=")
        given[key] = configs.literal(value)
    return models.Spec(
        name, models.check_options(name, given), info.image_shape, info.num_classes, *pixels
    )


def _teachers(config: ConfigDict, info: data.Info, pixels: tuple) -> Opened:
    if config.teacher.store:
        raise UsageError(
            f"teacher.store={config.teacher.store!r}: a plan knows no stores; expected teacher.path"
        )
    if not config.teacher.path:
        return Opened(None, [], [], {}, [], None)
    specs = tuple(_spec(said, info, pixels) for said in config.teacher.path)
    parts = [
        models.split(
            models.abstract(
                spec.name,
                input_shape=info.image_shape,
                num_classes=info.num_classes,
                dtype=jnp.dtype(config.teacher.compute_dtype),
                **spec.options,
            )
        )
        for spec in specs
    ]
    raw = list(config.teacher.weights) or [1.0] * len(specs)
    teacher = teachers.Teachers(
        specs=specs,
        graphdefs=tuple(graphdef for graphdef, _, _ in parts),
        weights=tuple(weight / sum(raw) for weight in raw),
        fingerprints=("",) * len(specs),
        parameters=tuple(models.parameter_count(params) for _, params, _ in parts),
    )
    variables = [(params, stats) for _, params, stats in parts]
    images = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
    outputs = jax.eval_shape(teacher, variables, images)
    return Opened(teacher, variables, outputs, {}, [], None)
