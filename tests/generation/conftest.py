"""Programs of this folder's tests run once or twice: quick to compile is better than quick."""

import generation_reference as reference
import pytest

from distill_jax.generation import decode


@pytest.fixture(autouse=True, scope="session")
def quickly_compiled():
    before = decode._respond
    reference.compile_quickly()
    yield
    decode._respond = before
