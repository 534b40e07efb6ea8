"""The step of a run on images as shapes, for a plan: no images, no weights.

A teacher is a workdir, of which the spec is read, or the name of a model that need not be trained
yet. Left out on purpose: answer stores, which a plan does not open.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import data, methods, models, parallel, storage, teachers
from distill_jax.errors import UsageError
from distill_jax.models.class_names import match
from distill_jax.quantization.aware import Quantizer
from distill_jax.tasks import quantized, setup
from distill_jax.tasks.base import AbstractStep
from distill_jax.tasks.images import build, known_sets
from distill_jax.tasks.images.data import Pixels, is_resident
from distill_jax.tasks.images.teachers import OpenTeachers
from distill_jax.training.state import Frozen, with_shardings

#: Name -> (shape, dtype).
Shapes = dict[str, tuple[tuple[int, ...], Any]]


def abstract_step(config: ConfigDict, mesh: Mesh) -> AbstractStep:
    """The step of a resolved config on a mesh.

    Raises:
      UsageError: the teacher, the data or the method do not fit.
    """
    info, trained_on, count = known_sets.describe(config)
    channels = info.image_shape[-1]
    # Statistics do not change the program.
    pixels = Pixels(config.data.mean or (0.5,) * channels, config.data.std or (0.25,) * channels)
    method = methods.create(config.method.name, **configs.method_options(config))
    opened = _open_teachers(config, info, pixels)
    made = []

    def build_recipes(variables):
        params = opened.teacher.params(variables) if opened.teacher else {}
        recipes, arrays = build.build_recipes(
            config,
            mesh,
            method,
            dataclasses.replace(opened, variables=variables, params=params),
            info=info,
            pixels=pixels,
            labels=np.arange(count, dtype=np.int32) % info.num_classes,
            steps_per_epoch=trained_on / config.training.batch_size,
        )
        made.append(recipes)
        return arrays

    arrays = jax.eval_shape(build_recipes, opened.variables)
    recipe = made[-1][-1]
    variables = with_shardings(
        opened.variables, setup.frozen_shardings(config, mesh, opened.variables, "teacher")
    )
    counted = {"student": models.parameter_count(arrays.params)}
    if variables:
        counted["teacher"] = sum(models.parameter_count(params) for params, _ in variables)
    shapes, resident = _data_shapes(config, mesh, info, count)
    return AbstractStep(
        config=config,
        mesh=mesh,
        recipe=recipe,
        state=setup.initial_state(config, mesh, recipe, arrays),
        frozen=Frozen(teachers=variables),
        resident=resident,
        batches=setup.abstract_batches(mesh, shapes, recipe.ahead),
        total_steps=recipe.begin + recipe.steps,
        unit="images",
        units=config.training.batch_size,
        parameters=counted,
        saved_bytes=quantized.saved_bytes(
            cast(Quantizer | None, recipe.quantize),
            4 * models.parameter_count({**arrays.params, **arrays.stats}),
            arrays.params,
        ),
    )


def _data_shapes(
    config: ConfigDict, mesh: Mesh, info: data.Info, count: int
) -> tuple[Shapes, dict[str, Any]]:
    """The shapes of a batch, and the resident set of `count` examples, or {}."""
    rows, integers = config.training.batch_size, jnp.dtype(jnp.int32)
    kinds: Shapes = {"image": (info.image_shape, jnp.dtype(jnp.uint8)), "label": ((), integers)}
    shapes: Shapes = {"id": ((rows,), integers)}
    bytes_each = int(np.prod(info.image_shape)) + integers.itemsize
    if not is_resident(config, count * bytes_each):
        of_rows = {name: ((rows, *shape), dtype) for name, (shape, dtype) in kinds.items()}
        return {**shapes, **of_rows}, {}
    whole = parallel.replicated(mesh)
    return shapes, {
        name: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=whole)
        for name, (shape, dtype) in kinds.items()
    }


def _spec(text: str, info: data.Info, pixels: Pixels, how: str) -> models.Spec:
    """Of a saved model, or of NAME:option=value:... for one that need not exist."""
    if storage.resolve_path(text, "teacher.path").exists():
        spec = models.load(text, key="teacher.path").spec
        match(spec.class_names, info.known_names, how=how, location=f"teacher.path={text!r}")
        return spec
    name, *options = text.split(":")
    if name not in models.names():
        raise UsageError(
            f"teacher.path={text!r}: no such workdir and no such model; expected a workdir, or "
            "NAME:option=value for a plan, NAME one of " + ", ".join(models.names())
        )
    given = {}
    for option in options:
        key, _, value = option.partition("=")
        given[key] = configs.literal(value)
    return models.Spec(
        name, models.check_options(name, given), info.image_shape, info.num_classes, *pixels
    )


def _open_teachers(config: ConfigDict, info: data.Info, pixels: Pixels) -> OpenTeachers:
    if config.teacher.store:
        raise UsageError(
            f"teacher.store={config.teacher.store!r}: a plan knows no stores; expected teacher.path"
        )
    if not config.teacher.path:
        return OpenTeachers()
    how = config.teacher.classes
    specs = tuple(_spec(path, info, pixels, how) for path in config.teacher.path)
    networks = [
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
        graphdefs=tuple(graphdef for graphdef, _, _ in networks),
        weights=tuple(weight / sum(raw) for weight in raw),
        fingerprints=("",) * len(specs),
        parameters=tuple(models.parameter_count(params) for _, params, _ in networks),
    )
    variables = [(params, stats) for _, params, stats in networks]
    images = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
    outputs = jax.eval_shape(teacher, variables, images)
    return OpenTeachers(teacher=teacher, variables=variables, outputs=outputs)
