"""Runs the Python files of the user: configs, and the modules that a config names in `imports`.

A config file is the user's own program. The config.json of a workdir is data, which may have come
from elsewhere: the modules that it names are run only where they are installed packages, where this
process has run them already, or where the user says so (`trusting_workdirs`).
"""

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import pathlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
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


_trusted = False  # whether the modules that a workdir names are run


@contextlib.contextmanager
def trusting_workdirs(trusted: bool = True) -> Iterator[None]:
    """A context in which the modules that the config.json of a workdir names are run."""
    global _trusted
    before, _trusted = _trusted, trusted
    try:
        yield
    finally:
        _trusted = before


def check_trusted(names: Iterable[str], file: object) -> None:
    """UsageError for a module that the config of a workdir names and that may not be run.

    Args:
      names: those of `imports`.
      file: the config.json, for the error.
    """
    for name in names:
        key = str(pathlib.Path(name).resolve()) if name.endswith(".py") else name
        if not (_trusted or key in sys.modules or _is_installed(name)):
            raise UsageError(
                f"imports={name!r}: {file} names this module, and it is no installed package; "
                "expected --trust-imports, which runs it: do so only where you trust its author"
            )


def _is_installed(name: str) -> bool:
    """Whether a name is that of a module of an installed package; runs nothing."""
    top = name.partition(".")[0]
    if name.endswith(".py") or top not in importlib.metadata.packages_distributions():
        return False
    found = importlib.machinery.PathFinder.find_spec(top)  # where `import` would find it
    origin = found and (found.origin or next(iter(found.submodule_search_locations or ()), None))
    if not origin:
        return False
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    return any(pathlib.Path(origin).is_relative_to(path) for path in paths)


_folders: set[pathlib.Path] = set()  # of the config files read so far


def forget_other_folders(folder: pathlib.Path) -> None:
    """Drops modules imported from the folders of other configs: each has its own recipes.py."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        own = pathlib.Path(file).parent if file and "." not in name else None
        if own != folder and own in _folders:
            del sys.modules[name]
    _folders.add(folder)
