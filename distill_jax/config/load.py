"""Reading a config: files, overrides, defaults and refusals.

A config file is Python with `get_config() -> ml_collections.ConfigDict` (or `get_config(arg)`) and
sets only what differs from the defaults of `schema.py`. `load` reads it and applies
`--config.key=value`; `resolve` fills in the defaults and refuses, in one line, what does not
belong. What depends on the machine or on files (devices, the teacher, the data) is checked where it
is opened, in `assembly.py`, before anything is written.
"""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax import data, methods, models
from distill_jax.config.schema import IMAGES_ALONE, SCHEMA, SECTIONS, TEXT, TEXT_ALONE
from distill_jax.errors import UsageError, unknown
from distill_jax.evaluation.text_metrics import METRICS
from distill_jax.models.language.student import (
    STUDENT_NAME,
    STUDENT_OPTIONS,
    check_student,
)
from distill_jax.optim import optimizers, schedules


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"name": 1}} as {"data.name": 1}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, (Mapping, ConfigDict)):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _import_all(modules: Iterable[str]) -> None:
    """Runs the modules that a config names, once each, so that what they register is known."""
    for name in modules:
        file = pathlib.Path(name)
        key = str(file.resolve()) if file.suffix == ".py" else name
        if key in sys.modules:
            continue
        try:
            if file.suffix == ".py":
                specification = importlib.util.spec_from_file_location(key, file)
                sys.modules[key] = importlib.util.module_from_spec(specification)
                specification.loader.exec_module(sys.modules[key])
            else:
                importlib.import_module(name)
        except Exception as error:
            sys.modules.pop(key, None)
            raise UsageError(
                f"imports={name!r}: expected a module that can be imported; "
                f"{type(error).__name__}: {error}"
            ) from error


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the named student and method with their defaults: "student.widths" and so on."""
    student = given.get("student.name", SCHEMA["student.name"].default)
    method = given.get("method.name", SCHEMA["method.name"].default)
    known = [*models.names(), STUDENT_NAME]
    if student not in known:
        raise unknown("student.name", student, known, "model")
    own = STUDENT_OPTIONS if student == STUDENT_NAME else models.options(student)
    return {f"student.{name}": value for name, value in own.items()} | {
        f"method.{name}": value for name, value in methods.options(method).items()
    }


def _unknown_key(path: str, known: Iterable[str]) -> UsageError:
    known = list(known)
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    section = path.split(".")[0]
    listed = [name for name in known if name.startswith(section + ".")] or list(SECTIONS)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"{path}: unknown key; {hint}known: {', '.join(listed)}")


def check(path: str, value: Any) -> Any:
    """The canonical form of `value` for the key `path`; UsageError when it is not acceptable."""
    key = SCHEMA[path]
    try:
        return key.check(value)
    except (ValueError, TypeError) as error:
        expected = str(error) or key.expected
        raise UsageError(f"{path}={value!r}: expected {expected}") from None


def _kind_checks(flat: Mapping[str, Any]) -> None:
    """Text is for decoders, images are for the rest, and each has keys of its own."""
    on_text, decoder = flat["data.name"] == TEXT, flat["student.name"] == STUDENT_NAME
    if on_text != decoder:
        expected = STUDENT_NAME if on_text else "a model of images"
        raise UsageError(
            f"student.name={flat['student.name']!r}: data.name={flat['data.name']!r}; "
            f"expected {expected}, or data.name={'another' if on_text else TEXT!r}"
        )
    for path, key in SCHEMA.items():
        alone = path in TEXT_ALONE or path.startswith("data.augment.") or path in IMAGES_ALONE
        if alone and (path in TEXT_ALONE) != on_text and flat[path] != key.default:
            raise UsageError(
                f"{path}={flat[path]!r}: has no meaning for data.name={flat['data.name']!r}; "
                f"expected {key.default!r}"
            )


def _prompt_checks(flat: Mapping[str, Any]) -> None:
    """Prompts that are scored by something, and a selection by figures that are there."""
    prompts, measured = flat["evaluation.prompts"], flat["evaluation.metrics"]
    if (prompts or flat["evaluation.test_prompts"]) and not measured:
        raise UsageError(
            f"evaluation.metrics=(): expected some of {', '.join(METRICS)}, to score the answers by"
        )
    select = flat["evaluation.select"]
    if select in METRICS and not (prompts and select in measured):
        raise UsageError(
            f"evaluation.select={select!r}: evaluation.prompts={prompts!r}, evaluation.metrics="
            f"{measured!r}; expected prompts that are scored by it"
        )


def _view_checks(flat: Mapping[str, Any], strong_view: bool) -> None:
    """Augmentations that go together, with the set where they are computed."""
    prefix = "data.augment."
    options = {path: value for path, value in flat.items() if path.startswith(prefix)}
    data.Augment(**{path.removeprefix(prefix): value for path, value in options.items()})
    if strong_view and not flat["data.augment.strong_ops"]:
        raise UsageError(
            f"data.augment.strong_ops=0: method.name={flat['method.name']!r} shows a strongly "
            "augmented view; expected a number of operations, such as 2"
        )
    if not (cropped := flat["data.augment.resized_crop"]):
        return
    said = f"data.augment.resized_crop={cropped}"
    if flat["data.resident"] == "yes":
        raise UsageError(
            f"data.resident='yes': {said} is cut where images are read; expected 'auto' or 'no'"
        )
    if strong_view:
        raise UsageError(
            f"{said}: method.name={flat['method.name']!r} shows a second view, which would have "
            "the crop of the first; expected 0, and data.augment.crop_padding"
        )


def _store_checks(flat: Mapping[str, Any]) -> None:
    """What a run on text must be to learn from stored answers: forward KL at their temperature."""
    said = f"teacher.store={flat['teacher.store']!r}"
    if flat["method.name"] != "soft_target":
        raise UsageError(
            f"{said}: holds answers for the forward KL; method.name={flat['method.name']!r}, "
            "expected soft_target, or teacher.path alone"
        )
    low, high = schedules.parse(flat["method.temperature"]).extremes
    if low != high:
        raise UsageError(
            f"method.temperature={flat['method.temperature']!r}: stored answers are of one "
            "temperature; expected a number"
        )
    if flat["rollout.probability"]:
        raise UsageError(
            f"rollout.probability={flat['rollout.probability']}: {said} has no answers to what the "
            "student writes; expected 0, or teacher.path alone"
        )


def _cross_checks(flat: Mapping[str, Any]) -> None:
    """What no single key can tell."""
    _kind_checks(flat)
    _prompt_checks(flat)
    if flat["optimizer.name"] not in optimizers.NAMES:
        raise unknown("optimizer.name", flat["optimizer.name"], optimizers.NAMES, "optimizer")
    method = methods.create(flat["method.name"])
    if method.only == "text" and flat["data.name"] != TEXT:
        raise UsageError(
            f"method.name={flat['method.name']!r}: compares decoders; expected data.name={TEXT!r}"
        )
    supervised = method.stages() == (methods.Stage(None),)
    hard = schedules.parse(flat["method.hard_weight"]).extremes[1]
    soft = 0.0 if supervised else schedules.parse(flat["method.soft_weight"]).extremes[1]
    if hard + soft == 0:
        said = f"method.hard_weight={flat['method.hard_weight']}"
        if not supervised:
            said += f", method.soft_weight={flat['method.soft_weight']}"
        raise UsageError(f"{said}: the weights sum to zero; expected one above 0")
    _view_checks(flat, method.strong_view)
    teachers, weights = flat["teacher.path"], flat["teacher.weights"]
    own, store = flat["teacher.own_average"], flat["teacher.store"]
    if method.needs_teacher and not (teachers or own or store):
        raise UsageError(
            f"teacher.path=(): method.name={flat['method.name']!r} needs a teacher; "
            "expected the workdir of a trained model"
        )
    if own and (teachers or store):
        raise UsageError("teacher.own_average=True: expected no teacher.path or store beside it")
    if store and len(teachers) > 1:
        raise UsageError(f"teacher.store={store!r}: it has one teacher, teacher.path {teachers}")
    if store and flat["data.name"] == TEXT:
        _store_checks(flat)
    if flat["teacher.own_average"] and not flat["training.ema_decay"]:
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
    if flat["training.batch_size"] % flat["training.accumulate"]:
        raise UsageError(
            f"training.accumulate={flat['training.accumulate']}: "
            f"expected a divisor of training.batch_size={flat['training.batch_size']}"
        )
    if flat["schedule.name"] == "step" and not flat["schedule.milestones"]:
        raise UsageError("schedule.milestones=(): schedule.name='step' needs epochs")
    both = set(flat["data.only_classes"]) & set(flat["data.exclude_classes"])
    if both:
        raise UsageError(
            f"data.exclude_classes={flat['data.exclude_classes']}: "
            f"class {min(both)} is in data.only_classes too; expected it in one of them"
        )


def resolve(config: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Fills in the defaults and checks every value.

    Args:
      config: a nested config that sets some of the keys.

    Returns:
      A locked ConfigDict with every key, tuples for lists, in the order of `SCHEMA`.

    Raises:
      UsageError: for an unknown key, a wrong type, a value out of range, an unknown name, or keys
        that contradict each other.
    """
    given = flatten(config)
    _import_all(check("imports", given.get("imports", ())))
    options = _options(given)
    known = [*SCHEMA, *options]
    flat = {path: key.default for path, key in SCHEMA.items()} | options
    flat["method.soft_weight"] = methods.published_weight(given.get("method.name", "supervised"))
    for path, value in given.items():
        if path in SCHEMA:
            flat[path] = check(path, value)
        elif path in options:
            flat[path] = tuple(value) if isinstance(value, list) else value
        else:
            raise _unknown_key(path, known)
    student, method = (
        {path.removeprefix(prefix): flat[path] for path in options if path.startswith(prefix)}
        for prefix in ("student.", "method.")
    )
    if flat["student.name"] == STUDENT_NAME:
        checked = check_student(student)
    else:
        checked = models.check_options(flat["student.name"], student)
    for name, value in checked.items():
        flat[f"student.{name}"] = value
    for name, value in methods.check_options(flat["method.name"], method).items():
        flat[f"method.{name}"] = value
    _cross_checks(flat)
    order = {section: index for index, section in enumerate(SECTIONS)}
    return _locked(
        {path: flat[path] for path in sorted(flat, key=lambda p: order[p.split(".")[0]])}
    )


