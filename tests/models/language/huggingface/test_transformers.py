"""Both ways between transformers and here, live; skipped where transformers is not.

    DISTILL_JAX_TRANSFORMERS=/path/to/python pytest tests/models/language/huggingface

names an interpreter that has torch and transformers, of version 4 or 5.
"""

import os
import pathlib
import subprocess

import language_reference as reference
import numpy as np
import pytest

from distill_jax.models import language

PYTHON = os.environ.get("DISTILL_JAX_TRANSFORMERS")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="DISTILL_JAX_TRANSFORMERS names no python with torch and transformers"
)


def _run(command: str, folder: pathlib.Path) -> None:
    script = str(reference.GOLDEN / "make.py")
    subprocess.run([PYTHON, script, command, str(folder)], check=True, timeout=300)


def _answer(folder: pathlib.Path) -> np.ndarray:
    with np.load(folder / "answer.npz") as content:
        return content["logits"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> pathlib.Path:
    """A folder a family, saved by transformers, GPT-2's in shards."""
    folder = tmp_path_factory.mktemp("theirs")
    _run("checkpoints", folder)
    return folder


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory) -> pathlib.Path:
    """The same models, saved by us, with the logits that transformers gives them."""
    folder = tmp_path_factory.mktemp("ours")
    for name in reference.NAMES:
        shard_bytes = 4000 if name == "gpt2" else 10**9
        language.save(folder / name, language.load(theirs / name), shard_bytes=shard_bytes)
    _run("answers", folder)
    return folder


@pytest.mark.parametrize("name", reference.NAMES)
def test_we_load_theirs(theirs, name):
    logits = reference.logits(language.load(theirs / name), reference.TOKENS)
    np.testing.assert_allclose(logits, _answer(theirs / name), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", reference.NAMES)
def test_they_load_ours(theirs, ours, name):
    np.testing.assert_allclose(_answer(ours / name), _answer(theirs / name), rtol=0, atol=1e-4)
