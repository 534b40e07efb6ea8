"""What the tests of text share: the small committed files, and a tokenizer with special tokens."""

import json
import pathlib

import pytest

from distill_jax.data import text

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "text"


@pytest.fixture(scope="session")
def golden():
    """The content of a committed JSON file by its name."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def golden_folder() -> pathlib.Path:
    return GOLDEN


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A folder with the small tokenizer, bos "<s>" and eos "</s>", to be added to."""
    (tmp_path / "tokenizer.json").write_bytes((GOLDEN / "tokenizer.json").read_bytes())
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.fixture
def tokenizer(folder) -> text.Tokenizer:
    return text.load_tokenizer(folder)
