"""Records of text from files: .txt, .jsonl, .json and .parquet.

A record is one of three: a text, a prompt with its response, or a conversation. Which, is told by
the fields of each record, or by `fields`. Records come in the order of the files, one at a time; a
bad one is an error that names the file and the line. Left out on purpose: downloads, compressed
files, and mixtures with weights.
"""

import dataclasses
import glob
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distill_jax.data.text.codec import is_unicode, shortened
from distill_jax.errors import UsageError, unknown

# Well-known sets, by the names of their fields.
FIELDS: dict[str, dict[str, Any]] = {
    "dolly": {"prompt": ("instruction", "input"), "response": "output"},
    "gsm8k": {"prompt": "question", "response": "answer"},
}
KINDS = (("messages",), ("prompt", "response"), ("text",))
DOCUMENTS = ("blank_line", "line", "file")
SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")

# Fields that are joined into one, as an instruction and its context.
JOINED = "\n\n"

_ANY_KIND = '"messages", or "prompt" and "response", or "text"'


@dataclasses.dataclass(frozen=True)
class Record:
    """One document of a corpus: a text, or a prompt with its response, or messages.

    Attributes:
      location: how an error about it begins, such as "data.path='x.jsonl': line 3".
      text: the text, or None.
      prompt, response: both or neither.
      messages: the conversation, or None; checked when it is rendered.
    """

    location: str
    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: Any = None


def files(path: str | os.PathLike | Iterable[str | os.PathLike]) -> list[pathlib.Path]:
    """The files that a path, several, or a pattern such as "part-*.jsonl" names.

    Several keep their order, a pattern gives its files sorted; no file comes twice.

    Raises:
      UsageError: a path or pattern without a file, a folder, or an unknown suffix.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    found: dict[pathlib.Path, None] = {}
    for entry in paths:
        where = f"data.path={str(entry)!r}"
        name = os.path.expanduser(entry)
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        for match in map(pathlib.Path, matches):
            if match.is_dir():
                raise UsageError(
                    f"{where}: {match.name} is a folder; expected files, such as"
                    f" {str(match / '*.jsonl')!r}"
                )
            if match.suffix not in SUFFIXES:
                raise UsageError(
                    f"{where}: {match.name} ends in {match.suffix!r}; expected one of"
                    f" {', '.join(SUFFIXES)}"
                )
            found[match] = None
        if not matches:
            raise UsageError(f"{where}: no such file; expected a path or a pattern of files")
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

    .txt: UTF-8; a document is what `documents` says. .jsonl: an object a line, blank lines between
    allowed. .json: a list of objects. .parquet: a row a record.

    Args:
      path: a file, several, or a pattern; see `files`.
      fields: where "text", "prompt", "response" or "messages" stand in a record: a name of
        `FIELDS`, or a mapping such as {"prompt": ("instruction", "input"), "response": "output"}.
        Of several fields, those that are there and not empty are joined by a blank line. Empty:
        the first of messages, prompt and response, text that a record has. The rest is ignored.
      documents: "blank_line", a document ends at a line of white space alone; "line", every line
        that is not blank is one; "file", the whole file is one.

    Yields:
      Records. Texts are kept as they are, but for the blank lines that separate documents.

    Raises:
      UsageError: see `files`; a file that cannot be read, or a bad record.
    """
    if documents not in DOCUMENTS:
        raise unknown("data.documents", documents, DOCUMENTS)
    chosen = _fields(fields)
    for file in files(path):
        where = f"data.path={str(file)!r}"
        if file.suffix == ".txt":
            yield from _text(_decoded(file, where), documents, where)
        elif file.suffix == ".parquet":
            yield from _records(_rows(file, where), chosen, where, "row")
        else:
            parse = _lines if file.suffix == ".jsonl" else _list
            unit = "line" if file.suffix == ".jsonl" else "record"
            yield from _records(parse(_decoded(file, where), where), chosen, where, unit)


def _fields(fields: str | Mapping[str, Any]) -> dict[str, tuple[str, ...]] | None:
    """The names of the fields that make each part of a record; None where the record tells."""
    if isinstance(fields, str):
        if not fields:
            return None
        if fields not in FIELDS:
            raise unknown("data.fields", fields, FIELDS)
        fields = FIELDS[fields]
    chosen = {}
    for part, given in dict(fields).items():
        names = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not names or not all(isinstance(name, str) and name for name in names):
            raise UsageError(
                f"data.fields.{part}={given!r}: expected the name of a field, or names"
            )
        chosen[part] = names
    if not any(set(kind) == set(chosen) for kind in KINDS):
        raise UsageError(
            f"data.fields={sorted(chosen)!r}: expected the fields of {_ANY_KIND}, of one kind alone"
        )
    return chosen


def _decoded(file: pathlib.Path, where: str) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{where}: line {line}: not UTF-8 ({error.reason}); expected UTF-8"
        ) from error


def _text(text: str, documents: str, where: str) -> Iterator[Record]:
    if documents == "file":
        if text.strip():
            yield Record(where, text=text)
        return
    paragraph: list[str] = []
    start = 1
    # Not splitlines(), which also splits at form feeds and at Unicode's separators.
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line)
        if paragraph and (documents == "line" or not line.strip()):
            yield Record(f"{where}: line {start}", text="\n".join(paragraph))
            paragraph = []


def _json(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{where}: not JSON: {error.msg} at column {error.colno}; expected {expected}"
        ) from error
    except (RecursionError, ValueError) as error:  # brackets without end; a number of 5,000 digits
        raise UsageError(f"{where}: not JSON: {error}; expected {expected}") from error


def _lines(text: str, where: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _json(line, f"{where}: line {number}", "a JSON object")


def _list(text: str, where: str) -> Iterator[tuple[int, Any]]:
    content = _json(text, where, "a list of JSON objects")
    if not isinstance(content, list):
        raise UsageError(f"{where}: holds {shortened(content)}; expected a list of JSON objects")
    yield from enumerate(content, 1)


def _rows(file: pathlib.Path, where: str) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet  # slow to import; used by this kind alone

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as content:
            for batch in content.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        fault = shortened(str(error))
        raise UsageError(f"{where}: cannot be read as Parquet: {fault}") from error


def _records(
    rows: Iterator[tuple[int, Any]],
    chosen: dict[str, tuple[str, ...]] | None,
    where: str,
    unit: str,
) -> Iterator[Record]:
    for number, row in rows:
        yield _record(row, chosen, f"{where}: {unit} {number}")


def _record(row: Any, chosen: dict[str, tuple[str, ...]] | None, where: str) -> Record:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: {shortened(row)}; expected an object with {_ANY_KIND}")
    if chosen is None:
        # A table has every column in every row: null is as good as absent.
        here = (kind for kind in KINDS if all(row.get(name) is not None for name in kind))
        kind = next(here, None)
        if kind is None:
            raise UsageError(
                f"{where}: has {shortened(sorted(row))}; expected {_ANY_KIND}, or data.fields"
            )
        chosen = {name: (name,) for name in kind}
    if "messages" in chosen:
        return Record(where, messages=row.get(chosen["messages"][0]))
    return Record(where, **{part: _joined(row, names, where) for part, names in chosen.items()})


def _joined(row: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    """The text of a part; of several fields all but the first may be missing."""
    texts = []
    for position, name in enumerate(names):
        value = row.get(name)
        if value is None and position:
            continue
        if not is_unicode(value):
            found = shortened(value) if name in row else "missing"
            raise UsageError(f"{where}: {name!r} is {found}; expected a text, in Unicode")
        texts.append(value)
    return JOINED.join(text for text in texts if text) if len(texts) > 1 else texts[0]
