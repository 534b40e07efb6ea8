"""The text of `distill-jax train --help-config`."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax import methods, models
from distill_jax.config.resolver import WARM_START, flatten
from distill_jax.config.schema import IMAGES, SCHEMA, TEXT
from distill_jax.models.language.student import STUDENT_NAME, STUDENT_OPTIONS


def describe_keys(config: ConfigDict | None = None) -> str:
    """Every key with its default, the data it is for, what it accepts, and its meaning.

    Args:
      config: resolved; with one, the keys of its kind of data alone, the options of its student and
        method, and where they differ from the default its values.
    """
    kind = None
    if config is not None:
        kind = TEXT if config.data.name == TEXT else IMAGES
    flat = {} if config is None else flatten(config)
    lines = ["Keys of a config: default [data] · accepted values · meaning", ""]
    section = None
    for path, key in SCHEMA.items():
        if kind is not None and key.only not in (None, kind):
            continue
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            lines.append(f"[{section}]")
        only = f"  [{key.only} only]" if key.only and kind is None else ""
        lines.append(f"  {path} = {key.default!r}{only}{_given(flat, path, key.default)}")
        lines.append(f"      {key.expected}")
        lines.append(f"      {key.meaning}")
    lines.append("")
    for title, prefix, own in _options(config):
        lines.append(f"{title} and their options:")
        for name, options in own.items():
            listed = ", ".join(
                f"{prefix}.{k}={v!r}{_given(flat, f'{prefix}.{k}', v)}" for k, v in options.items()
            )
            lines.append(f"  {name}: {listed or 'no options'}")
    return "\n".join(lines)


def _given(flat: Mapping[str, Any], path: str, default: Any) -> str:
    """What a config sets in place of a default."""
    value = flat.get(path, default)
    return "" if value == default else f"  (here: {value!r})"


def _options(config: ConfigDict | None) -> Iterator[tuple[str, str, dict[str, dict[str, Any]]]]:
    """("Models", "student", {name: its options}), and likewise the methods."""
    students = {name: models.options(name) | WARM_START for name in models.names()}
    students[STUDENT_NAME] = STUDENT_OPTIONS
    named = {name: methods.options(name) for name in methods.names()}
    if config is not None:
        students = {config.student.name: students[config.student.name]}
        named = {config.method.name: methods.options(config.method.name)}
    yield "Models", "student", students
    yield "Methods", "method", named
