"""Prompts from JSONL, and their token ids.

A line is an object with "messages" (a conversation, of which what the assistant says last is left
out), or "prompt", or "text"; the first that is there. The "response" to it, or what the assistant
says last, is read where it is asked for, as the reference; what else a line has is not.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.data import text
from distill_jax.errors import UsageError, unknown
from distill_jax.generation.decode import Response

_JOINED = "\n\n"  # between fields of a set, as `text.read` joins them
_KINDS = '"messages", "prompt" or "text"'
_MESSAGES = 'a list of {"role": ..., "content": ...} with text in both'


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
      location: how an error about it begins, such as "prompts='x.jsonl': line 3".
      text: what the model continues; "" for a conversation until `encode` renders it.
      messages: the conversation that the response continues, or None.
      reference: the response that the file has, or None where it was not asked for.
    """

    location: str
    text: str
    messages: tuple[Mapping[str, str], ...] | None = None
    reference: str | None = None


def read(
    path: str | os.PathLike, *, fields: str = "", key: str = "prompts", references: bool = False
) -> list[Prompt]:
    """The prompts of a JSONL file; blank lines are left out.

    Args:
      path: the file, UTF-8.
      fields: a name of `text.FIELDS` whose fields make the prompt, such as "gsm8k"; "" for the
        fields named above.
      key: what an error calls the path.
      references: whether every line needs a response, which becomes `Prompt.reference`.

    Raises:
      UsageError: the file cannot be read or has no prompt, or a line is no prompt or lacks what
        `references` asks for.
    """
    if fields and fields not in text.FIELDS:
        raise unknown("generate.fields", fields, text.FIELDS)
    where = f"{key}={str(path)!r}"
    try:
        content = pathlib.Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{where}: cannot be read: {error.strerror}; expected a JSONL file"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 ({error.reason}); expected JSONL in UTF-8") from None
    names = text.FIELDS[fields]["prompt"] if fields else ()
    names = (names,) if isinstance(names, str) else tuple(names)
    wanted = (text.FIELDS[fields]["response"] if fields else "response") if references else ""
    # Not splitlines(), which also splits at Unicode's separators inside a text.
    lines = enumerate(content.split("\n"), 1)
    found = [
        _prompt(line, f"{where}: line {n}", names, wanted) for n, line in lines if line.strip()
    ]
    if not found:
        raise UsageError(f"{where}: holds no prompt; expected a JSON object a line")
    return found


def _prompt(line: str, where: str, names: Sequence[str], wanted: str) -> Prompt:
    """A line as a prompt, with the reference from the field `wanted` unless that is ""."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}; expected an object") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: {_short(row)}; expected an object with {_KINDS}")
    if not names and row.get("messages") is not None:
        turns = _conversation(row["messages"], where)
        last = row["messages"][-1] if len(turns) < len(row["messages"]) else None
        if wanted and last is None:
            raise UsageError(
                f"{where}: ends with no message of the assistant's; expected a response"
            )
        return Prompt(where, "", turns, last["content"] if wanted else None)
    if not names:
        names = [name for name in ("prompt", "text") if row.get(name) is not None][:1]
        if not names:
            raise UsageError(f"{where}: has {_short(sorted(row))}; expected {_KINDS}")
    parts = []
    for place, name in enumerate(names):
        value = row.get(name)
        if value is None and place:
            continue  # of several fields all but the first may be missing
        if not _is_text(value):
            raise UsageError(f"{where}: {name!r} is {_short(value)}; expected Unicode text")
        parts.append(value)
    reference = row.get(wanted) if wanted else None
    if wanted and not _is_text(reference):
        raise UsageError(
            f"{where}: {wanted!r} is {_short(reference)}; expected the response, a text"
        )
    joined = _JOINED.join(filter(None, parts)) if len(parts) > 1 else parts[0]
    return Prompt(where, joined, reference=reference)


def _conversation(messages: Any, where: str) -> tuple[Mapping[str, str], ...]:
    if not isinstance(messages, list):
        raise UsageError(f"{where}: messages is {_short(messages)}; expected {_MESSAGES}")
    for number, message in enumerate(messages):
        given = message if isinstance(message, dict) else {}
        if not all(_is_text(given.get(name)) for name in ("role", "content")):
            raise UsageError(
                f"{where}: message {number} is {_short(message)}; expected {_MESSAGES}"
            )
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UsageError(f"{where}: no message but the assistant's; expected one to respond to")
    return tuple(messages)


def encode(
    prompts: Sequence[Prompt], tokenizer: text.Tokenizer
) -> tuple[list[Prompt], list[list[int]]]:
    """The prompts with conversations rendered, and the ids that a model is given.

    bos stands before a prompt where the tokenizer puts it by default; of a conversation the
    tokenizer's chat template alone decides, which also opens the assistant's turn.

    Returns:
      (prompts, ids), both in the order that was given.

    Raises:
      UsageError: a conversation without a chat template, one that the template refuses.
    """
    chat = None
    if any(prompt.messages is not None for prompt in prompts):
        chat = text.load_chat_template(tokenizer)
    rendered = [_rendered(prompt, chat) for prompt in prompts]
    ids = tokenizer.encode_batch([prompt.text for prompt in rendered])
    before = [tokenizer.bos] if tokenizer.adds_bos else []
    ids = [
        own if prompt.messages is not None else before + own
        for prompt, own in zip(rendered, ids, strict=True)
    ]
    return rendered, ids


def _rendered(prompt: Prompt, chat: text.ChatTemplate | None) -> Prompt:
    if prompt.messages is None:
        return prompt
    try:
        return dataclasses.replace(prompt, text=chat.render(prompt.messages, opening=True))
    except UsageError as error:
        raise UsageError(f"{prompt.location}: {error}") from error


def continuation_text(
    tokenizer: text.Tokenizer, prompt: Sequence[int], drawn: Sequence[int]
) -> str:
    """The text that ids add to a prompt's; prompt and response joined are the whole.

    Decoding them alone would lose a first space where a tokenizer takes it for its own.
    """
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *drawn])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(drawn)


def response_text(tokenizer: text.Tokenizer, prompt: Sequence[int], response: Response) -> str:
    """The text of a response to a prompt's ids, without the stop id that ended it."""
    drawn = response.ids.tolist()
    return continuation_text(tokenizer, prompt, drawn[:-1] if response.finish == "stop" else drawn)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 80 else f"{said[:76]} ..."
