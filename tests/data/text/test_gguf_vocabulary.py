"""Tokenizers of GGUF files against those of Hugging Face, and against llama.cpp's own."""

import json
import os
import pathlib

import llama_cpp
import pytest
import small_texts
import tokenizers

from distill_jax import cli
from distill_jax.data import text
from distill_jax.data.text import gguf_pretokenizers, gguf_vocabulary
from distill_jax.errors import UsageError
from distill_jax.models import language

TEXTS = (
    "Hello  world 12345 é東京🙂 </s>\n\tx",
    " lead",
    "1 22 333 4444 3.14159",
    "naïve Ünïcödé Москва 日本語のテキスト 한국어",
    "it's they'LL don't",
    "tabs\t\t\tand\n\n\nlines \r\n x",
    "<s>user\nhi</s>",
    "🙂🙃👩‍👩‍👧",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "def f(x_1):\n    return x**2  # 10%",
    "nbsp and　ideographic",
    "",
)


def _folder(tmp_path: pathlib.Path, change) -> pathlib.Path:
    """A small decoder whose tokenizer.json is changed."""
    folder = tmp_path / "model"
    language.save(folder, language.create(small_texts.TEACHER.replace(head_dim=8)))
    small_texts.write_tokenizer(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", gguf_pretokenizers.PRE_TOKENIZERS)
def test_llama_cpp_splits_as_the_exported_tokenizer(name, tmp_path, capsys):
    llama_cpp.need()
    rules = gguf_pretokenizers.PRE_TOKENIZERS[name]

    def change(content):
        content |= gguf_pretokenizers.to_parts(rules)
        content["model"]["ignore_merges"] = rules.ignore_merges

    folder, file = _folder(tmp_path, change), tmp_path / "model.gguf"
    flags = [f"--workdir={folder}", "--format=gguf", f"--out={file}", "--type=f32"]
    assert cli.main(["export", *flags]) == 0
    ours, server = text.load_tokenizer(folder), llama_cpp.Server(file)
    for sentence in TEXTS:
        assert ours.encode(sentence) == server.tokenize(sentence), sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(normalizer={"type": "Lowercase"}), "no name for this normalizer"),
        (lambda c: c["pre_tokenizer"].update(add_prefix_space=True), "no name"),
        (lambda c: c.update(pre_tokenizer={"type": "WhitespaceSplit"}), "neither byte-level"),
        (lambda c: c["model"].update(ignore_merges=True), "no name"),
    ],
)
def test_a_tokenizer_without_a_name_is_refused(change, words, tmp_path, capsys):
    folder = _folder(tmp_path, change)
    flags = [f"--workdir={folder}", "--format=gguf", f"--out={tmp_path / 'm.gguf'}"]
    assert cli.main(["export", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "m.gguf").exists()


_DATA = pathlib.Path(os.environ.get("DISTILL_JAX_DATA", "../shared/data")) / "tokenizers"


@pytest.mark.skipif(not _DATA.is_dir(), reason="needs DISTILL_JAX_DATA")
@pytest.mark.parametrize(("name", "size"), [("tinyllama", 32000), ("gpt2", 50257)])
def test_published_tokenizers_come_back_as_they_were(name, size, tmp_path):
    file = _DATA / name / "tokenizer.json"
    metadata = gguf_vocabulary.from_huggingface(file, size, key="--workdir")
    for path, content in gguf_vocabulary.to_huggingface(metadata).items():
        (tmp_path / path).write_bytes(content)
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = tokenizers.Tokenizer.from_file(str(file))
    for sentence in TEXTS:
        assert ours.encode(sentence).ids == theirs.encode(sentence).ids, sentence
        ids = theirs.encode(sentence).ids
        assert ours.decode(ids) == theirs.decode(ids)


_SMALL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model='t5'"),
        ({"tokenizer.ggml.pre": "viking"}, "tokenizer.ggml.pre='viking'"),
        ({"tokenizer.ggml.tokens": ["a", "a", "ab"]}, "once each"),
        ({"tokenizer.ggml.tokens": [1, 2, 3]}, "list of str"),
        ({"tokenizer.ggml.token_type": [1]}, "has 1 entries"),
        ({"tokenizer.ggml.merges": ["a c"]}, "not in the vocabulary"),
        ({"tokenizer.ggml.bos_token_id": 3}, "bos_token_id=3"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores"),
    ],
)
def test_metadata_that_contradict_themselves_are_refused(changed, words):
    gguf_vocabulary.to_huggingface(_SMALL)
    with pytest.raises(UsageError) as error:
        gguf_vocabulary.to_huggingface(_SMALL | changed)
    assert words in str(error.value)
