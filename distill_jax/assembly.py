"""From a resolved config to the parts of a run: everything opened, checked, placed on the mesh.

Nothing is written here. What a config alone can tell is checked in `config.py`; what needs the
data, the teacher or the devices is checked here, in one line each.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import data, methods, models, parallel, teachers
from distill_jax.errors import UsageError
from distill_jax.training import optimizers, schedules, state, step
from distill_jax.training.evaluate import Evaluator

RESIDENT_LIMIT = 4 * 2**30  # bytes of images that data.resident="auto" puts on the device


@dataclasses.dataclass(frozen=True)
class Parts:
    """Everything that a run is made of, opened and checked.

    Attributes:
      config: resolved.
      mesh: the devices.
      train: examples of the training split (the validation examples among them).
      train_ids: ids that are trained on.
      recipe: what is fixed about a step.
      initial: the state before the first step, on the host.
      teacher_variables: arrays of the teachers, on the devices.
      store: resident training set on the devices, or {}.
      evaluators: "validation" (where held out) and "test".
      steps_per_epoch: examples over batch size.
      description: {"teachers": ..., "data": ...} for the manifest.
    """

    config: ConfigDict
    mesh: Mesh
    train: data.Examples
    train_ids: np.ndarray
    recipe: step.Recipe
    initial: state.TrainState
    teacher_variables: Any
    store: dict[str, jax.Array]
    evaluators: dict[str, Evaluator]
    steps_per_epoch: float
    description: dict[str, Any]


def prepare(config: ConfigDict) -> Parts:
    """Opens and checks all that a resolved config names; writes nothing.

    Raises:
      UsageError: when the data, the teacher, the mesh or the method do not fit.
    """
    mesh = parallel.make_mesh(**config.mesh)
    for key in ("training.batch_size", "evaluation.batch_size"):
        parallel.check_divides(mesh, key, configs.flatten(config)[key])
    part = config.training.batch_size // config.training.accumulate
    if part % math.prod(mesh.shape[axis] for axis in ("data", "fsdp")):
        raise UsageError(
            f"training.accumulate={config.training.accumulate}: parts of {part} examples do "
            f"not divide by the {mesh.size} devices; expected a smaller number"
        )
    splits = {split: _load_split(config, split) for split in ("train", "test")}
    train, info = splits["train"], splits["train"].info
    if splits["test"].info.image_shape != info.image_shape:
        raise UsageError(
            f"data.name={config.data.name!r}: the training images are {info.image_shape}, the test "
            f"images {splits['test'].info.image_shape}; expected one shape"
        )
    _check_classes(config, info)
    train_ids, validation_ids = data.splits(
        train,
        validation=config.data.validation,
        split_seed=config.data.split_seed,
        fraction=config.data.fraction,
        only_classes=config.data.only_classes,
        exclude_classes=config.data.exclude_classes,
    )
    loaded, variables = None, []
    if config.teacher.path:
        loaded, variables = teachers.load(
            config.teacher.path,
            weights=config.teacher.weights,
            input_shape=info.image_shape,
            num_classes=info.num_classes,
            compute_dtype=config.teacher.compute_dtype,
        )
    mean, std = _normalisation(config, train, train_ids)
    student = models.create(
        config.student.name,
        input_shape=info.image_shape,
        num_classes=info.num_classes,
        seed=config.seed,
        dtype=jnp.dtype(config.training.compute_dtype),
        **_options(config.student),
    )
    graphdef, params, stats = models.split(student)
    spec = models.Spec(
        name=config.student.name,
        options=_options(config.student),
        input_shape=tuple(info.image_shape),
        num_classes=info.num_classes,
        mean=mean,
        std=std,
    )
    method = methods.create(
        config.method.name,
        **{name: config.method[name] for name in methods.options(config.method.name)},
    )
    adapters = _adapters(config, method, graphdef, params, stats, spec, loaded, variables)
    steps_per_epoch = len(train_ids) / config.training.batch_size
    total_steps = config.training.steps or math.ceil(
        config.training.epochs * steps_per_epoch - 1e-9
    )
    rate = optimizers.learning_rate(
        config.schedule, config.optimizer.learning_rate, total_steps, steps_per_epoch
    )
    recipe = step.Recipe(
        seed=config.seed,
        spec=spec,
        graphdef=graphdef,
        augment=data.Augment(**config.data.augment),
        method=method,
        teachers=loaded,
        sum_losses=config.teacher.combine == "sum_losses",
        hard_weight=schedules.parse(config.method.hard_weight),
        soft_weight=schedules.parse(config.method.soft_weight),
        temperature=schedules.parse(config.method.temperature),
        label_smoothing=config.method.label_smoothing,
        optimizer=optimizers.make(config.optimizer, rate),
        learning_rate=rate,
        max_norm=config.optimizer.max_norm,
        ema_decay=config.training.ema_decay,
        accumulate=config.training.accumulate,
        total_steps=total_steps,
        log_every=config.logging.every_steps,
    )
    whole = parallel.replicated(mesh)
    variables = jax.device_put(variables, whole)
    resident = {split: _is_resident(config, examples) for split, examples in splits.items()}
    store = jax.device_put(data.store(train), whole) if resident["train"] else {}
    evaluators = {}
    for name, examples, ids in (
        ("validation", train, validation_ids),
        ("test", splits["test"], np.arange(len(splits["test"]), dtype=np.int32)),
    ):
        if len(ids):
            split = "train" if examples is train else "test"
            evaluators[name] = _evaluator(
                config, spec, graphdef, mesh, examples, ids, resident[split],
                store if examples is train else None, loaded, variables,
            )  # fmt: skip
    return Parts(
        config=config,
        mesh=mesh,
        train=train,
        train_ids=train_ids,
        recipe=recipe,
        initial=jax.device_get(
            state.initial(
                params, stats, adapters, recipe.optimizer, averaged=config.training.ema_decay > 0
            )
        ),
        teacher_variables=variables,
        store=store,
        evaluators=evaluators,
        steps_per_epoch=steps_per_epoch,
        description=_description(config, splits, train_ids, validation_ids, loaded),
    )


def _options(section: ConfigDict) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name != "name"}


def _load_split(config: ConfigDict, split: str) -> data.Examples:
    return data.load(
        config.data.name,
        split,
        tfds_dir=config.data.tfds_dir,
        path=config.data.path,
        image_size=config.data.image_size,
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


def _adapters(config, method, graphdef, params, stats, spec, loaded, variables) -> dict:
    """The method's adapters, made from the shapes of both outputs without computing them."""
    if not method.needs_teacher:
        return {}
    images = jax.ShapeDtypeStruct((1, *spec.input_shape), jnp.float32)
    student, _ = jax.eval_shape(
        lambda p, s, x: models.apply(graphdef, p, s, x, train=False), params, stats, images
    )
    answers = jax.eval_shape(loaded, variables, images)
    key = jax.random.fold_in(jax.random.key(config.seed), np.uint32(2**32 - 1))
    shapes = [{name: tap.shape for name, tap in answer.taps.items()} for answer in answers]
    adapters = method.adapters(student, answers[0], key)
    if adapters and any(shape != shapes[0] for shape in shapes):
        raise UsageError(
            f"method.name={config.method.name!r}: its adapters serve teachers of one shape; "
            "expected teachers of the same architecture"
        )
    if adapters and len(answers) > 1 and config.teacher.combine != "sum_losses":
        raise UsageError(
            f"teacher.combine={config.teacher.combine!r}: {config.method.name} reads features, "
            "which have no mean distribution; expected 'sum_losses'"
        )
    return adapters


