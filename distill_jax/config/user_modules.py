"""Runs the Python files of the user: configs, and the modules that a config names in `imports`."""

import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterable
from types import ModuleType

from distill_jax.errors import UsageError


def execute(name: str, file: pathlib.Path, *, register: bool = False) -> ModuleType:
    """Runs a .py file as the module `name`; with `register` also in `sys.modules`."""
    specification = importlib.util.spec_from_file_location(name, file)
    if specification is None or specification.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(specification)
    if register:
        sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def import_all(names: Iterable[str]) -> None:
    """Runs each module once, so that what it registers is known.

    Args:
      names: of modules, or paths of .py files.

    Raises:
      UsageError: a module that cannot be imported.
    """
    for name in names:
        file = pathlib.Path(name)
        key = str(file.resolve()) if file.suffix == ".py" else name
        if key in sys.modules:
            continue
        try:
            if file.suffix == ".py":
                execute(key, file, register=True)
            else:
                importlib.import_module(name)
        except Exception as error:
            sys.modules.pop(key, None)
            raise UsageError(
                f"imports={name!r}: expected a module that can be imported; "
                f"{type(error).__name__}: {error}"
            ) from error


_folders: set[pathlib.Path] = set()  # of the config files read so far


def forget_other_folders(folder: pathlib.Path) -> None:
    """Drops modules imported from the folders of other configs: each has its own recipes.py."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        own = pathlib.Path(file).parent if file and "." not in name else None
        if own != folder and own in _folders:
            del sys.modules[name]
    _folders.add(folder)
