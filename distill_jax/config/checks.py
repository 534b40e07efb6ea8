"""What keys of a config must satisfy together; one function a section, on a flat config."""

from collections.abc import Mapping
from typing import Any

from distill_jax import data, methods
from distill_jax.config.schema import IMAGES, SCHEMA, TEXT
from distill_jax.errors import UsageError, unknown
from distill_jax.evaluation.text_metrics import METRICS
from distill_jax.models.language.student import STUDENT_NAME
from distill_jax.models.spec import unit_problem
from distill_jax.optim import optimizers, schedules
from distill_jax.quantization import recipes

Flat = Mapping[str, Any]


def check_all(flat: Flat) -> None:
    """Checks a flat config that has every key, each with a value that is fine by itself.

    Raises:
      UsageError: keys that contradict each other.
    """
    _check_kind(flat)
    _check_evaluation(flat)
    _check_optimizer(flat)
    method = methods.create(flat["method.name"])
    _check_method(flat, method)
    _check_augmentation(flat, method)
    _check_teachers(flat, method)
    _check_quantized(flat)
    _check_quantized_student(flat)
    _check_training(flat)
    _check_average(flat)
    _check_schedule(flat)
    _check_classes(flat)
    _check_units(flat)


def _check_kind(flat: Flat) -> None:
    """Decoders are for text and other models for images; some keys are for one kind only."""
    kind = TEXT if flat["data.name"] == TEXT else IMAGES
    if (kind == TEXT) != (flat["student.name"] == STUDENT_NAME):
        expected = STUDENT_NAME if kind == TEXT else "a model of images"
        other = "another" if kind == TEXT else repr(TEXT)
        raise UsageError(
            f"student.name={flat['student.name']!r}: data.name={flat['data.name']!r}; "
            f"expected {expected}, or data.name={other}"
        )
    for path, key in SCHEMA.items():
        if key.only not in (None, kind) and flat[path] != key.default:
            raise UsageError(
                f"{path}={flat[path]!r}: has no meaning for data.name={flat['data.name']!r}; "
                f"expected {key.default!r}"
            )


def _check_evaluation(flat: Flat) -> None:
    """Prompts need metrics, and a model is selected by a metric that is computed."""
    prompts, metrics = flat["evaluation.prompts"], flat["evaluation.metrics"]
    if (prompts or flat["evaluation.test_prompts"]) and not metrics:
        raise UsageError(
            f"evaluation.metrics=(): expected some of {', '.join(METRICS)}, to score the answers by"
        )
    select = flat["evaluation.select"]
    if select in METRICS and not (prompts and select in metrics):
        raise UsageError(
            f"evaluation.select={select!r}: evaluation.prompts={prompts!r}, evaluation.metrics="
            f"{metrics!r}; expected prompts that are scored by it"
        )


def _check_optimizer(flat: Flat) -> None:
    if flat["optimizer.name"] not in optimizers.NAMES:
        raise unknown("optimizer.name", flat["optimizer.name"], optimizers.NAMES, "optimizer")


def _check_method(flat: Flat, method: methods.Method) -> None:
    """The method fits the kind of data, and its loss is not zero."""
    if method.only == "text" and flat["data.name"] != TEXT:
        raise UsageError(
            f"method.name={flat['method.name']!r}: compares decoders; expected data.name={TEXT!r}"
        )
    supervised = method.stages() == (methods.Stage(None),)
    hard = schedules.parse(flat["method.hard_weight"]).extremes[1]
    soft = 0.0 if supervised else schedules.parse(flat["method.soft_weight"]).extremes[1]
    if hard + soft == 0:
        weights = f"method.hard_weight={flat['method.hard_weight']}"
        if not supervised:
            weights += f", method.soft_weight={flat['method.soft_weight']}"
        raise UsageError(f"{weights}: the weights sum to zero; expected one above 0")


def _check_augmentation(flat: Flat, method: methods.Method) -> None:
    """Augmentations are compatible with each other, with the method and with resident data."""
    prefix = "data.augment."
    options = {path: value for path, value in flat.items() if path.startswith(prefix)}
    data.Augment(**{path.removeprefix(prefix): value for path, value in options.items()})
    if method.strong_view and not flat["data.augment.strong_ops"]:
        raise UsageError(
            f"data.augment.strong_ops=0: method.name={flat['method.name']!r} shows a strongly "
            "augmented view; expected a number of operations, such as 2"
        )
    area = flat["data.augment.resized_crop"]
    if not area:
        return
    setting = f"data.augment.resized_crop={area}"
    if flat["data.resident"] == "yes":
        raise UsageError(
            f"data.resident='yes': {setting} crops images as they are read; expected 'auto' or 'no'"
        )
    if method.strong_view:
        raise UsageError(
            f"{setting}: method.name={flat['method.name']!r} shows a second view, which would have "
            "the crop of the first; expected 0, and data.augment.crop_padding"
        )


