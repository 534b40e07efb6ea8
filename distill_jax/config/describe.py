"""The text of `distill-jax train --help-config`."""

from distill_jax import methods, models
from distill_jax.config.schema import SCHEMA


def describe_keys() -> str:
    """Every key with its default, the data it is for, what it accepts, and its meaning."""
    lines = ["Keys of a config: default [data] · accepted values · meaning", ""]
    section = None
    for path, key in SCHEMA.items():
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            lines.append(f"[{section}]")
        only = f"  [{key.only} only]" if key.only else ""
        lines.append(f"  {path} = {key.default!r}{only}")
        lines.append(f"      {key.expected}")
        lines.append(f"      {key.meaning}")
    lines.append("")
    for title, prefix, registry in (("Models", "student", models), ("Methods", "method", methods)):
        lines.append(f"{title} and their options:")
        for name in registry.names():
            options = ", ".join(f"{prefix}.{k}={v!r}" for k, v in registry.options(name).items())
            lines.append(f"  {name}: {options or 'no options'}")
    return "\n".join(lines)
