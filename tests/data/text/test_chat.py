"""Chat: what transformers renders and marks, and no template that harms or guesses."""

import datetime
import itertools
import json
import re

import pytest

from distill_jax.data import text
from distill_jax.data.text import chat
from distill_jax.errors import UsageError

SAYS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def _template(source, **options):
    return chat.ChatTemplate(source, "data.tokenizer='x'", "<s>", "</s>", **options)


def _cases(golden):
    content = golden("chat")
    for case in content["cases"]:
        named = content["templates"][case["template"]]
        yield case, chat.ChatTemplate(named["source"], "where", named["bos"], named["eos"])


def test_conversations_are_rendered_and_marked_as_transformers_does(golden, tokenizer):
    # The reference takes the assistant's part from tags in the template, we from differences.
    seen = 0
    for case, template in _cases(golden):
        if "refused" in case:
            with pytest.raises(UsageError, match=case["refused"]):
                template.render(case["messages"])
            continue
        assert template.render(case["messages"]) == case["text"]
        assert template.render(case["messages"], opening=True) == case["opened"]
        ids, written = chat.encode(tokenizer, template, case["messages"], location="record")
        assert ids == case["ids"]
        assert written == [bool(flag) for flag in case["written"]]
        seen += 1
    assert seen == 15


def test_the_assistant_is_marked_without_tags(golden, tokenizer):
    # What public templates look like: the tags taken out, the same part is found.
    for case, template in _cases(golden):
        if "refused" not in case:
            source = re.sub(r"\{%- generation -?%\}\{\{", "{{-", template.source)
            source = re.sub(r"\}\}\{%- endgeneration -?%\}", "-}}", source)
            assert " generation " not in source
            bare = chat.ChatTemplate(source, "where", template.bos, template.eos)
            ids, written = chat.encode(tokenizer, bare, case["messages"], location="record")
            assert (ids, written) == (case["ids"], [bool(flag) for flag in case["written"]])


def test_a_turn_without_a_special_token_ends_with_the_turn(tokenizer):
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n"
        "{% else %}Bot:{{ ' ' + m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Bot:{% endif %}"
    )
    messages = [*SAYS, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "So"}]
    ids, written = chat.encode(tokenizer, _template(source), messages, location="record")
    groups = itertools.groupby(zip(ids, written, strict=True), key=lambda pair: pair[1])
    parts = [tokenizer.decode(i for i, _ in group) for flag, group in groups if flag]
    assert parts == [" Hello\n", " So\n"]


LATER = "{% for m in messages %}{{ m.role }}{{ m.content if loop.last else '' }}</s>{% endfor %}"
JOINED = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "messages", "parts"),
    [
        # An earlier turn is rendered differently from the last.
        (LATER, [*SAYS, *SAYS], ["message 1", "differently"]),
        # "he" is one token.
        (
            JOINED,
            [{"role": "user", "content": "h"}, {"role": "assistant", "content": "e"}],
            ["message 1", "one token"],
        ),
    ],
)
def test_turns_that_cannot_be_located_are_refused(tokenizer, source, messages, parts):
    with pytest.raises(UsageError) as caught:
        chat.encode(tokenizer, _template(source), messages, location="data.path='x': line 7")
    for part in ("data.path='x': line 7", "cannot tell", "expected", *parts):
        assert part in str(caught.value)


# As Qwen3's: the last turn has an empty block of reasoning, earlier ones have none.
THINKING = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}<s>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n</think>\n{% endif %}"
    "{{ m.content | trim }}</s>{{ '\n' if newline else '' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TWICE = [
    *SAYS,
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": " So long\n"},
]


def _learned(tokenizer, source, messages, **options):
    """The texts with a loss, each with its control tokens."""
    ids, written = chat.encode(tokenizer, _template(source), messages, location="record", **options)
    groups = itertools.groupby(zip(ids, written, strict=True), key=lambda pair: pair[1])
    parts = ("".join(tokenizer.token(i) for i, _ in group) for flag, group in groups if flag)
    return [part.replace("\u0120", " ").replace("\u010a", "\n") for part in parts]  # of bytes


@pytest.mark.parametrize("line", ["\n", ""], ids=["line", "no line"])
def test_an_earlier_turn_is_found_where_a_template_writes_it_differently(tokenizer, line):
    source = THINKING.replace("{{ '\n' if newline else '' }}", line)
    plain = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Hello"},  # the same words by another
        {"role": "assistant", "content": "Hello"},
    ]
    for messages in (TWICE, plain):
        first, last = _learned(tokenizer, source, messages)
        assert first == "Hello</s>"
        assert last.endswith(messages[-1]["content"].strip() + "</s>")
        assert "think" in last and "think" not in first
        assert _learned(tokenizer, source, messages, turns="last") == [last]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}call {{ c.function | tojson }}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.mark.parametrize("null", [dict(content=None), {}], ids=["null", "absent"])
def test_calls_of_tools_have_no_content_and_are_learned(tokenizer, null):
    messages = [
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", **null, "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "name": "add", "tool_calls": None},
        {"role": "assistant", "content": "Two"},
    ]
    tools = [{"name": "add"}]
    found = _learned(tokenizer, TOOLS, messages, tools=tools)
    assert found == ['call {"name": "add", "arguments": {"a": 1}}</s>', "Two</s>"]
    ids, _ = chat.encode(tokenizer, _template(TOOLS), messages, location="x", tools=tools)
    text_ = tokenizer.decode(ids)
    assert '[{"name": "add"}]' in text_ and "None" not in text_


