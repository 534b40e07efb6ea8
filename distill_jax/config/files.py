"""Reading a config: the Python file, and the overrides of a command line.

A config file is Python with `get_config() -> ml_collections.ConfigDict` (or `get_config(arg)`) and
sets only what differs from the defaults of `schema.py`.
"""

import ast
import inspect
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax.config import user_modules
from distill_jax.config.resolver import flatten, resolve, unflatten
from distill_jax.errors import UsageError


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
    if file.suffix != ".py":
        raise UsageError(f"--config={source}: expected a .py file")
    folder = file.parent.resolve()
    user_modules.forget_other_folders(folder)
    sys.path.insert(0, str(folder))  # the file may import a recipes.py next to it
    try:
        module = user_modules.execute(f"_config_{file.stem}", file)
        make = getattr(module, "get_config", None)
        if make is None:
            raise UsageError(f"--config={source}: the file defines no get_config()")
        takes_argument = bool(inspect.signature(make).parameters)
        if argument and not takes_argument:
            raise UsageError(f"--config={source}: get_config() takes no argument")
        config = make(argument) if argument else make()
    except UsageError:
        raise
    except Exception as error:  # the user's code: its error without our frames
        raise UsageError(f"--config={source}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return apply_overrides(config, overrides or {})


def apply_overrides(
    config: Mapping[str, Any] | ConfigDict, overrides: Mapping[str, str]
) -> dict[str, Any]:
    """The nested config with the parsed value of each override."""
    flat = flatten(config)
    for path, text in overrides.items():
        flat[path] = literal(text)
    return unflatten(flat)


def literal(text: str) -> Any:
    """A Python literal, true or false; any other text as it is."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
