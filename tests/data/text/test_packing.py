"""Packing: rows hold the very pairs of context and target that a slow loop over documents lists.

The loop knows nothing of rows but their length: it is the unpacked computation that packing must
not change. It is run on real text, tokenised by the library, and on random documents.
"""

import collections
import json

import numpy as np
import pytest
import tokenizers

from distill_jax.data import text
from distill_jax.data.text import packing
from distill_jax.errors import UsageError

STRATEGIES = ["whole", "concatenate", "single"]


def _documents(lists):
    """Documents from [(ids, learned), ...]."""
    tokens = np.array([i for ids, _ in lists for i in ids], np.int32)
    learned = np.array([flag for _, flags in lists for flag in flags], bool)
    offsets = np.cumsum([0, *(len(ids) for ids, _ in lists)])
    return text.Documents(tokens, learned, offsets)


def _loop(lists, length, strategy, long):
    """Counts (context, target, learned) of every target, document by document."""
    pairs = collections.Counter()
    stream = 0  # how many inputs came before, were all documents one after the other
    for ids, learned in lists:
        inputs = len(ids) - 1
        if long == "cut":
            inputs = min(inputs, length)
        for i in range(max(inputs, 0)):
            if strategy != "concatenate":
                start = i - i % length
            else:
                start = max(0, i - (stream + i) % length)
            pairs[tuple(ids[start : i + 1]), ids[i + 1], bool(learned[i + 1])] += 1
        stream += max(inputs, 0)
    return pairs


def _seen(rows):
    """The same of packed rows, read place by place; padding and positions are checked."""
    pairs = collections.Counter()
    for index in range(len(rows)):
        batch = {name: values[0].tolist() for name, values in rows.batch(np.array([index])).items()}
        context, before = [], 0
        for place, segment in enumerate(batch["segments"]):
            if segment == 0:
                assert not batch["mask"][place] and batch["positions"][place] == 0
                assert not any(batch["segments"][place:])
                break
            if segment != before:
                assert segment == before + 1
                context = []
            context.append(batch["tokens"][place])
            assert batch["positions"][place] == len(context) - 1
            pairs[tuple(context), batch["targets"][place], batch["mask"][place]] += 1
            before = segment
    return pairs


