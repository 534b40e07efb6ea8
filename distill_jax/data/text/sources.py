"""Records of text from files: .txt, .jsonl, .json and .parquet.

A record is a text, a prompt with its response, or a conversation; its own fields, or `fields`,
decide which. A response may be called completion, and a conversation messages or, as in ShareGPT,
conversations. Records are read one at a time, in the order of the files; an error about a bad
record names the file and the line. Left out on purpose: downloads, compressed files, and weighted
mixtures.
"""

import dataclasses
import glob
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from distill_jax.data.text.codec import is_unicode, short_repr
from distill_jax.errors import UsageError, unknown

# The field names of well-known data sets; "|" divides names of which a record has one.
FIELDS: dict[str, dict[str, Any]] = {
    "alpaca": {"prompt": ("instruction", "input"), "response": "output"},
    # databricks-dolly-15k as published, or in the layout of Alpaca.
    "dolly": {"prompt": ("instruction", "context|input"), "response": "response|output"},
    "gsm8k": {"prompt": "question", "response": "answer"},
}
KINDS = (("messages",), ("prompt", "response"), ("text",))
# Without `fields`: the names of the parts of each kind, the first that a record has.
_NAMES: tuple[dict[str, str], ...] = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"messages": "conversation"},
    {"prompt": "prompt", "response": "response"},
    {"prompt": "prompt", "response": "completion"},
    {"text": "text"},
)
DOCUMENTS = ("blank_line", "line", "file")
SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")

# Separates fields that make one part together, such as an instruction and its context.
FIELD_SEPARATOR = "\n\n"

_ANY_KIND = '"messages", or "prompt" and "response", or "text"'


@dataclasses.dataclass(frozen=True)
class Record:
    """One document of a corpus: a text, or a prompt with its response, or messages.

    Attributes:
      location: the start of an error line about it, such as "data.path='x.jsonl': line 3".
      text: the text, or None.
      prompt, response: both or neither.
      messages: the conversation, or None; checked when it is rendered, not when it is read.
      tools: what the assistant of a conversation may call, or None.
    """

    location: str
    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: Any = None
    tools: Any = None


