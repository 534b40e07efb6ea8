"""The layout that import-linter does not check: what is in the root of the package."""

import pathlib

import distill_jax

ROOT = pathlib.Path(distill_jax.__file__).parent


def test_the_root_holds_no_module_but_those_of_the_whole_package():
    """A new module belongs into one of the subpackages."""
    modules = {file.name for file in ROOT.glob("*.py")}
    assert modules == {"__init__.py", "cli.py", "errors.py"}


def test_every_folder_of_the_package_is_a_package_with_a_docstring():
    for folder in (path for path in ROOT.rglob("*") if path.is_dir() and any(path.glob("*.py"))):
        text = (folder / "__init__.py").read_text()
        assert text.startswith('"""'), folder