def _check(lists, length, strategy, long):
    rows = text.pack(_documents(lists), length, strategy=strategy, long=long)
    expected = _loop(lists, length, strategy, long)
    assert _seen(rows) == expected
    summary = text.summary(rows)
    assert summary["input_tokens"] == sum(expected.values())
    assert summary["learned_tokens"] == sum(n for (_, _, flag), n in expected.items() if flag)
    if strategy == "single":
        pieces = [max(len(ids) - 1, 0) for ids, _ in lists]
        pieces = [min(n, length) if long == "cut" else n for n in pieces]
        assert len(rows) == sum(-(-n // length) for n in pieces)
    return rows


# ---------------------------------------------------------------- against the loop


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("long", ["split", "cut"])
@pytest.mark.parametrize("length", [1, 2, 7, 16, 64])
def test_random_documents(strategy, long, length):
    random = np.random.default_rng(length)
    for count in (1, 5, 60):
        sizes = random.integers(0, 40, count)
        sizes[-1] = 33
        lists = [
            (random.integers(0, 9, n).tolist(), (random.random(n) < 0.6).tolist()) for n in sizes
        ]
        lists[-1][1][:] = [True] * 33
        _check(lists, length, strategy, long)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("length", [64, 256])
def test_real_prompts_and_responses(shared_data, strategy, length):
    # GSM8K with TinyLlama's tokenizer; the ids and the prompt mask are made by hand.
    path = shared_data / "text" / "gsm8k_test.jsonl"
    folder = shared_data / "tokenizers" / "tinyllama"
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    lists = []
    for line in path.read_text().splitlines()[:150]:
        row = json.loads(line)
        prompt = library.encode(row["question"], add_special_tokens=False).ids
        joined = library.encode(row["question"] + row["answer"], add_special_tokens=False).ids
        alone = library.encode(row["answer"], add_special_tokens=False).ids
        response = joined[len(prompt) :] if joined[: len(prompt)] == prompt else alone
        ids = [1, *prompt, *response, 2]
        lists.append((ids, [i > len(prompt) for i in range(len(ids))]))
    records = list(text.read(path, fields="gsm8k"))[:150]
    documents = text.tokenize(records, text.load_tokenizer(folder))
    assert documents.tokens.tolist() == [i for ids, _ in lists for i in ids]
    rows = text.pack(documents, length, strategy=strategy)
    assert _seen(rows) == _loop(lists, length, strategy, "split")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_real_texts(shared_data, strategy):
    # The speeches of Shakespeare with GPT-2's tokenizer.
    path = shared_data / "text" / "tinyshakespeare.txt"
    folder = shared_data / "tokenizers" / "gpt2"
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    speeches = path.read_text().split("\n\n")[:400]
    lists = []
    for speech in speeches:
        ids = [*library.encode(speech.strip("\n")).ids, 50256]
        lists.append((ids, [True] * len(ids)))
    records = [record for record, _ in zip(text.read(path), range(400), strict=False)]
    documents = text.tokenize(records, text.load_tokenizer(folder))
    assert documents.tokens.tolist() == [i for ids, _ in lists for i in ids]
    rows = text.pack(documents, 96, strategy=strategy)
    assert _seen(rows) == _loop(lists, 96, strategy, "split")


# ---------------------------------------------------------------- known rows


def test_known_rows():
    lists = [([10, 11, 12], [1, 1, 1]), ([20, 21, 22, 23], [0, 0, 1, 1]), ([30], [1]), ([], [])]
    rows = text.pack(_documents(lists), 4, strategy="concatenate")
    batch = rows.batch(np.array([1, 0]))
    assert {name: values.tolist() for name, values in batch.items()} == {
        "tokens": [[22, 0, 0, 0], [10, 11, 20, 21]],
        "segments": [[1, 0, 0, 0], [1, 1, 2, 2]],
        "positions": [[0, 0, 0, 0], [0, 1, 0, 1]],
        "targets": [[23, 0, 0, 0], [11, 12, 21, 22]],
        "mask": [[True, False, False, False], [True, True, False, True]],
    }
    dtypes = {name: values.dtype for name, values in batch.items()}
    assert dtypes.pop("mask") == np.dtype(bool) and set(dtypes.values()) == {np.dtype(np.int32)}
    rows = text.pack(_documents(lists), 4)
    assert rows.batch(np.arange(2))["tokens"].tolist() == [[20, 21, 22, 0], [10, 11, 0, 0]]
    assert text.summary(rows) == {
        "rows": 2, "documents": 4, "short_documents": 2, "split_documents": 0, "cut_tokens": 0,
        "unlearned_documents": 0, "left_out_rows": 0,
        "input_tokens": 5, "learned_tokens": 4, "fill": 5 / 8,
    }  # fmt: skip
    assert rows.batch(np.zeros(0, int))["tokens"].shape == (0, 4)


def test_a_long_document_goes_on_or_is_cut():
    lists = [(list(range(10)), [1] * 10), ([50, 51], [1, 1])]
    rows = text.pack(_documents(lists), 4)
    batch = rows.batch(np.arange(len(rows)))
    assert batch["tokens"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 50, 0, 0]]
    assert batch["targets"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 51, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert text.summary(rows)["split_documents"] == 1
    rows = text.pack(_documents(lists), 4, long="cut")
    assert rows.batch(np.arange(2))["targets"].tolist() == [[1, 2, 3, 4], [51, 0, 0, 0]]
    assert text.summary(rows)["cut_tokens"] == 5


# ---------------------------------------------------------------- best fit


def test_a_document_that_fits_is_whole_and_rows_are_full():
    random = np.random.default_rng(0)
    sizes = random.integers(2, 66, 2000)
    lists = [([d % 1000] * n, [True] * n) for d, n in enumerate(sizes)]
    rows = text.pack(_documents(lists), 64)
    # Inputs of 1 to 64: none is split, and no two rows could have been one.
    assert text.summary(rows)["split_documents"] == 0
    used = (rows.batch(np.arange(len(rows)))["segments"] > 0).sum(axis=1)
    assert used.sum() == (sizes - 1).sum() and used.max() <= 64
    smallest = np.sort(used)[:2]
    assert smallest.sum() > 64
    assert text.summary(rows)["fill"] > 0.97


def test_best_fit_takes_the_fullest_row_with_room():
    # Rooms after 7, 6 and 5 of 10: 3, 4 and 5. 4 goes to the room of 4, 3 to that of 3, 2 to 5's.
    assert packing._best_fit([7, 6, 5, 4, 3, 2, 10, 3], 10).tolist() == [0, 1, 2, 1, 0, 2, 3, 2]


# ---------------------------------------------------------------- refusals and fingerprints


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"strategy": "best"}, "data.packing='best': unknown name"),
        ({"long": "drop"}, "data.long='drop': unknown name"),
        ({"length": 0}, "data.length=0: expected"),
        ({"length": 2.0}, "data.length=2.0: expected"),
    ],
)
def test_bad_options_are_refused(options, part):
    with pytest.raises(UsageError, match=part):
        text.pack(_documents([([1, 2], [1, 1])]), **{"length": 4, **options})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "lists",
    [
        [([1], [1]), ([], [])],  # no pair
        [([1, 2, 3], [1, 0, 0])],  # nothing learned: a first token has no context
        [([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 1])],  # the response is cut off
    ],
)
def test_nothing_to_learn_is_refused(lists, strategy):
    with pytest.raises(UsageError, match=r"nothing to learn in rows of 4 tokens; expected"):
        text.pack(_documents(lists), 4, strategy=strategy, long="cut")


def test_the_fingerprint_is_of_every_row():
    lists = [([1, 2, 3, 4, 5, 6], [1] * 6), ([7, 8, 9], [0, 1, 1])]
    base = text.pack(_documents(lists), 4)
    assert text.fingerprint(base) == text.fingerprint(text.pack(_documents(lists), 4))
    assert len(text.fingerprint(base)) == 64
    changed = [
        text.pack(_documents(lists), 5),
        text.pack(_documents(lists), 4, strategy="concatenate"),
        text.pack(_documents([(lists[0][0], [1, 1, 0, 1, 1, 1]), lists[1]]), 4),
        text.pack(_documents([([1, 2, 3, 4, 5, 0], [1] * 6), lists[1]]), 4),
        text.pack(_documents([([0, 2, 3, 4, 5, 6], [1] * 6), lists[1]]), 4),
        text.pack(_documents(lists[:1]), 4),
        text.pack(_documents([([1, 2], [1, 1]), *[([i, i + 1], [1, 1]) for i in (2, 3, 4, 5)]]), 4),
        text.pack(_documents(lists[::-1]), 4),
    ]
    prints = {text.fingerprint(rows) for rows in changed}
    # The last only gives the documents in another order, which best fit makes the same rows of.
    assert text.fingerprint(changed[-1]) == text.fingerprint(base)
    assert len(prints) == 8