def _locked(flat: Mapping[str, Any]) -> ConfigDict:
    return ConfigDict(unflatten(flat), convert_dict=True).lock()


_folders: set[pathlib.Path] = set()  # of the config files read so far


def _forget_other_folders(folder: pathlib.Path) -> None:
    """Drops modules imported from beside other configs, so that each finds its own recipes.py."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        beside = pathlib.Path(file).parent if file and "." not in name else None
        if beside != folder and beside in _folders:
            del sys.modules[name]
    _folders.add(folder)


def load(source: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """The resolved config of a run; arguments and errors are those of `read` and `resolve`."""
    return resolve(read(source, overrides))


def read(source: str, overrides: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Reads a config file and applies the overrides of a command line.

    Args:
      source: FILE or FILE:ARG; the file defines `get_config()` or `get_config(arg)`.
      overrides: {"method.temperature": "8"}: Python literals, `true`, `false`, or plain text.

    Raises:
      UsageError: when the file cannot be read or run.
    """
    path, _, argument = source.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        raise UsageError(f"--config={source}: no such file; expected a Python file with get_config")
    specification = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    if specification is None:
        raise UsageError(f"--config={source}: expected a .py file")
    module = importlib.util.module_from_spec(specification)
    folder = file.parent.resolve()
    _forget_other_folders(folder)
    sys.path.insert(0, str(folder))  # for a recipes.py beside it
    try:
        specification.loader.exec_module(module)
        make = getattr(module, "get_config", None)
        if make is None:
            raise UsageError(f"--config={source}: the file defines no get_config()")
        takes_argument = bool(inspect.signature(make).parameters)
        if argument and not takes_argument:
            raise UsageError(f"--config={source}: get_config() takes no argument")
        config = make(argument) if argument else make()
    except UsageError:
        raise
    except Exception as error:  # the user's code: say what, without our frames
        raise UsageError(f"--config={source}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return apply_overrides(config, overrides or {})


def apply_overrides(config: Mapping[str, Any] | ConfigDict, overrides: Mapping[str, str]) -> dict:
    """The nested config with each override parsed and put in its place."""
    flat = flatten(config)
    for path, said in overrides.items():
        flat[path] = literal(said)
    return unflatten(flat)


def literal(said: str) -> Any:
    """A Python literal, true or false, else the text itself."""
    if said.lower() in ("true", "false"):
        return said.lower() == "true"
    try:
        return ast.literal_eval(said)
    except (ValueError, SyntaxError):
        return said


def to_json(config: ConfigDict) -> str:
    """The resolved config as JSON text; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(content: str) -> ConfigDict:
    """A config written by `to_json`, checked again."""
    return resolve(json.loads(content))


def method_options(config: ConfigDict) -> dict[str, Any]:
    """The options of the method alone; those of a sum have two names, "crd.weight"."""
    flat = flatten(config.method)
    return {name: flat[name] for name in methods.options(config.method.name)}


def student_options(config: ConfigDict) -> dict[str, Any]:
    """The options of the student."""
    return {name: value for name, value in config.student.items() if name != "name"}


def digest(config: ConfigDict) -> str:
    """SHA-256 of the resolved config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """What differs between two resolved configs in keys that a resumed run must keep."""
    before, after = flatten(old), flatten(new)
    lines = []
    for path in dict.fromkeys([*before, *after]):
        if path in SCHEMA and not SCHEMA[path].lasting:
            continue
        if before.get(path) != after.get(path):
            lines.append(f"{path}: {before.get(path)!r} there, {after.get(path)!r} now")
    return lines
