"""Calibration text: which rows a file gives, and what is refused."""

import hashlib

import numpy as np
import pytest
import small_texts

from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.runs import calibration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    small_texts.write_tokenizer(folder)
    small_texts.write_records(folder / "records.jsonl")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return text.load_tokenizer(folder)


def test_rows_are_the_first_ones_and_the_last_batch_is_filled_with_padding(folder, tokenizer):
    file = folder / "records.jsonl"
    found = calibration.read(file, tokenizer, rows=11, length=32, vocab_size=300)
    assert [batch["tokens"].shape for batch in found.batches] == [(8, 32), (8, 32)]
    segments = np.concatenate([batch["segments"] for batch in found.batches])
    assert segments[:11].all() and not segments[11:].any()
    assert found.description == {
        "file": "records.jsonl",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "rows": 11,
        "length": 32,
        "tokens": 11 * 32,
    }
    whole = calibration.read(file, tokenizer, rows=10**6, length=32, vocab_size=300)
    np.testing.assert_array_equal(whole.batches[0]["tokens"], found.batches[0]["tokens"])
    assert whole.description["rows"] > 11


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("none.txt", None, {}, "none.txt': no such file; expected one of text"),
        ("empty.txt", "", {}, "empty.txt': is empty; expected text of two tokens or more"),
        ("blank.jsonl", " \n\n", {}, "blank.jsonl': is empty; expected text of two tokens"),
        ("a.csv", "a,b", {}, "a.csv': a.csv ends in '.csv'; expected one of"),
        ("bad.jsonl", '{"x": 1}', {}, "bad.jsonl': line 1: has ['x']; expected"),
        ("a.txt", "a word", {"rows": 0}, "--calibration-rows=0: expected at least one row"),
        ("a.txt", "some word", {"vocab_size": 9}, "a.txt': its text has the id "),
    ],
)
def test_what_is_no_calibration_text_is_refused(
    folder, tokenizer, tmp_path, name, content, options, words
):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        calibration.read(tmp_path / name, tokenizer, **{"vocab_size": 300, **options})
    assert words in str(caught.value) and str(caught.value).startswith("--calibration")
