"""Records: what each kind of file holds, and one line with file and line number for a bad one."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from distill_jax.data import text
from distill_jax.errors import UsageError


def _read(path, **options):
    return list(text.read(path, **options))


def _texts(path, **options):
    return [record.text for record in _read(path, **options)]


def _jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------- kinds of files

TEXT = "\n \nOne\n two\n\t\n\n\nThree\x0cpages\u2028here  \n\nFour"


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("blank_line", ["One\n two", "Three\x0cpages\u2028here  ", "Four"]),
        ("line", ["One", " two", "Three\x0cpages\u2028here  ", "Four"]),
        ("file", [TEXT]),
    ],
)
def test_text_is_divided_as_asked(tmp_path, documents, expected):
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    assert _texts(tmp_path / "a.txt", documents=documents) == expected


def test_text_says_where_each_document_begins(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    records = _read(tmp_path / "a.txt")
    assert [record.text for record in records][:1] == ["One\n two"]
    assert [record.location.rsplit(" ", 1)[1] for record in records] == ["3", "8", "10"]
    (tmp_path / "b.txt").write_text(" \n\n")
    assert _read(tmp_path / "b.txt") == [] == _read(tmp_path / "b.txt", documents="file")


def test_each_record_tells_its_kind(tmp_path):
    messages = [{"role": "user", "content": "x"}]
    rows = [
        {"text": "plain\n\n", "id": 3},
        {"prompt": "P", "response": "", "text": "ignored"},
        {"messages": messages, "text": "ignored"},
        {"prompt": None, "response": None, "text": ""},
    ]
    expected = [
        ("plain\n\n", None, None, None),
        (None, "P", "", None),
        (None, None, None, messages),
        ("", None, None, None),
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows).replace("\n", "\n\n", 1))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    names = ("text", "prompt", "response", "messages")
    for file, unit, numbers in ((path, "line", [1, 3, 4, 5]), ("a.json", "record", [1, 2, 3, 4])):
        records = _read(tmp_path / file)
        assert [tuple(getattr(r, name) for name in names) for r in records] == expected
        assert [r.location.split(": ")[1] for r in records] == [f"{unit} {n}" for n in numbers]


def test_parquet_rows_are_records(tmp_path):
    table = pyarrow.table(
        {
            "text": ["a", None, None],
            "prompt": [None, "P", None],
            "response": [None, "R", None],
            "messages": [None, None, [{"role": "user", "content": "x"}]],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second, third = _read(tmp_path / "a.parquet")
    assert (first.text, second.prompt, second.response) == ("a", "P", "R")
    assert third.messages == [{"role": "user", "content": "x"}]
    assert third.location.endswith("a.parquet': row 3")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"b\.parquet': row 2: .*expected"):
        _read(tmp_path / "b.parquet")


def test_several_files_and_patterns_in_a_fixed_order(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert _texts(f"{tmp_path}/*.txt") == ["a", "b", "c"]
    assert _texts([tmp_path / "c.txt", f"{tmp_path}/[ac].txt"]) == ["c", "a"]
    (tmp_path / "[1].txt").write_text("brackets")  # a file of this name, not a pattern
    assert _texts(tmp_path / "[1].txt") == ["brackets"]


# ---------------------------------------------------------------- fields


def test_fields_by_name_and_by_mapping(tmp_path):
    dolly = {"instruction": "Do", "input": "", "output": "Done", "prompt": "longer"}
    path = _jsonl(tmp_path / "a.jsonl", dolly, {**dolly, "input": "this"})
    pairs = [(record.prompt, record.response) for record in _read(path, fields="dolly")]
    assert pairs == [("Do", "Done"), ("Do\n\nthis", "Done")]
    mapping = {"prompt": "prompt", "response": ["output"]}
    assert [record.prompt for record in _read(path, fields=mapping)] == ["longer"] * 2
    assert _texts(path, fields={"text": "output"}) == ["Done", "Done"]
    path = _jsonl(tmp_path / "b.jsonl", {"chat": [{"role": "user", "content": "x"}]})
    assert _read(path, fields={"messages": "chat"})[0].messages[0]["content"] == "x"


def test_public_sets(shared_data):
    folder = shared_data / "text"
    gsm8k = _read(folder / "gsm8k_test.jsonl", fields="gsm8k")
    raw = [json.loads(line) for line in (folder / "gsm8k_test.jsonl").open()]
    assert [(r.prompt, r.response) for r in gsm8k] == [(r["question"], r["answer"]) for r in raw]
    dolly = _read(folder / "dolly_valid.jsonl", fields="dolly")
    raw = [json.loads(line) for line in (folder / "dolly_valid.jsonl").open()]
    assert len(dolly) == len(raw) == 500
    for record, row in zip(dolly, raw, strict=True):
        context = "\n\n" + row["input"] if row["input"] else ""
        assert (record.prompt, record.response) == (row["instruction"] + context, row["output"])
    whole = (folder / "tinyshakespeare.txt").read_text()
    assert _texts(folder / "tinyshakespeare.txt") == re.split(r"\n\n+", whole.strip("\n"))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        (b'{"text": "a"}\n{"text": \n', 2, "not JSON"),
        (b'{"text": "a"}\n\n[1]\n', 3, "[1]"),
        (b'{"text": "a"}\n{"txt": "a"}\n', 2, "['txt']"),
        (b'{"text": 3}\n', 1, "'text' is 3"),
        (b'{"prompt": "a", "response": ["b"]}\n', 1, "'response' is ['b']"),
        (b'{"prompt": "a"}\n', 1, "['prompt']"),
        (b'{"text": "a"}\n\n{"text": "\xff"}\n', 3, "not UTF-8"),
        (b'{"text": "\\ud83d"}\n', 1, "'text' is '\\ud83d'"),
        (b"[" * 100_000, 1, "not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", 1, "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, line, part):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        _read(tmp_path / "a.jsonl")
    message = str(caught.value)
    assert message.startswith(f"data.path='{tmp_path}/a.jsonl': line {line}: ") and part in message
    assert "expected" in message and len(message) < 400


def test_a_missing_field_is_named(tmp_path):
    path = _jsonl(tmp_path / "a.jsonl", {"question": "q", "answer": "a"}, {"question": "q"})
    with pytest.raises(
        UsageError, match=r"line 2: 'answer' is missing; expected a text, in Unicode"
    ):
        _read(path, fields="gsm8k")
    with pytest.raises(UsageError, match=r"line 1: 'instruction' is missing"):
        _read(path, fields="dolly")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"documents": "blank"}, "data.documents='blank': unknown name; did you mean 'blank_line'"),
        ({"fields": "gsm"}, "data.fields='gsm': unknown name; did you mean 'gsm8k'"),
        ({"fields": {"prompt": "a"}}, "data.fields=['prompt']: expected"),
        ({"fields": {"text": "a", "messages": "b"}}, "of one kind alone"),
        ({"fields": {"text": ()}}, "data.fields.text=()"),
        ({"fields": {"text": 3}}, "data.fields.text=3"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, part):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UsageError) as caught:
        _read(tmp_path / "a.txt", **options)
    assert part in str(caught.value)


def test_bad_paths_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "a.json").write_text('{"text": "a"}')
    (tmp_path / "a.parquet").write_text("PAR1 but no more")
    for path, part in [
        (tmp_path / "missing.txt", "no such file"),
        (f"{tmp_path}/*.txt", "no such file"),
        (tmp_path / "folder", "folder; expected files"),
        (tmp_path / "a.csv", "'.csv'; expected one of .txt"),
        (tmp_path / "a.json", "expected a list of JSON objects"),
        (tmp_path / "a.parquet", "cannot be read as Parquet"),
        ([], "expected at least one"),
    ]:
        with pytest.raises(UsageError) as caught:
            _read(path)
        assert str(caught.value).startswith("data.path=") and part in str(caught.value)


# ---------------------------------------------------------------- layouts of published data


def _lines(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_the_published_fields_of_dolly_and_those_of_alpaca(tmp_path):
    published = {"instruction": "Sum", "context": "1 1", "response": "2", "category": "qa"}
    alpaca = {"instruction": "Sum", "input": "1 1", "output": "2"}
    path = _lines(tmp_path / "a.jsonl", published, alpaca, {**published, "context": ""})
    parts = [(record.prompt, record.response) for record in _read(path, fields="dolly")]
    assert parts == [("Sum\n\n1 1", "2")] * 2 + [("Sum", "2")]
    path = _lines(tmp_path / "b.jsonl", alpaca)
    assert _read(path, fields="alpaca") == _read(path, fields="dolly")
    mapping = "prompt = instruction + input, response=output"
    assert _read(path, fields=mapping) == _read(path, fields="alpaca")


def test_completions_and_conversations_by_other_names(tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    prompt = [{"role": "user", "content": "Hi"}]
    answer = [{"role": "assistant", "content": "Hello"}]
    path = _lines(
        tmp_path / "a.jsonl",
        {"prompt": "Hi", "completion": "Hello"},
        {"conversations": turns},
        {"prompt": prompt, "completion": answer, "tools": '[{"name": "add"}]'},
        {"prompt": prompt, "response": "Hello"},
    )
    first, second, third, fourth = _read(path)
    assert (first.prompt, first.response) == ("Hi", "Hello")
    assert second.messages == turns and second.prompt is None
    assert third.messages == fourth.messages == [*prompt, *answer]
    assert third.tools == [{"name": "add"}] and fourth.tools is None
