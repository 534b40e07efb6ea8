"""Documents: bos, eos and what is learned, against ids that the library itself gives."""

import json

import numpy as np
import pytest
import tokenizers

from distill_jax.data import text
from distill_jax.errors import UsageError


@pytest.fixture
def raw(folder):
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda words: library.encode(words, add_special_tokens=False).ids


def _lists(documents):
    bounds = zip(documents.offsets[:-1], documents.offsets[1:], strict=True)
    return [
        (documents.tokens[a:b].tolist(), documents.loss_mask[a:b].astype(int).tolist())
        for a, b in bounds
    ]


def _record(**content):
    return text.Record("data.path='x': line 1", **content)


def test_texts_with_and_without_bos_and_eos(tokenizer, raw):
    records = [_record(text="Speak, speak."), _record(text=""), _record(text="é\n")]
    for bos, eos, before, after in [
        (None, True, [], [2]),  # this tokenizer adds no bos by itself
        (True, True, [1], [2]),
        (True, False, [1], []),
        (False, False, [], []),
    ]:
        documents = text.tokenize(records, tokenizer, bos=bos, eos=eos)
        expected = [before + raw(record.text) + after for record in records]
        assert _lists(documents) == [(ids, [1] * len(ids)) for ids in expected]
        assert len(documents) == 3
        assert documents.tokens.dtype == np.int32 and documents.loss_mask.dtype == bool


def test_a_response_is_learned_and_its_prompt_is_not(tokenizer, raw):
    prompt, response = raw("To be, or not:"), raw(" to be")
    assert raw("To be, or not: to be") == prompt + response
    records = [
        _record(prompt="To be, or not:", response=" to be"),
        _record(prompt="To be, or not:", response=""),
        _record(prompt="", response=" to be"),
        _record(prompt="h", response="e"),  # "he" is one token
    ]
    assert raw("he") != raw("h") + raw("e")
    expected = [
        ([1, *prompt, *response, 2], len(prompt) + 1),
        ([1, *prompt, 2], len(prompt) + 1),
        ([1, *response, 2], 1),
        ([1, *raw("h"), *raw("e"), 2], 2),
    ]
    documents = text.tokenize(records, tokenizer, bos=True)
    assert _lists(documents) == [(ids, [0] * n + [1] * (len(ids) - n)) for ids, n in expected]
    documents = text.tokenize(records, tokenizer, bos=True, prompt_loss=True)
    assert _lists(documents) == [(ids, [1] * len(ids)) for ids, _ in expected]


def test_conversations_are_what_the_template_writes(golden, folder, tokenizer):
    content = golden("chat")
    source = content["templates"]["mistral"]["source"]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = source
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    cases = [case for case in content["cases"] if case["template"] == "mistral"]
    records = [_record(messages=case["messages"]) for case in cases]
    chat = text.load_chat_template(text.load_tokenizer(folder))
    # bos and eos are the template's alone.
    documents = text.tokenize(records, tokenizer, chat=chat, bos=True)
    assert _lists(documents) == [(case["ids"], case["written"]) for case in cases]
    with pytest.raises(UsageError, match="line 1: is a conversation, and no chat template"):
        text.tokenize(records, tokenizer)


def test_kinds_may_be_mixed_and_many(tokenizer, raw):
    records = [
        _record(text=f"t{i}") if i % 3 else _record(prompt=f"p{i}", response=" r")
        for i in range(2500)
    ]
    got = _lists(text.tokenize(iter(records), tokenizer))
    assert len(got) == 2500
    for i in (0, 1, 2, 3, 1023, 1024, 1025, 2499):
        words = f"t{i}" if i % 3 else f"p{i} r"
        assert got[i][0] == [*raw(words), 2]


def test_what_cannot_be_tokenised_is_refused(folder, tokenizer):
    with pytest.raises(UsageError, match="holds no record; expected"):
        text.tokenize([], tokenizer)
    (folder / "tokenizer_config.json").unlink()
    bare = text.load_tokenizer(folder)
    for options, name in [({}, "eos"), ({"bos": True, "eos": False}, "bos")]:
        with pytest.raises(UsageError, match=f"data.{name}=True: .* names no {name} token"):
            text.tokenize([_record(text="a")], bare, **options)
    assert len(text.tokenize([_record(text="a")], bare, eos=False)) == 1


CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def test_a_prompt_with_its_response_is_a_conversation_where_it_is_wanted(tokenizer):
    chat = text.ChatTemplate(CHAT, "data.tokenizer='x'", "<s>", "</s>")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    pair, whole = _record(prompt="Hi", response="Hello"), _record(messages=turns)
    wrapped = _lists(text.tokenize([pair, whole], tokenizer, chat=chat, as_chat=True))
    assert wrapped[0] == wrapped[1] != _lists(text.tokenize([pair], tokenizer, chat=chat))[0]
    with pytest.raises(UsageError, match="data.chat=True: .* is a text; expected a prompt"):
        text.tokenize([_record(text="Hi")], tokenizer, chat=chat, as_chat=True)


# ---------------------------------------------------------------- validation split


@pytest.mark.parametrize(("validation", "count"), [(0.1, 20), (7, 7), (0.0001, 1), (0, 0)])
def test_a_split_parts_documents(tokenizer, validation, count):
    records = [_record(text=f"document {i}" * (i % 5 + 1)) for i in range(200)]
    documents = text.tokenize(records, tokenizer)
    train, held_out = text.split(documents, validation=validation, split_seed=3)
    assert (len(train), len(held_out)) == (200 - count, count)
    together = sorted(_lists(train) + _lists(held_out))
    assert together == sorted(_lists(documents))
    # The order of the documents is kept in both.
    where = {tuple(ids): i for i, (ids, _) in enumerate(_lists(documents))}
    for part in (train, held_out):
        places = [where[tuple(ids)] for ids, _ in _lists(part)]
        assert places == sorted(places)
    again = text.split(documents, validation=validation, split_seed=3)[1]
    other = text.split(documents, validation=validation, split_seed=4)[1]
    assert _lists(again) == _lists(held_out)
    assert count == 0 or _lists(other) != _lists(held_out)


def test_a_fraction_thins_what_trains_and_leaves_what_chooses(tokenizer):
    documents = text.tokenize([_record(text=f"{i}") for i in range(100)], tokenizer)
    whole, held_out = text.split(documents, validation=20, split_seed=1)
    half, same = text.split(documents, validation=20, split_seed=1, fraction=0.5)
    assert len(half) == 40 and _lists(same) == _lists(held_out)
    rest = _lists(whole)
    assert all(document in rest for document in _lists(half))
    with pytest.raises(UsageError, match="data.validation=100"):
        text.split(documents, validation=100, split_seed=1)
