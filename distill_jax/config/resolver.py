"""Resolving a config: defaults, canonical values, and the refusal of what does not belong.

What depends on the machine or on files (devices, the teacher, the data) is checked where it is
opened, in `tasks`, before anything is written.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax import methods, models, storage
from distill_jax.config import checks, user_modules
from distill_jax.config.schema import SCHEMA, SECTIONS
from distill_jax.errors import UsageError, unknown
from distill_jax.models.language.student import STUDENT_NAME, STUDENT_OPTIONS, check_student

#: Of a student on images, besides the options of its model: the folder that it starts from.
WARM_START = {"path": ""}


def flatten(tree: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
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
    user_modules.import_all(check("imports", given.get("imports", ())))
    options = _default_options(given)
    flat = {path: key.default for path, key in SCHEMA.items()} | options
    flat["method.soft_weight"] = methods.published_weight(given.get("method.name", "supervised"))
    for path, value in given.items():
        if path in SCHEMA:
            flat[path] = check(path, value)
        elif path in options:
            flat[path] = tuple(value) if isinstance(value, list) else value
        else:
            raise _unknown_key(path, [*SCHEMA, *options])
    flat |= _check_options(flat, options)
    checks.check_all(flat)
    order = {section: index for index, section in enumerate(SECTIONS)}
    ordered = {path: flat[path] for path in sorted(flat, key=lambda p: order[p.split(".")[0]])}
    return ConfigDict(unflatten(ordered), convert_dict=True).lock()


def resolve_saved(config: Mapping[str, Any], file: object) -> ConfigDict:
    """As `resolve`, of the config.json of a workdir, which may have come from elsewhere.

    Raises:
      UsageError: also for a module in `imports` that is not trusted, see `user_modules`.
    """
    user_modules.check_trusted(check("imports", flatten(config).get("imports", ())), file)
    return resolve(config)


def check(path: str, value: Any) -> Any:
    """The canonical form of `value` for the key `path`; UsageError when it is not acceptable."""
    key = SCHEMA[path]
    try:
        return key.check(value)
    except (ValueError, TypeError, OverflowError) as error:
        expected = str(error) or key.expected
        raise UsageError(f"{path}={value!r}: expected {expected}") from None


def _default_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the named student and method with their defaults: "student.widths" and so on."""
    student = given.get("student.name", SCHEMA["student.name"].default)
    method = given.get("method.name", SCHEMA["method.name"].default)
    known = [*models.names(), STUDENT_NAME]
    if student not in known:
        raise unknown("student.name", student, known, "model")
    own = STUDENT_OPTIONS if student == STUDENT_NAME else models.options(student) | WARM_START
    return {f"student.{name}": value for name, value in own.items()} | {
        f"method.{name}": value for name, value in methods.options(method).items()
    }


def _check_options(flat: Mapping[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """The options of student and method in canonical form."""
    student, method = (
        {path.removeprefix(prefix): flat[path] for path in options if path.startswith(prefix)}
        for prefix in ("student.", "method.")
    )
    if flat["student.name"] == STUDENT_NAME:
        student = check_student(student)
    else:
        path = student.pop("path")
        wrong = storage.path_problem(path, remote=True) if isinstance(path, str) else "a path"
        if wrong:
            raise UsageError(f"student.path={path!r}: expected {wrong}")
        student = models.check_options(flat["student.name"], student) | {"path": path}
    method = methods.check_options(flat["method.name"], method)
    return {f"student.{name}": value for name, value in student.items()} | {
        f"method.{name}": value for name, value in method.items()
    }


# Words that other programs have for a key, by their last part: no spelling leads to ours.
_MEANT = {
    "ema": "training.ema_decay",
    "ema_rate": "training.ema_decay",
    "lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "warmup": "schedule.warmup_epochs",
    "warmup_steps": "schedule.warmup_epochs",
    "max_steps": "training.steps",
    "num_epochs": "training.epochs",
    "max_epochs": "training.epochs",
    "bs": "training.batch_size",
    "grad_accum": "training.accumulate",
    "gradient_accumulation_steps": "training.accumulate",
    "gradient_checkpointing": "training.remat",
    "grad_clip": "optimizer.clip_norm",
    "max_grad_norm": "optimizer.clip_norm",
    "max_length": "data.length",
    "max_seq_length": "data.length",
    "seq_len": "data.length",
    "alpha": "method.soft_weight",
    "kd_weight": "method.soft_weight",
    "ce_weight": "method.hard_weight",
    "tau": "method.temperature",
    "bf16": "training.compute_dtype",
    "fp16": "training.compute_dtype",
    "load_in_8bit": "teacher.quantize",
    "dataset": "data.name",
    "chat_template": "data.chat",
}


def _unknown_key(path: str, known: list[str]) -> UsageError:
    meant = _MEANT.get(path.split(".")[-1].lower())
    if meant in known:
        return UsageError(f"{path}: unknown key; did you mean {meant!r}?")
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    section = path.split(".")[0]
    listed = [name for name in known if name.startswith(section + ".")] or list(SECTIONS)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"{path}: unknown key; {hint}known: {', '.join(listed)}")


def to_json(config: ConfigDict) -> str:
    """The resolved config as JSON text; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def digest(config: ConfigDict) -> str:
    """SHA-256 of the resolved config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def method_options(config: ConfigDict) -> dict[str, Any]:
    """The options of the method alone; those of a sum have two names, "crd.weight"."""
    flat = flatten(config.method)
    return {name: flat[name] for name in methods.options(config.method.name)}


def student_options(config: ConfigDict) -> dict[str, Any]:
    """The options of the student: of a model on images, those of `models.options`."""
    own = {"name", "quantize", *(() if config.student.name == STUDENT_NAME else WARM_START)}
    return {name: value for name, value in config.student.items() if name not in own}


def changed_values(began_with: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two configs as JSON files hold them, in keys that a run must keep.

    Keys that only the second has are those of a later version.
    """
    before, after = flatten(began_with), flatten(now)
    return [
        f"{path}: {value!r} then, {after[path] if path in after else 'missing'!r} now"
        for path, value in before.items()
        if not (path in SCHEMA and not SCHEMA[path].lasting)
        and (path not in after or after[path] != value)
    ]


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
