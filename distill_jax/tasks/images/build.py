"""From a config to the recipes of a run on images, one for each stage of its method.

No images are read, so that a plan, which has none, builds the very recipe of a run.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import data, models, teachers
from distill_jax.errors import UsageError
from distill_jax.methods import Method, Pair, Stage
from distill_jax.models import Outputs
from distill_jax.models.class_names import match
from distill_jax.models.files import quantized_arrays
from distill_jax.quantization.aware import Quantizer
from distill_jax.tasks import setup
from distill_jax.tasks.images.data import Pixels
from distill_jax.tasks.images.pairing import Paired, pair_up
from distill_jax.tasks.images.recipe import ImageRecipe
from distill_jax.tasks.images.teachers import OpenTeachers
from distill_jax.tasks.quantized import make_quantizer
from distill_jax.training import step
from distill_jax.training.recipe import StageSettings
from distill_jax.training.state import InitialArrays

LOOK_AHEAD_EXAMPLES = 512  # in one forward pass of the teacher, where the config leaves it open


@dataclasses.dataclass(frozen=True)
class _Student:
    """The student of a config before training."""

    spec: models.Spec
    graphdef: Any
    params: models.Flat
    stats: models.Flat


def _make_student(config: ConfigDict, info: data.Info, pixels: Pixels) -> _Student:
    student = models.create(
        config.student.name,
        input_shape=info.image_shape,
        num_classes=info.num_classes,
        seed=config.seed,
        dtype=jnp.dtype(config.training.compute_dtype),
        **configs.student_options(config),
    )
    spec = models.Spec(
        name=config.student.name,
        options=configs.student_options(config),
        input_shape=info.image_shape,
        num_classes=info.num_classes,
        mean=pixels.mean,
        std=pixels.std,
        class_names=info.known_names,
    )
    drawn = _Student(spec, *models.split(student))
    return _warm_start(config, drawn) if config.student.path else drawn


def _warm_start(config: ConfigDict, drawn: _Student) -> _Student:
    """The student with the arrays of a saved model.

    It normalises as the saved model does, unless data.mean or data.std are given. Of another number
    of classes, the arrays whose shape depends on it (the classifier) stay as they were drawn.

    Raises:
      UsageError: the saved model is another network, of images of another shape, or of as many
        classes with other names.
    """
    path = config.student.path
    saved = models.load(path, key="student.path")
    ours, theirs = drawn.spec, saved.spec
    for field in ("name", "options", "input_shape"):
        mine, other = getattr(ours, field), getattr(theirs, field)
        if mine != other and not (field == "options" and _same_options(ours, theirs)):
            raise UsageError(
                f"student.path={path!r}: the model there has {field} {other!r}, the student "
                f"{mine!r}; expected the same"
            )
    same_classes = ours.num_classes == theirs.num_classes
    if same_classes:
        match(theirs.class_names, ours.class_names, how="same", location=f"student.path={path!r}")

    def taken(own: models.Flat, other: models.Flat) -> models.Flat:
        return {
            name: other[name] if same_classes or other[name].shape == value.shape else value
            for name, value in own.items()
        }

    spec = dataclasses.replace(
        ours,
        mean=tuple(config.data.mean) or theirs.mean,
        std=tuple(config.data.std) or theirs.std,
    )
    params, stats = taken(drawn.params, saved.params), taken(drawn.stats, saved.stats)
    return dataclasses.replace(drawn, spec=spec, params=params, stats=stats)


def _same_options(one: models.Spec, other: models.Spec) -> bool:
    """Whether options are the same with the defaults of those that a spec does not name."""
    defaults = models.options(one.name)
    return defaults | one.options == defaults | other.options


def build_recipes(
    config: ConfigDict,
    mesh: Mesh,
    method: Method,
    opened: OpenTeachers,
    *,
    info: data.Info,
    pixels: Pixels,
    labels: np.ndarray,
    steps_per_epoch: float,
) -> tuple[tuple[ImageRecipe, ...], InitialArrays]:
    """Makes the student, pairs it with its teachers, and builds a recipe for each stage.

    Args:
      config: resolved.
      mesh: the devices.
      method: of the config.
      opened: the teachers; their arrays may be those that `jax.eval_shape` traces.
      info: of the data.
      pixels: mean and standard deviation by channel.
      labels: of the training split, by id.
      steps_per_epoch: examples over batch size.

    Returns:
      The recipes in the order of the stages, and what the run begins with.

    Raises:
      UsageError: the student or the method do not fit the teachers.
    """
    student = _make_student(config, info, pixels)
    shapes = models.output_shapes(
        student.graphdef, student.params, student.stats, student.spec.input_shape
    )
    teacher, outputs = opened.teacher, opened.outputs
    if config.teacher.own_average:
        teacher = teachers.AverageTeacher(student.spec, student.graphdef)
        outputs = [shapes]
    needed = outputs if method.needs_teacher else []
    pair = Pair(
        student=shapes,
        teacher=needed[0] if needed else None,
        student_spec=student.spec,
        student_params=student.params,
        teacher_params=opened.params,
        labels=labels,
    )
    paired = pair_up(
        method,
        pair,
        name=config.method.name,
        teachers=needed,
        seed=config.seed,
        sum_losses=config.teacher.combine == "sum_losses",
        store=teacher if isinstance(teacher, teachers.StoredTeacher) else None,
    )
    quantizer = _student_quantizer(config, paired.params)
    recipes = _by_stage(
        config, mesh, method, student, teacher, outputs, paired, steps_per_epoch, quantizer
    )
    arrays = InitialArrays(paired.params, student.stats, paired.adapters, paired.memory)
    return recipes, arrays


def _student_quantizer(config: ConfigDict, params: models.Flat) -> Quantizer | None:
    """The grids of a student with these parameters; None where it is not quantized.

    Raises:
      UsageError: the recipe does not fit the student.
    """
    kernels = quantized_arrays.kernels({name: value.shape for name, value in params.items()})
    by_default = quantized_arrays.by_default(kernels)
    quantizer = make_quantizer(config, kernels, by_default, flat=True)
    if quantizer is None:
        return None
    if acting := sorted({grid.name for grid in quantizer.grids.values() if grid.activations}):
        raise UsageError(
            f"student.quantize={quantizer.recipe!r}: {acting[0]} rounds activations, which image "
            "networks here do not; expected int8, fp8-weight-only, or int4 where its groups divide"
        )
    if jax.process_count() > 1:
        raise UsageError(
            f"student.quantize={quantizer.recipe!r}: one process writes a quantized image network; "
            f"expected one, not {jax.process_count()}"
        )
    return quantizer


def _by_stage(
    config: ConfigDict,
    mesh: Mesh,
    method: Method,
    student: _Student,
    teacher: teachers.Teacher | None,
    outputs: list[Outputs],
    paired: Paired,
    steps_per_epoch: float,
    quantizer: Quantizer | None,
) -> tuple[ImageRecipe, ...]:
    recipes: list[ImageRecipe] = []
    stages = method.stages()
    for stage, taps in zip(stages, paired.teacher_taps, strict=True):
        begin = recipes[-1].begin + recipes[-1].steps if recipes else 0
        main = stage is stages[-1]
        settings = _settings(config, stage, main, begin, steps_per_epoch, quantizer)
        recipes.append(
            ImageRecipe(
                **vars(settings),
                spec=student.spec,
                graphdef=student.graphdef,
                augment=data.Augment(**config.data.augment),
                method=method,
                stage=stage,
                teachers=teacher,
                teacher_shapes=tuple(outputs),
                teacher_taps=taps,
                sum_losses=config.teacher.combine == "sum_losses",
                look_ahead=_look_ahead(config, mesh),
                mesh=mesh,
                label_smoothing=config.method.label_smoothing,
            )
        )
    return tuple(recipes)


def _settings(
    config: ConfigDict,
    stage: Stage,
    main: bool,
    begin: int,
    steps_per_epoch: float,
    quantizer: Quantizer | None,
) -> StageSettings:
    """The settings of a stage; earlier stages have lengths and rates of their own."""
    if main:
        steps = setup.main_steps(config, steps_per_epoch)
        rate = setup.main_learning_rate(config, steps, steps_per_epoch)
    else:
        steps = setup.step_count(stage.epochs, steps_per_epoch)
        rate = optax.constant_schedule(stage.learning_rate or config.optimizer.learning_rate)
    return setup.stage_settings(
        config,
        begin=begin,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        learning_rate=rate,
        hard_weight=None if stage.hard else 0.0,
        soft_weight=None if main else 1.0,
        quantize=quantizer,
    )


def _look_ahead(config: ConfigDict, mesh: Mesh) -> int:
    """Steps whose teacher outputs are computed together."""
    if config.teacher.look_ahead:
        return config.teacher.look_ahead
    if step.on_cpu(mesh):
        return 1
    return max(LOOK_AHEAD_EXAMPLES // config.training.batch_size, 1)
