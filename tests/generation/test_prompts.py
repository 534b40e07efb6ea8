"""Prompts: which field of a line is one, what is left out, and what is refused."""

import json

import generation_reference as reference
import pytest

from distill_jax import generation
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.generation.prompts import continuation_text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> text.Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_bytes(reference.TOKENIZER.read_bytes())
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": reference.TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    return text.load_tokenizer(folder)


def written(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_prompt_is_the_first_field_that_is_there(tmp_path):
    path = written(
        tmp_path / "p.jsonl",
        {"prompt": "one", "response": "unread", "text": "unread"},
        {"text": "two\u2028lines"},
        {"messages": None, "prompt": "three"},
    )
    with open(path, "a") as file:
        file.write("\n  \n")
    found = generation.read_prompts(path)
    assert [prompt.text for prompt in found] == ["one", "two\u2028lines", "three"]
    assert found[2].location == f"prompts={path!r}: line 3"


def test_fields_of_a_known_set_are_joined(tmp_path):
    path = written(
        tmp_path / "p.jsonl",
        {"instruction": "Sum up.", "input": "A text.", "output": "unread", "prompt": "unread"},
        {"instruction": "Say no.", "input": "", "output": "unread"},
        {"instruction": "Say so."},
    )
    found = generation.read_prompts(path, fields="dolly")
    assert [prompt.text for prompt in found] == ["Sum up.\n\nA text.", "Say no.", "Say so."]


def test_what_the_assistant_says_last_is_left_out(tmp_path, tokenizer):
    user = {"role": "user", "content": "Hi"}
    assistant = {"role": "assistant", "content": "Hello"}
    path = written(
        tmp_path / "p.jsonl",
        {"messages": [user, assistant, user, assistant, assistant]},
        {"messages": [user]},
        {"prompt": "Hi"},
    )
    prompts, ids = generation.encode_prompts(generation.read_prompts(path), tokenizer)
    assert prompts[0].messages == (user, assistant, user)
    assert prompts[0].text == "<s>[user]Hi</s>[assistant]Hello</s>[user]Hi</s>[assistant]"
    assert prompts[1].text == "<s>[user]Hi</s>[assistant]"
    # The template wrote the only bos; before a plain prompt the tokenizer puts it.
    assert ids[1] == tokenizer.encode(prompts[1].text) and ids[1].count(tokenizer.bos) == 1
    assert ids[2] == [tokenizer.bos, *tokenizer.encode("Hi")]


def test_prompt_and_response_are_the_text_of_all_ids(shared_data):
    path = shared_data / "tokenizers" / "tinyllama"
    if not path.is_dir():
        pytest.skip("the tokenizer of TinyLlama is not in the shared data")
    tokenizer = text.load_tokenizer(path)
    whole = "Once upon a time there was a café."
    ids = tokenizer.encode(whole)
    for cut in range(1, len(ids)):
        prompt, drawn = [tokenizer.bos, *ids[:cut]], ids[cut:]
        joined = tokenizer.decode(prompt) + continuation_text(tokenizer, prompt, drawn)
        assert joined == whole
    # By themselves the ids lose the space that they begin with.
    assert tokenizer.decode(ids[2:]) != whole[len(tokenizer.decode(ids[:2])) :]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 1: not JSON: .*; expected an object"),
        ("[" * 100_000, "line 1: not JSON: .*; expected an object"),
        ("3", 'line 1: 3; expected an object with "messages", "prompt" or "text"'),
        ('{"response": "x"}', r"line 1: has \['response'\]; expected \"messages\", \"prompt\" or"),
        ('{"prompt": 3}', "line 1: 'prompt' is 3; expected a text, in Unicode"),
        ('{"prompt": "\\ud800"}', "line 1: 'prompt' is .*; expected a text, in Unicode"),
        ('{"messages": 3}', "line 1: messages is 3; expected a list of"),
        ('{"messages": [{"role": "user"}]}', "line 1: message 0 is .*; expected a list of"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "line 1: no message but the as"),
        ('{"messages": []}', r"line 1: messages is \[\]; expected a list of"),
        ("\n\n", "holds no prompt; expected a JSON object a line"),
    ],
)
def test_bad_lines_are_refused(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    with pytest.raises(UsageError, match=f"^prompts='.*p.jsonl': {message}"):
        generation.read_prompts(path)


def test_bad_files_are_refused(tmp_path, tokenizer):
    with pytest.raises(UsageError, match="none.jsonl': cannot be read: No such file"):
        generation.read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(UsageError, match="latin.jsonl': not UTF-8"):
        generation.read_prompts(tmp_path / "latin.jsonl")
    with pytest.raises(UsageError, match="generate.fields='doly': unknown name; did you mean"):
        generation.read_prompts(tmp_path / "latin.jsonl", fields="doly")
    path = written(tmp_path / "p.jsonl", {"output": "x"})
    with pytest.raises(UsageError, match="line 1: 'instruction' is missing; expected a text"):
        generation.read_prompts(path, fields="dolly")


def test_a_template_that_refuses_is_named_with_the_line(tmp_path, tokenizer):
    (tmp_path / "tokenizer.json").write_bytes(reference.TOKENIZER.read_bytes())
    path = written(tmp_path / "p.jsonl", {"messages": [{"role": "user", "content": "Hi"}]})
    found = generation.read_prompts(path)
    with pytest.raises(UsageError, match="no chat template; expected"):
        generation.encode_prompts(found, text.load_tokenizer(tmp_path))
    source = "{{ raise_exception('no user, please') }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": source}))
    with pytest.raises(UsageError, match="p.jsonl': line 1: .*no user, please"):
        generation.encode_prompts(found, text.load_tokenizer(tmp_path))
