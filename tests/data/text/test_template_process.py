"""Templates and tokenizers that ask for more than there is."""

import base64
import contextlib
import datetime
import json
import os
import struct
import time

import pytest
import tokenizers

from distill_jax.data.text import template_process, tokenizer_json
from distill_jax.data.text.template_process import TemplateFault, render
from distill_jax.errors import UsageError
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.huggingface.families import from_huggingface

DOUBLED = "{% set s = 'x' * 1000 %}" + "{% set s = s ~ s %}" * 40 + "{{ s }}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ [1, [2]] | tojson(indent=10**9) }}",
        DOUBLED,
        "{% set s = ['x' * 1000] * 100000 %}{{ s | join(s | join) }}",
        "{{ 'x' * 100000000 }}",
    ],
)
def test_memory_is_limited(source):
    began = time.monotonic()
    with pytest.raises(TemplateFault, match="memory|OutOfFuel|more than"):
        render(source, {}, None)
    assert time.monotonic() - began < 15
    assert render("{{ x }}", {"x": "still here"}, None) == "still here"


def test_time_is_limited(monkeypatch):
    monkeypatch.setattr(template_process, "MOST_SECONDS", 0.01)
    with pytest.raises(TemplateFault, match="takes longer than 0.01 s"):
        render(DOUBLED, {}, None)
    monkeypatch.undo()
    assert render("{{ 1 }}", {}, None) == "1"


def test_a_template_has_its_functions_and_a_killed_process_is_replaced():
    date = datetime.date(2026, 1, 2)
    assert render("{{ strftime_now('%d %b %Y') }}", {}, date) == "02 Jan 2026"
    assert render("{{ x | tojson }}", {"x": {"é": "<"}}, None) == '{"é": "<"}'
    with pytest.raises(TemplateFault, match="^no$"):
        render("{{ raise_exception('no') }}", {}, None)
    with pytest.raises(TemplateFault) as caught:
        render("a\n{% if %}", {}, None)
    assert caught.value.line == 2
    renderer = template_process._get_renderer()
    os.kill(renderer._process.pid, 9)
    with pytest.raises(TemplateFault):
        render("{{ 1 }}", {}, None)
    assert render("{{ 1 }}", {}, None) == "1"


def test_a_tokenizer_that_doubles_a_text_is_refused(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    plain = json.loads(tokenizer.to_str())
    file = tmp_path / "tokenizer.json"
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    # The library takes a rule of an unknown type for one that has its fields.
    unknown = rule | {"type": "X", "prepend": "a"}
    between = {"type": "Replace", "pattern": {"String": ""}, "content": "aa"}
    nameless = {"pattern": {"Regex": ""}, "content": "a" * 1000}
    for rules, refused in (
        ([rule] * 30, True),
        ([unknown] * 30, True),
        ([between] * 7, True),
        ([nameless], True),
        ([rule] * 3, False),
        ([unknown] * 3, False),
    ):
        plain["normalizer"] = {"type": "Sequence", "normalizers": rules}
        file.write_text(json.dumps(plain))
        if refused:
            with pytest.raises(UsageError, match="its normalizer makes a text over 1000 times"):
                tokenizer_json.load(file, "data.tokenizer='x'")
        else:
            tokenizer_json.load(file, "data.tokenizer='x'")


@pytest.mark.parametrize(
    ("replacements", "times", "refused"),
    [
        ((b"a", "صلى الله عليه وسلم".encode()), 1, False),  # the longest of SentencePiece's own
        ((b"a", b"x" * 1001), 1, True),
        ((b"a", b"x" * 40), 2, True),  # one after the other
        ((b"a", b"x" * 40), 1, False),
        ((), 1, False),
    ],
)
def test_a_table_of_sentencepiece_is_bounded_as_other_rules_are(
    tmp_path, replacements, times, refused
):
    trie = struct.pack("<256I", *[0] * 256)
    table = struct.pack("<I", len(trie)) + trie + b"".join(one + b"\0" for one in replacements)
    rule = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    content = json.loads(tokenizer.to_str())
    content["normalizer"] = {"type": "Sequence", "normalizers": [rule] * times}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    if refused:
        with pytest.raises(UsageError, match="its normalizer makes a text over 1000 times"):
            tokenizer_json.load(file, "data.tokenizer='x'")
    else:
        tokenizer_json.load(file, "data.tokenizer='x'")


@pytest.mark.parametrize("table", ["no base64 !", "", "AAAA", None, 3])
def test_a_damaged_table_of_sentencepiece_is_one_line(tmp_path, table):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    content = json.loads(tokenizer.to_str())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with contextlib.suppress(UsageError):  # the library reads some of them as no table
        tokenizer_json.load(tmp_path / "tokenizer.json", "data.tokenizer='x'")


def test_a_config_of_endless_layers_is_refused():
    llama = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
    llama |= {"num_attention_heads": 2, "max_position_embeddings": 8}
    with pytest.raises(UsageError, match="num_hidden_layers=100000000: expected 1 to 4096"):
        from_huggingface({**llama, "num_hidden_layers": 10**8})
    with pytest.raises(UsageError, match="decoder.experts=.*expected at most"):
        DecoderConfig(8, 8, 2, 2, 2, 4, 8, experts=10**8, experts_per_token=1)