def _check_teachers(flat: Flat, method: methods.Method) -> None:
    """The method has the teacher that it needs, from one origin, and its weights fit."""
    teachers, weights = flat["teacher.path"], flat["teacher.weights"]
    own, store = flat["teacher.own_average"], flat["teacher.store"]
    if method.needs_teacher and not (teachers or own or store):
        raise UsageError(
            f"teacher.path=(): method.name={flat['method.name']!r} needs a teacher; "
            "expected the workdir of a trained model"
        )
    if own and (teachers or store):
        raise UsageError(
            "teacher.own_average=True: expected neither teacher.path nor teacher.store with it"
        )
    if store and len(teachers) > 1:
        raise UsageError(f"teacher.store={store!r}: it has one teacher, teacher.path {teachers}")
    if store and flat["data.name"] == TEXT:
        _check_text_answers(flat)
    if own and not flat["training.ema_decay"]:
        raise UsageError(
            "training.ema_decay=0.0: teacher.own_average=True needs a moving average; expected a "
            "decay, such as 0.999"
        )
    if method.only == "text" and len(teachers) > 1:
        raise UsageError(
            f"teacher.path={teachers}: method.name={flat['method.name']!r} matches the streams of "
            "one teacher; expected one path"
        )
    if weights and len(weights) != len(teachers):
        raise UsageError(
            f"teacher.weights={weights}: expected {len(teachers)} of them, one a teacher"
        )
    if weights and sum(weights) == 0:
        raise UsageError(f"teacher.weights={weights}: the weights sum to zero")
    count = len(teachers) or bool(store)
    for key in ("teacher.licence", "teacher.outputs_may_train_other_models"):
        if flat[key] and len(flat[key]) != count:
            raise UsageError(f"{key}={flat[key]}: expected {count} of them, one a teacher")


def _check_text_answers(flat: Flat) -> None:
    """Precomputed answers to text serve the forward KL at the temperature they were made with."""
    store = f"teacher.store={flat['teacher.store']!r}"
    if flat["method.name"] != "soft_target":
        raise UsageError(
            f"{store}: precomputed answers serve the forward KL; "
            f"method.name={flat['method.name']!r}, expected soft_target, or teacher.path alone"
        )
    low, high = schedules.parse(flat["method.temperature"]).extremes
    if low != high:
        raise UsageError(
            f"method.temperature={flat['method.temperature']!r}: stored answers are of one "
            "temperature; expected a number"
        )
    if flat["rollout.probability"]:
        raise UsageError(
            f"rollout.probability={flat['rollout.probability']}: {store} has no answers to what "
            "the student writes; expected 0, or teacher.path alone"
        )


def _check_quantized(flat: Flat) -> None:
    """Layers of the teacher become a student only where the teacher is not rounded to integers."""
    layers = flat.get("student.layers")
    if flat["teacher.quantize"] != "none" and layers and not flat.get("student.path"):
        raise UsageError(
            f"student.layers={layers!r}: teacher.quantize={flat['teacher.quantize']!r} rounds the "
            "teacher's; expected student.path=TEACHER with it, or teacher.quantize='none'"
        )


def _check_quantized_student(flat: Flat) -> None:
    """The recipe can be read, and what it trains is what is saved."""
    text = flat["student.quantize"]
    if text == "none":
        return
    recipes.parse(text, "student.quantize")
    if rank := flat.get("student.lora_rank"):
        raise UsageError(
            f"student.quantize={text!r}: student.lora_rank={rank} trains adapters, which are added "
            "to matrices that no step changes and would be rounded together with them only after "
            "training; expected student.lora_rank=0, or student.quantize='none' and "
            "`distill-jax quantize` after it"
        )


def _check_training(flat: Flat) -> None:
    if flat["training.batch_size"] % flat["training.accumulate"]:
        raise UsageError(
            f"training.accumulate={flat['training.accumulate']}: "
            f"expected a divisor of training.batch_size={flat['training.batch_size']}"
        )


def _check_average(flat: Flat) -> None:
    if flat["training.ema_warmup"] and not flat["training.ema_decay"]:
        raise UsageError(
            "training.ema_warmup=True: has no meaning with training.ema_decay=0.0; expected a "
            "decay, such as 0.999"
        )


def _check_schedule(flat: Flat) -> None:
    if flat["schedule.name"] == "step" and not flat["schedule.milestones"]:
        raise UsageError("schedule.milestones=(): schedule.name='step' needs epochs")


def _check_units(flat: Flat) -> None:
    """Mean and standard deviation are of pixels in [0, 1]."""
    for field in ("mean", "std"):
        if values := flat[f"data.{field}"]:
            if fault := unit_problem(field, values):
                raise UsageError(f"data.{field}={values}: expected {fault}")


def _check_classes(flat: Flat) -> None:
    both = set(flat["data.only_classes"]) & set(flat["data.exclude_classes"])
    if both:
        raise UsageError(
            f"data.exclude_classes={flat['data.exclude_classes']}: "
            f"class {min(both)} is in data.only_classes too; expected it in one of them"
        )