def _is_resident(config: ConfigDict, examples: data.Examples) -> bool:
    if config.data.resident == "auto":
        return examples.nbytes <= RESIDENT_LIMIT
    return config.data.resident == "yes"


def _evaluator(
    config, spec, graphdef, mesh, examples, ids, resident, store, loaded, variables
) -> Evaluator:
    if resident and not store:
        store = jax.device_put(data.store(examples), parallel.replicated(mesh))
    return Evaluator(
        spec,
        graphdef,
        mesh,
        lambda: data.evaluation(examples, ids, config.evaluation.batch_size, resident=resident),
        store if resident else {},
        loaded,
        variables,
    )


def _description(config, splits, train_ids, validation_ids, loaded) -> dict[str, Any]:
    entries = []
    if loaded is not None:
        entries = [
            {"path": path, "fingerprint": fingerprint, "model": spec.name, "parameters": count}
            for path, fingerprint, spec, count in zip(
                config.teacher.path,
                loaded.fingerprints,
                loaded.specs,
                loaded.parameters,
                strict=True,
            )
        ]
    return {
        "teachers": entries,
        "data": {
            "name": config.data.name,
            "fingerprint": data.fingerprint(splits["train"]),
            "train": len(train_ids),
            "validation": len(validation_ids),
            "test": len(splits["test"]),
            "class_names": splits["train"].info.class_names,
        },
    }
