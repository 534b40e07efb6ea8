"""What the campaigns break, made once."""

import pathlib

import bench as benches
import pytest


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> pathlib.Path:
    """A folder with a finished run on images and one on text, and what they read."""
    return benches.build(tmp_path_factory.mktemp("campaign") / "bench")
