"""Tokenizers: the ids of transformers, sentencepiece and a slow loop; bad files in one line."""

import json
import re
import struct
import sys

import pytest
import tokenizers

from distill_jax.data import text
from distill_jax.data.text import llama2c
from distill_jax.errors import UsageError


def _refused(call, *parts):
    """The call raises a UsageError of one line that holds the parts."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and len(message) < 600
    for part in parts:
        assert part in message, message


# ---------------------------------------------------------------- tokenizer.json


@pytest.mark.parametrize(
    ("name", "size", "special"),
    [("gpt2", 50257, (50256, 50256, None)), ("tinyllama", 32000, (1, 2, 0))],
)
def test_public_tokenizers_give_the_ids_of_transformers(shared_data, golden, name, size, special):
    tokenizer = text.load_tokenizer(shared_data / "tokenizers" / name)
    answers = golden("ids")
    assert tokenizer.encode_batch(answers["texts"]) == answers[name]
    assert [tokenizer.encode(item) for item in answers["texts"]] == answers[name]
    assert tokenizer.vocab_size == size
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == special
    assert tokenizer.adds_bos == (name == "tinyllama")
    assert tokenizer.stop_ids == (special[1],)
    for item, ids in zip(answers["texts"], answers[name], strict=True):
        if "<s>" not in item:  # special tokens stand for no text
            # TinyLlama's decoder takes away one space at the start: the one that encoding puts.
            assert tokenizer.decode(ids) == item


def test_tokenizer_json_gives_the_ids_of_sentencepiece(shared_data, golden):
    tokenizer = text.load_tokenizer(shared_data / "tokenizers" / "tinyllama" / "tokenizer.json")
    answers = golden("ids")
    plain = [i for i, item in enumerate(answers["texts"]) if "<s>" not in item]
    assert len(plain) == 11
    for i in plain:
        assert tokenizer.encode(answers["texts"][i]) == answers["tinyllama_model"][i]


def _change(folder, change):
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_truncation_padding_and_dropout_of_the_file_are_put_aside(folder, tokenizer):
    long = "Speak, speak, before we proceed any further. " * 20
    expected = tokenizer.encode_batch([long, "a"])

    def limit(content):
        content["truncation"] = {
            "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
        content["padding"] = {
            "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
        }  # fmt: skip
        content["model"]["dropout"] = 0.9

    _change(folder, limit)
    assert text.load_tokenizer(folder).encode_batch([long, "a"]) == expected
    assert len(expected[0]) > 100 and len(expected[1]) == 1


def _template(tokens):
    pieces = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": tokens}


PANICS = {
    # Each of these is a panic in tokenizers 0.23: at parsing, or at the first text.
    "charsmap": lambda c: c.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "A"}),
    "prefix": lambda c: c["model"].update(continuing_subword_prefix="#" * 10),
    "template": lambda c: c.update(post_processor=_template({})),
    "length": lambda c: c.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
}


@pytest.mark.parametrize("name", PANICS)
def test_a_file_that_makes_the_parser_panic_is_one_line(folder, capfd, name):
    _change(folder, PANICS[name])
    with pytest.raises(BaseException) as raised:
        raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        raw.encode("a")
    assert not isinstance(raised.value, Exception)  # it is a panic, or this tests nothing
    capfd.readouterr()
    _refused(lambda: text.load_tokenizer(folder, key="teacher.path"), "teacher.path='")
    assert capfd.readouterr() == ("", "")


SPOILED = {
    "truncated": (lambda data: data[:-200], "Unterminated string"),
    "empty": (lambda data: b"", "Expecting value"),
    "not_utf8": (lambda data: b"\xff\xfe" + data, "utf-8"),
    "a list": (lambda data: b"[1, 2]", "invalid"),
    "binary": (lambda data: bytes(range(256)), "utf-8"),
    "merge": (lambda data: data.replace(b'"merges":[[', b'"merges":[["zzz","a"],['), "zzz"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_damaged_tokenizer_json_is_one_line(folder, name):
    change, part = SPOILED[name]
    path = folder / "tokenizer.json"
    path.write_bytes(change(path.read_bytes()))
    _refused(lambda: text.load_tokenizer(folder), "data.tokenizer='", part)


def test_a_wide_gap_in_the_ids_is_refused(folder):
    def far(content):
        content["added_tokens"].append(
            {**content["added_tokens"][0], "id": 2**31, "content": "<x>"}
        )
        content["model"]["vocab"]["<x>"] = 2**31

    _change(folder, far)
    _refused(lambda: text.load_tokenizer(folder), "2147483648", "gaps")


def test_only_panics_are_caught(folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizers.Tokenizer, "from_str", interrupted)
    with pytest.raises(KeyboardInterrupt):
        text.load_tokenizer(folder)


# ---------------------------------------------------------------- special ids


def _write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_special_ids_come_from_the_first_file_that_names_them(folder):
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    number = raw.token_to_id
    _write(
        folder,
        tokenizer_config={"bos_token": "<bos>", "eos_token": None},
        special_tokens_map={"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}},
        generation_config={"eos_token_id": [number("</s>"), number("<|im_end|>")],
                           "pad_token_id": number("<unk>"), "bos_token_id": 7},
    )  # fmt: skip
    tokenizer = text.load_tokenizer(folder)
    assert (tokenizer.bos, tokenizer.eos) == (number("<bos>"), number("<|im_end|>"))
    assert tokenizer.pad == number("<unk>")
    assert tokenizer.stop_ids == (number("<|im_end|>"), number("</s>"))
    assert tokenizer.token(tokenizer.eos) == "<|im_end|>" and tokenizer.token(None) == ""

    _write(folder, tokenizer_config={}, special_tokens_map={}, config={"pad_token_id": -1})
    tokenizer = text.load_tokenizer(folder)
    assert (tokenizer.bos, tokenizer.eos) == (7, number("</s>"))
    assert tokenizer.stop_ids == (number("</s>"), number("<|im_end|>"))
    (folder / "generation_config.json").unlink()
    tokenizer = text.load_tokenizer(folder)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.stop_ids) == (
        None,
        None,
        None,
        (),
    )


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"tokenizer_config": {"eos_token": "<end>"}}, ["eos_token '<end>'", "vocabulary"]),
        ({"tokenizer_config": {}, "generation_config": {"eos_token_id": 10**6}}, ["eos_token_id"]),
        ({"tokenizer_config": {}, "generation_config": {"bos_token_id": "1"}}, ["bos_token_id"]),
        ({"tokenizer_config": [1]}, ["tokenizer_config.json", "[1]"]),
    ],
)
def test_special_ids_that_cannot_be_are_refused(folder, files, parts):
    _write(folder, **files)
    _refused(lambda: text.load_tokenizer(folder), *parts)


def test_bos_is_added_as_the_file_or_the_settings_say(folder):
    tokens = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    assert not text.load_tokenizer(folder).adds_bos
    _change(folder, lambda content: content.update(post_processor=_template(tokens)))
    assert text.load_tokenizer(folder).adds_bos
    _write(folder, tokenizer_config={"bos_token": "<s>", "add_bos_token": False})
    assert not text.load_tokenizer(folder).adds_bos


@pytest.mark.parametrize("name", ["", "missing", "tokenizer.txt", "empty"])
def test_a_path_without_a_tokenizer_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "tokenizer.txt").write_text("a")
    _refused(lambda: text.load_tokenizer(tmp_path / name), "data.tokenizer='")


# ---------------------------------------------------------------- llama2.c


def _bin(entries, longest=8):
    data = struct.pack("<i", longest)
    for piece, score in entries:
        data += struct.pack("<fi", score, len(piece.encode())) + piece.encode()
    return data


SCORED = [(" ", -1.0), *((letter, -2.0 - i) for i, letter in enumerate("abcdé"))]
MERGED = [
    ("ab", -20.0),
    ("bc", -19.5),
    (" a", -21.0),
    ("abc", -18.0),
    ("cd", -22.0),
    ("dd", -22.0),
    ("xy", -3.0),
]
# Of "xy" neither character is a token by itself: they become bytes, which are not merged.
SPECIAL = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0)]
BYTES = [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]


def _slow(content, vocabulary, scores):
    """llama2.c as its run.c describes it: the best neighbours, found again for each merge."""
    symbols = []
    for letter in " " + content if content else "":
        number = vocabulary.get(letter)
        symbols += [3 + byte for byte in letter.encode()] if number is None else [number]
    names = {number: piece for piece, number in vocabulary.items()}
    while True:
        best = (-1e10, None, None)
        for i in range(len(symbols) - 1):
            pair = names.get(symbols[i], "\0") + names.get(symbols[i + 1], "\0")
            number = vocabulary.get(pair)
            if number is not None and scores[number] > best[0]:
                best = (scores[number], i, number)
        if best[1] is None:
            return symbols
        symbols[best[1] : best[1] + 2] = [best[2]]


WORDS = [
    "",
    " ",
    "abc",
    "abcd dcba",
    "  ab  cc dd",
    "ddd dddd",
    "é\nab",
    "zab 東 cd",
    "aab" * 30,
    "xyab xy",
]


@pytest.mark.parametrize("extra", [[], [("c d", -17.0), ("  ", -16.0)]])
def test_llama2c_merges_as_a_slow_loop_does(tmp_path, extra):
    entries = [*SPECIAL, *BYTES, *SCORED, *MERGED, *extra]
    (tmp_path / "v.bin").write_bytes(_bin(entries))
    tokenizer = text.load_tokenizer(tmp_path / "v.bin")
    vocabulary = {piece: i for i, (piece, _) in enumerate(entries) if i >= 259}
    scores = [score for _, score in entries]
    for words in WORDS:
        assert tokenizer.encode(words) == _slow(words, vocabulary, scores), words
        assert tokenizer.decode(tokenizer.encode(words)) == words
    assert tokenizer.vocab_size == len(entries)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, None)
    assert tokenizer.adds_bos
    assert tokenizer.decode([1, 2, 0, 3 + 0xC3, 10_000]) == "\ufffd"


def test_llama2c_equals_the_library_on_its_merges(tmp_path):
    # Scores are ranks: the same tokenizer as byte-pair encoding with an ordered list of merges.
    # Every token has its own score here; of equal ones the library takes the one listed first.
    pieces = [(piece, float(-i)) for i, (piece, _) in enumerate([*SCORED, *MERGED])]
    entries = [*SPECIAL, *BYTES, *pieces]
    (tmp_path / "v.bin").write_bytes(_bin(entries))
    tokenizer = text.load_tokenizer(tmp_path / "v.bin")
    vocabulary = {piece: i for i, (piece, _) in enumerate(entries)}
    known = {piece for piece, _ in pieces}
    merges = [
        (piece[:at], piece[at:])
        for piece, _ in pieces
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>")
    )
    for words in WORDS[1:]:
        assert tokenizer.encode(words) == library.encode(" " + words).ids


def test_stories260k_equals_sentencepiece(shared_data, golden):
    path = shared_data / "teachers" / "stories260K_tok512.bin"
    tokenizer = text.load_tokenizer(path)
    answers = golden("ids")
    assert tokenizer.encode_batch(answers["texts"]) == answers["stories260K"]
    assert tokenizer.vocab_size == 512
    for item, ids in zip(answers["texts"], answers["stories260K"], strict=True):
        assert tokenizer.decode(ids) == item

    scores, pieces = [], []
    data, position = path.read_bytes(), 4
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        scores.append(score)
        pieces.append(data[position + 8 : position + 8 + length].decode())
        position += 8 + length
    vocabulary = {piece: number for number, piece in enumerate(pieces) if number >= 259}
    real = (shared_data / "text" / "tinyshakespeare.txt").read_text()[5000:6500]
    assert tokenizer.encode(real) == _slow(real, vocabulary, scores)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data[:2], "truncated"),
        (lambda data: data + b"\0" * 7, "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: data[:4] + struct.pack("<fi", 0.0, -1) + data[12:], "length -1"),
        (lambda data: data.replace(b"<0x41>", b"<0xA1>"), "bytes"),
        (lambda data: data[:4] + struct.pack("<f", float("nan")) + data[8:], "nan"),
        (lambda data: b"PK\3\4" * 100, "truncated"),
    ],
)
def test_a_damaged_bin_is_one_line(tmp_path, change, part):
    (tmp_path / "v.bin").write_bytes(change(_bin([*SPECIAL, *BYTES, *SCORED])))
    _refused(lambda: text.load_tokenizer(tmp_path / "v.bin"), "data.tokenizer='", part)


def test_merging_takes_n_log_n(tmp_path):
    # 200,000 characters in one word: a quadratic loop would take hours.
    vocabulary = {"a": 0, "aa": 1, "aaaa": 2}
    assert llama2c._merge("a" * 200_000, vocabulary, [0.0, -1.0, -2.0]) == (2,) * 50_000


# ---------------------------------------------------------------- sentencepiece


def test_a_model_file_without_the_library_is_one_line(golden_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    path = golden_folder / "tiny.model"
    _refused(lambda: text.load_tokenizer(path), "pip install", "sentencepiece", "tokenizer.json")


def test_a_model_file_gives_the_ids_of_sentencepiece(golden, golden_folder, tmp_path):
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    tokenizer = text.load_tokenizer(golden_folder / "tiny.model")
    answers = golden("tiny")
    assert tokenizer.encode_batch(answers["texts"]) == answers["ids"]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, 3)
    assert tokenizer.vocab_size == 400 and tokenizer.token(2) == "</s>"
    assert tokenizer.decode([1, *tokenizer.encode("Speak, é"), 2, 9999]) == "Speak, é"
    (tmp_path / "tokenizer.model").write_bytes((golden_folder / "tiny.model").read_bytes()[:-100])
    _refused(lambda: text.load_tokenizer(tmp_path), "tokenizer")


# ---------------------------------------------------------------- one vocabulary


def test_the_same_tokenizer_shares_all_ids(folder, tokenizer):
    assert text.same_vocabulary(tokenizer, text.load_tokenizer(folder)) == tokenizer.vocab_size


def test_more_tokens_at_the_end_share_the_ids_before(folder, tokenizer):
    size = tokenizer.vocab_size
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][0]
    extra = {**added, "id": size, "content": "<|extra|>"}
    _change(folder, lambda content: content["added_tokens"].append(extra))
    larger = text.load_tokenizer(folder)
    assert larger.vocab_size == size + 1
    assert text.same_vocabulary(tokenizer, larger) == size
    assert text.same_vocabulary(larger, tokenizer) == size


def _swapped(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def _fewer_merges(content):
    content["model"]["merges"] = content["model"]["merges"][:5]


@pytest.mark.parametrize(
    ("change", "part"), [(_swapped, "2 of 334 ids differ"), (_fewer_merges, "split into them")]
)
def test_another_tokenizer_is_refused_with_the_way_that_remains(folder, tokenizer, change, part):
    _change(folder, change)
    other = text.load_tokenizer(folder)
    _refused(
        lambda: text.same_vocabulary(tokenizer, other, key="student.path"),
        "student.path='", part, "sequence-level distillation", "text that the teacher generated",
    )  # fmt: skip


def test_public_tokenizers_differ(shared_data):
    gpt2, llama = (
        text.load_tokenizer(shared_data / "tokenizers" / name) for name in ("gpt2", "tinyllama")
    )
    _refused(lambda: text.same_vocabulary(llama, gpt2), "sequence-level", "of 32000 ids differ")
    assert gpt2.fingerprint != llama.fingerprint


def test_the_fingerprint_is_of_what_decides(folder, tokenizer):
    assert re.fullmatch("[0-9a-f]{64}", tokenizer.fingerprint)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, indent=2))  # other bytes, the same tokenizer
    assert text.load_tokenizer(folder).fingerprint == tokenizer.fingerprint
    _write(folder, tokenizer_config={"bos_token": "<bos>", "eos_token": "</s>"})
    other_special = text.load_tokenizer(folder).fingerprint
    assert other_special != tokenizer.fingerprint
    _change(folder, _fewer_merges)
    assert text.load_tokenizer(folder).fingerprint not in (other_special, tokenizer.fingerprint)
