"""The text of `distill-jax train --help-config`."""

from distill_jax import methods, models
from distill_jax.config.schema import SCHEMA


def describe() -> str:
    """Every key with its default, what it accepts and its meaning, for `--help-config`."""
    lines = ["Keys of a config: default · accepted values · meaning", ""]
    section = None
    for path, key in SCHEMA.items():
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            lines.append(f"[{section}]")
        lines.append(f"  {path} = {key.default!r}")
        lines.append(f"      {key.expected}")
        lines.append(f"      {key.meaning}")
    lines.append("")
    for title, prefix, room in (("Models", "student", models), ("Methods", "method", methods)):
        lines.append(f"{title} and their options:")
        for name in room.names():
            options = ", ".join(f"{prefix}.{k}={v!r}" for k, v in room.options(name).items())
            lines.append(f"  {name}: {options or 'no options'}")
    return "\n".join(lines)
