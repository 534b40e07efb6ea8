"""What the tests of plans share."""

import os

import pytest


@pytest.fixture
def kept_environment():
    """The verb sets what JAX and libtpu read; a test leaves it as it was."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
