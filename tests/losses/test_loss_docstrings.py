"""The public names of the losses: their docstrings have every part, and their examples run."""

import doctest
import inspect
import sys

import pytest

from distill_jax import losses


@pytest.mark.parametrize("name", losses.__all__)
def test_docstring_is_complete_and_its_example_runs(name):
    function = getattr(losses, name)
    doc = inspect.getdoc(function)
    parts = ["\nArgs:", "\nReturns:", "\nRaises:", "\nExample:", "\nReference:"]
    places = [doc.find(part) for part in parts]
    assert -1 not in places and places == sorted(places), dict(zip(parts, places, strict=True))
    for argument in inspect.signature(function).parameters:
        assert f"\n  {argument}: " in doc, argument

    finder = doctest.DocTestFinder(recurse=False)
    module = sys.modules[function.__module__]
    (example,) = finder.find(function, name, globs=vars(module).copy())
    assert doctest.DocTestRunner().run(example).failed == 0
    assert example.examples