def files(path: str | os.PathLike | Iterable[str | os.PathLike]) -> list[pathlib.Path]:
    """The files of a path, of several paths, or of a pattern such as "part-*.jsonl".

    Several paths keep their order; a pattern gives its files sorted. Each file is listed once.

    Raises:
      UsageError: a path or pattern that matches no file, a folder, or an unknown suffix.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    found: dict[pathlib.Path, None] = {}
    for entry in paths:
        location = f"data.path={str(entry)!r}"
        name = os.path.expanduser(entry)
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        for match in map(pathlib.Path, matches):
            if match.is_dir():
                raise UsageError(
                    f"{location}: {match.name} is a folder; expected files, such as"
                    f" {str(match / '*.jsonl')!r}"
                )
            if match.suffix not in SUFFIXES:
                raise UsageError(
                    f"{location}: {match.name} ends in {match.suffix!r}; expected one of"
                    f" {', '.join(SUFFIXES)}"
                )
            found[match] = None
        if not matches:
            raise UsageError(f"{location}: no such file; expected a path or a pattern of files")
    if not found:
        raise UsageError("data.path=(): names no file; expected at least one")
    return list(found)


def read(
    path: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    fields: str | Mapping[str, Any] = "",
    documents: str = "blank_line",
) -> Iterator[Record]:
    """The records of one or several files.

    .txt: UTF-8, divided into documents by `documents`. .jsonl: one object a line; blank lines are
    skipped. .json: a list of objects. .parquet: one record a row.

    Args:
      path: a file, several, or a pattern; see `files`.
      fields: the fields of a record that hold its "text", "prompt", "response" or "messages", see
        `parse_fields`. If it is empty, a record is read as the first of messages, prompt with
        response, or text whose fields it has. All other fields are ignored.
      documents: how a .txt file is divided: "blank_line", a document ends at a blank line; "line",
        each line that is not blank is a document; "file", the whole file is one.

    Yields:
      Records. Texts are unchanged except for the blank lines that separate documents.

    Raises:
      UsageError: see `files`; a file that cannot be read, or a bad record.
    """
    if documents not in DOCUMENTS:
        raise unknown("data.documents", documents, DOCUMENTS)
    chosen = parse_fields(fields)
    for file in files(path):
        location = f"data.path={str(file)!r}"
        if file.suffix == ".txt":
            yield from _text(_decoded(file, location), documents, location)
        elif file.suffix == ".parquet":
            yield from _records(_rows(file, location), chosen, location, "row")
        else:
            parse = _lines if file.suffix == ".jsonl" else _list
            unit = "line" if file.suffix == ".jsonl" else "record"
            yield from _records(parse(_decoded(file, location), location), chosen, location, unit)


def parse_fields(
    fields: str | Mapping[str, Any], *, key: str = "data.fields"
) -> dict[str, tuple[str, ...]] | None:
    """The field names of each part of a record; None if each record's own fields decide.

    Args:
      fields: a name of `FIELDS`; a mapping such as {"prompt": ("instruction", "input"), "response":
        "output"}, or the same as a text: "prompt=instruction+input, response=output". Several
        fields are joined by a blank line; of those after the first, missing or empty ones are
        skipped. "|" divides names of which a record has one. "" lets each record decide.
      key: what an error calls it.

    Raises:
      UsageError: an unknown name, or parts that make no kind of record.
    """
    if isinstance(fields, str):
        if not fields:
            return None
        if "=" in fields:
            pairs = [pair.partition("=") for pair in fields.split(",")]
            fields = {
                part.strip(): tuple(name.strip() for name in names.split("+"))
                for part, _, names in pairs
            }
        elif fields not in FIELDS:
            error = unknown(key, fields, FIELDS)
            raise UsageError(f"{error}; or a mapping, such as prompt=question, response=answer")
        else:
            fields = FIELDS[fields]
    chosen = {}
    for part, given in dict(fields).items():
        names = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not names or not all(isinstance(name, str) and name for name in names):
            raise UsageError(f"{key}.{part}={given!r}: expected the name of a field, or names")
        chosen[part] = names
    if not any(set(kind) == set(chosen) for kind in KINDS):
        raise UsageError(
            f"{key}={sorted(chosen)!r}: expected the fields of {_ANY_KIND}, of one kind alone"
        )
    return chosen


def _decoded(file: pathlib.Path, location: str) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{location}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{location}: line {line}: not UTF-8 ({error.reason}); expected UTF-8"
        ) from error


def _text(text: str, documents: str, location: str) -> Iterator[Record]:
    if documents == "file":
        if text.strip():
            yield Record(location, text=text)
        return
    paragraph: list[str] = []
    start = 1
    # str.splitlines() would also split at form feeds and at Unicode's separators.
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line)
        if paragraph and (documents == "line" or not line.strip()):
            yield Record(f"{location}: line {start}", text="\n".join(paragraph))
            paragraph = []


def _json(text: str, location: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{location}: not JSON: {error.msg} at column {error.colno}; expected {expected}"
        ) from error
    except (RecursionError, ValueError) as error:  # too deeply nested; a number of 5,000 digits
        raise UsageError(f"{location}: not JSON: {error}; expected {expected}") from error


def _lines(text: str, location: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _json(line, f"{location}: line {number}", "a JSON object")


def _list(text: str, location: str) -> Iterator[tuple[int, Any]]:
    content = _json(text, location, "a list of JSON objects")
    if not isinstance(content, list):
        raise UsageError(
            f"{location}: holds {short_repr(content)}; expected a list of JSON objects"
        )
    yield from enumerate(content, 1)


def _rows(file: pathlib.Path, location: str) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet  # slow to import, and only this format needs it

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as content:
            for batch in content.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        fault = short_repr(str(error))
        raise UsageError(f"{location}: cannot be read as Parquet: {fault}") from error


def _records(
    rows: Iterator[tuple[int, Any]],
    chosen: dict[str, tuple[str, ...]] | None,
    location: str,
    unit: str,
) -> Iterator[Record]:
    for number, row in rows:
        yield _record(row, chosen, f"{location}: {unit} {number}")


def _record(row: Any, chosen: dict[str, tuple[str, ...]] | None, location: str) -> Record:
    if not isinstance(row, dict):
        raise UsageError(f"{location}: {short_repr(row)}; expected an object with {_ANY_KIND}")
    if chosen is None:
        # A table has every column in every row, so null counts as absent.
        complete = (
            names for names in _NAMES if all(row.get(name) is not None for name in names.values())
        )
        own = next(complete, None)
        if own is None:
            raise UsageError(
                f"{location}: has {short_repr(sorted(row))}; expected {_ANY_KIND}, or data.fields"
            )
        chosen = {part: (name,) for part, name in own.items()}
    tools = tools_of(row, location)
    if "messages" in chosen:
        return Record(location, messages=_first(row, chosen["messages"][0]), tools=tools)
    if "response" in chosen and (turns := _turns(row, chosen)) is not None:
        return Record(location, messages=turns, tools=tools)
    return Record(
        location, **{part: joined(row, names, location) for part, names in chosen.items()}
    )


def _turns(row: dict[str, Any], chosen: Mapping[str, tuple[str, ...]]) -> list[Any] | None:
    """The conversation of a prompt and a response that are messages; None where they are text."""
    parts = [_first(row, chosen[part][0]) for part in ("prompt", "response")]
    if not any(map(_is_messages, parts)):
        return None
    prompt, response = parts
    before = prompt if _is_messages(prompt) else [{"role": "user", "content": prompt}]
    after = response if _is_messages(response) else [{"role": "assistant", "content": response}]
    return [*before, *after]


def _is_messages(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(message, dict) for message in part)


def tools_of(row: Mapping[str, Any], location: str) -> list[Any] | None:
    """The tools of a record, a list or the same as JSON; None without any.

    Raises:
      UsageError: something else.
    """
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = _json(tools, f"{location}: tools", "a list of JSON objects")
    if not tools:
        return None
    if not isinstance(tools, list):
        raise UsageError(f"{location}: tools is {short_repr(tools)}; expected a list")
    return tools


def _first(row: Mapping[str, Any], names: str) -> Any:
    """The value of the first of names, divided by "|", that a record has."""
    return next((row[name] for name in names.split("|") if row.get(name) is not None), None)


def joined(row: Mapping[str, Any], names: Sequence[str], location: str) -> str:
    """The text of a part of a record; of several fields only the first must be present."""
    texts: list[str] = []
    for position, name in enumerate(names):
        value = _first(row, name)
        if value is None and position:
            continue
        if not is_unicode(value):
            found = short_repr(value) if any(n in row for n in name.split("|")) else "missing"
            listed = " or ".join(map(repr, name.split("|")))
            raise UsageError(f"{location}: {listed} is {found}; expected a text, in Unicode")
        texts.append(value)
    return FIELD_SEPARATOR.join(text for text in texts if text) if len(texts) > 1 else texts[0]
