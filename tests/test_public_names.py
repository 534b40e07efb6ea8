"""`import distill_jax` is free; its names appear when they are used."""

import pydoc
import subprocess
import sys

import pytest

import distill_jax
from distill_jax.runs import experiment


def test_importing_the_package_loads_no_library():
    code = (
        "import sys; before = set(sys.modules); import distill_jax; dir(distill_jax); "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) == {"distill_jax"}


def test_every_public_name_can_be_used_without_another_import():
    code = (
        "import distill_jax\n"
        "for name in distill_jax.__all__: print(getattr(distill_jax, name).__name__)\n"
        "print(distill_jax.losses.soft_target.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = [name if name == "run" else f"distill_jax.{name}" for name in distill_jax.__all__]
    assert done.stdout.split() == [*expected, "soft_target"]


def test_the_names_are_listed_and_run_is_the_experiments():
    assert set(distill_jax.__all__) < set(dir(distill_jax))
    assert distill_jax.run is experiment.run


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'distill_jax' has no attribute 'lossess'"):
        distill_jax.lossess  # noqa: B018


def test_help_shows_every_public_name():
    page = pydoc.render_doc(distill_jax, renderer=pydoc.plaintext)
    tour = page.partition("PACKAGE CONTENTS")[0]
    assert all(name in tour for name in distill_jax.__all__)