def test_messages_of_sharegpt_and_content_in_parts_of_text():
    found = chat.conversation(
        [
            {"from": "system", "value": "Be brief"},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello", "weight": None},
            {"role": "user", "content": [{"type": "text", "text": "a"}] * 2},
        ],
        "record",
    )
    assert found == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "aa"},
    ]
    for wrong in ({"role": "user", "content": None}, {"from": 3, "value": "x"}, {"role": "user"}):
        with pytest.raises(UsageError, match="record: message 0 is"):
            chat.conversation([wrong], "record")


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (ENDLESS, "OutOfFuel"),
        ("{{ 'ab' * 1000000000 }}", "OutOfFuel"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{% for m in messages %}", "SyntaxError"),
        ("{{ raise_exception('after user\nmust come assistant') }}", "after user must come"),
        ("{{ open('/etc/passwd') }}", "UnknownFunction"),
        ("{% include '/etc/passwd' %}", "TemplateNotFound"),
        ("{% import 'os' as os %}", "TemplateNotFound"),
        ("{{ messages.__class__.__mro__ }}", "UndefinedError"),
        ("{{ messages.__reduce_ex__(2) }}", "insecure"),
        ("{{ ''.__class__.__mro__ }}", "UndefinedError"),
        ("{{ strftime_now('%Y') }}", "UnknownFunction"),
        ("{{ messages | nothing }}", "UnknownFilter"),
        ("{{ messages.sort() }}", "not supported"),
    ],
)
def test_a_template_harms_nothing_and_fails_in_one_line(source, part):
    with pytest.raises(UsageError) as caught:
        _template(source).render(SAYS)
    message = str(caught.value)
    assert message.startswith("data.tokenizer='x': chat template") and part in message
    assert "\n" not in message and len(message) < 300


def test_a_long_conversation_does_not_run_out_of_fuel(golden):
    for name, named in golden("chat")["templates"].items():
        template = chat.ChatTemplate(named["source"], "where", named["bos"], named["eos"])
        long = [{**SAYS[i % 2], "content": f"{i} " + "word " * 10_000} for i in range(200)]
        assert template.render(long).count("word") == 2_000_000, name


def test_a_template_cannot_change_the_messages():
    messages = [dict(message) for message in SAYS]
    source = "{{ messages.append(1) }}{{ messages[0].update(content='x') }}{{ messages.clear() }}"
    _template(source).render(messages)
    assert messages == SAYS


def test_text_is_not_escaped_and_json_is_plain():
    messages = [{"role": "user", "content": "<b> & 'é' \"東\""}]
    assert _template("{{ messages[0].content }}").render(messages) == messages[0]["content"]
    rendered = _template("{{ messages[0] | tojson }}").render(messages)
    assert rendered == json.dumps(messages[0], ensure_ascii=False)


def test_the_date_is_what_was_given_and_never_today():
    source = (
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}none{% endif %}"
    )
    assert _template(source).render(SAYS) == "none"
    assert _template(source, date=datetime.date(2024, 7, 26)).render(SAYS) == "26 Jul 2024"


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        (None, "messages is None"),
        ([], "messages is []"),
        ("Hi", "messages is 'Hi'"),
        ([{"role": "user"}, SAYS[1]], "message 0"),
        ([SAYS[0], {"role": "assistant", "content": None}], "message 1"),
        ([SAYS[0], {"role": "assistant", "content": [{"type": "text"}]}], "message 1"),
        ([SAYS[0], "Hello"], "message 1"),
        ([SAYS[0], {"role": "assistant", "content": "\ud83d"}], "message 1"),
        ([SAYS[0]], "no message by the assistant"),
    ],
)
def test_what_is_no_conversation_is_refused(tokenizer, messages, part):
    with pytest.raises(UsageError) as caught:
        chat.encode(tokenizer, _template(JOINED), messages, location="data.path='x': line 7")
    assert str(caught.value).startswith("data.path='x': line 7: ") and part in str(caught.value)
    assert "expected" in str(caught.value)


# ---------------------------------------------------------------- where templates lie


def test_the_template_in_a_tokenizers_folder(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    path = folder / "tokenizer_config.json"
    with pytest.raises(UsageError, match=r"no chat template; expected chat_template\.jinja"):
        text.load_chat_template(text.load_tokenizer(folder))
    path.write_text(json.dumps({**settings, "chat_template": "{{ bos_token }}A{{ eos_token }}"}))
    assert text.load_chat_template(text.load_tokenizer(folder)).render(SAYS) == "<s>A</s>"
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    path.write_text(json.dumps({**settings, "chat_template": named}))
    assert text.load_chat_template(text.load_tokenizer(folder)).render(SAYS) == "D"
    path.write_text(json.dumps({**settings, "chat_template": named[:1]}))
    with pytest.raises(UsageError, match="no chat template"):
        text.load_chat_template(text.load_tokenizer(folder))
    (folder / "chat_template.jinja").write_text("J{{ messages | length }}\n")
    assert text.load_chat_template(text.load_tokenizer(folder)).render(SAYS) == "J2"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be read"):
        text.load_chat_template(text.load_tokenizer(folder))


def test_a_vocabulary_that_does_not_read_special_tokens_has_no_chat(shared_data):
    tokenizer = text.load_tokenizer(shared_data / "teachers" / "stories260K_tok512.bin")
    with pytest.raises(UsageError, match=r"plain text; expected a tokenizer\.json"):
        text.load_chat_template(tokenizer)
