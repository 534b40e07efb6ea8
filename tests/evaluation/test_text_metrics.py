"""Scores of answers: against the packages of the field, a plain table, and cases by hand."""

import json
import pathlib
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.evaluation import text_metrics

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden" / "scoring" / "scores.json").read_text()
)


def plain_rouge_l(answer: str, reference: str) -> float:
    """By the table of the longest common subsequence, a cell at a time."""

    def words(text: str) -> list[str]:
        kept = [c if c in "abcdefghijklmnopqrstuvwxyz0123456789" else " " for c in text.lower()]
        return "".join(kept).split()

    a, b = words(answer), words(reference)
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in range(len(a)):
        for j in range(len(b)):
            longer = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if a[i] == b[j] else longer
    return 2 * table[-1, -1] / (len(a) + len(b)) if a and b else 0.0


def test_rouge_l_is_that_of_the_package():
    for row in GOLDEN:
        found = text_metrics.rouge_l(row["answer"], row["reference"])
        np.testing.assert_allclose(found, row["rouge_l"], rtol=1e-12, err_msg=str(row))
    assert sum(0 < row["rouge_l"] < 1 for row in GOLDEN) > 30


@given(*[st.lists(st.sampled_from("a b C d1 -e".split()), max_size=90).map(" ".join)] * 2)
@settings(max_examples=150, deadline=None)
def test_rouge_l_is_that_of_the_plain_table(answer, reference):
    found = text_metrics.rouge_l(answer, reference)
    np.testing.assert_allclose(found, plain_rouge_l(answer, reference), rtol=1e-12)


def test_rouge_l_of_real_responses(shared_data):
    path = shared_data / "text" / "dolly_valid.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the shared data")
    texts = [json.loads(line)["output"] for line in path.open(encoding="utf-8")]
    for answer, reference in zip(texts[:40], texts[1:41], strict=True):
        expected = plain_rouge_l(answer, reference)
        np.testing.assert_allclose(text_metrics.rouge_l(answer, reference), expected, rtol=1e-12)
    assert all(text_metrics.rouge_l(text, text) == 1.0 for text in texts)


def test_rouge_l_of_long_texts_takes_no_time():
    words = [f"w{n % 997}" for n in range(20_000)]
    began = time.perf_counter()
    assert text_metrics.rouge_l(" ".join(words), " ".join(words[::2])) == pytest.approx(2 / 3)
    assert time.perf_counter() - began < 5  # a table of 2e8 cells would take minutes


def test_without_a_marker_exact_match_is_that_of_squad():
    for row in GOLDEN:
        found = text_metrics.exact_match(row["answer"], row["reference"])
        assert found == row["squad_exact"], row
    assert sum(row["squad_exact"] for row in GOLDEN) > 4


@pytest.mark.parametrize(
    ("answer", "right", "matches"),
    [
        ("16 - 3 = 13 and 9 * 2 = 18.\n#### 18", "18", True),
        ("#### 18.", "18", True),
        ("#### $18.00", "18", True),
        ("####18", "18", True),
        ("#### 18 dollars a day for 7 days", "18", True),
        ("#### 17\n#### 18", "18", True),
        ("#### 18\n#### 17", "18", False),
        ("18 #### 17", "18", False),
        ("18 ####", "18", False),
        ("#### eighteen", "18", False),
        ("She has 16 and makes $18 every day.", "18", True),
        ("18, of which 7", "18", False),
        ("She makes 18 of them", "180", False),
        ("no number at all", "18", False),
        ("", "18", False),
        ("#### 2,125", "2125", True),
        ("#### 2125", "2,125", True),
        ("#### 1,450,000", "1450000", True),
        ("it is 12,34", "1234", False),
        ("#### -10", "-10", True),
        ("#### \u221210", "-10", True),
        ("#### 10", "-10", False),
        ("#### -$3.50", "-3.5", True),
        ("#### $-3.50", "-3.5", True),
        ("a loss of (-3)", "-3", True),
        ("16-3", "3", True),
        ("16-3", "-3", False),
        ("total:\n- 3", "3", True),
        ("#### 50%", "50", True),
        ("#### 50", "50 %", True),
        ("#### 0.5", "50%", False),
        ("#### 1/2", "0.5", True),
        ("#### .5", "1/2", True),
        ("#### 1/3", "0.3333333333333333", False),
        ("#### 1/0", "1", True),
        ("#### 0.1", "0.10", True),
        ("#### 9007199254740993", "9007199254740992", False),
        ("1" * 5000, "1", False),
        ("#### Monday", "the monday.", True),
        ("Monday", "Monday", True),
        ("On Monday", "Monday", False),
        ("#### 18", "18 eggs", False),
        ("#### 18 eggs", "18 eggs", True),
    ],
)
def test_answers_after_a_marker(answer, right, matches):
    assert text_metrics.exact_match(answer, f"Some steps, 99 of them.\n#### {right}") == matches


def test_the_answers_of_gsm8k_are_those_of_its_authors(shared_data):
    path = shared_data / "text" / "gsm8k_test.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the shared data")
    answers = [json.loads(line)["answer"] for line in path.open(encoding="utf-8")]
    # Their own pattern (openai/grade-school-math, dataset.py), and commas are dropped.
    theirs = [re.search(r"#### (\-?[0-9\.\,]+)", text)[1].replace(",", "") for text in answers]
    for text, value in zip(answers, theirs, strict=True):
        assert float(text_metrics.number(text.rpartition("####")[2])) == float(value)
        assert text_metrics.exact_match(text, text) == 1
        assert text_metrics.exact_match(f"So the answer is {value}.", text) == 1
        assert text_metrics.exact_match(f"#### {float(value) + 1}", text) == 0


def test_what_no_answer_can_match_is_told():
    assert text_metrics.unscorable("rouge_l", "東京") == "has no word of [a-z0-9]"
    assert text_metrics.unscorable("rouge_l", "7") == ""
    assert text_metrics.unscorable("exact_match", "東京") == ""
    assert text_metrics.unscorable("exact_match", "The.") == "has no answer"
    assert text_metrics.unscorable("exact_match", "18 ####") == "has no answer"
    assert text_metrics.unscorable("exact_match", "#### 18") == ""
