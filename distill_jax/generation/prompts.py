"""Prompts from JSONL, their token ids, and the text of the responses.

A line is an object with "messages" (a conversation; the assistant's messages at its end are
dropped), "prompt" or "text"; the first of these that is present is read. The reference, if it is
wanted, is the line's "response", or the assistant's last message. Other fields are ignored.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from distill_jax.data import text
from distill_jax.data.text.chat import check_messages
from distill_jax.data.text.codec import is_unicode, short_repr
from distill_jax.data.text.documents import between
from distill_jax.data.text.sources import FIELD_SEPARATOR
from distill_jax.errors import UsageError, unknown
from distill_jax.generation.decode import Response

_KINDS = '"messages", "prompt" or "text"'


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
      location: the start of an error line about it, such as "prompts='x.jsonl': line 3".
      text: what the model continues; "" for a conversation until `encode` renders it.
      messages: the conversation that the response continues, or None.
      reference: the reference response, or None if references were not requested.
    """

    location: str
    text: str
    messages: tuple[Mapping[str, str], ...] | None = None
    reference: str | None = None


def read(
    path: str | os.PathLike, *, fields: str = "", key: str = "prompts", references: bool = False
) -> list[Prompt]:
    """The prompts of a JSONL file; blank lines are skipped.

    Args:
      path: the file, UTF-8.
      fields: a name of `text.FIELDS` whose fields make the prompt, such as "gsm8k"; "" for the
        fields of the module's docstring.
      key: the config key of the path in errors.
      references: whether every line must have a response, which becomes `Prompt.reference`.

    Raises:
      UsageError: the file cannot be read or has no prompt, a line is not a prompt, or it lacks the
        response that `references` requires.
    """
    if fields and fields not in text.FIELDS:
        raise unknown("generate.fields", fields, text.FIELDS)
    location = f"{key}={str(path)!r}"
    try:
        content = pathlib.Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{location}: cannot be read: {error.strerror}; expected a JSONL file"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{location}: not UTF-8 ({error.reason}); expected JSONL in UTF-8"
        ) from None
    names = text.FIELDS[fields]["prompt"] if fields else ()
    names = (names,) if isinstance(names, str) else tuple(names)
    reference = (text.FIELDS[fields]["response"] if fields else "response") if references else ""
    # str.splitlines() would also split at Unicode's separators inside a text.
    lines = enumerate(content.split("\n"), 1)
    found = [
        _prompt(line, f"{location}: line {n}", names, reference)
        for n, line in lines
        if line.strip()
    ]
    if not found:
        raise UsageError(f"{location}: holds no prompt; expected a JSON object a line")
    return found


def _prompt(line: str, location: str, names: Sequence[str], reference_field: str) -> Prompt:
    """The prompt of a line, with the reference of a field; "" for no reference."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{location}: not JSON: {error}; expected an object") from None
    if not isinstance(row, dict):
        raise UsageError(f"{location}: {short_repr(row)}; expected an object with {_KINDS}")
    if not names and row.get("messages") is not None:
        return _conversation(row["messages"], location, reference=bool(reference_field))
    if not names:
        names = [name for name in ("prompt", "text") if row.get(name) is not None][:1]
        if not names:
            raise UsageError(f"{location}: has {short_repr(sorted(row))}; expected {_KINDS}")
    parts: list[str] = []
    for number, name in enumerate(names):
        value = row.get(name)
        if value is None and number:
            continue  # of several fields only the first must be present
        if not is_unicode(value):
            raise UsageError(f"{location}: {name!r} is {short_repr(value)}; expected Unicode text")
        parts.append(value)
    reference = row.get(reference_field) if reference_field else None
    if reference_field and not is_unicode(reference):
        raise UsageError(
            f"{location}: {reference_field!r} is {short_repr(reference)}; expected the response, a"
            " text"
        )
    joined = FIELD_SEPARATOR.join(filter(None, parts)) if len(parts) > 1 else parts[0]
    return Prompt(location, joined, reference=reference)


def _conversation(messages: object, location: str, *, reference: bool) -> Prompt:
    """The prompt of a conversation, without the assistant's messages at its end."""
    conversation = check_messages(messages, location)
    end = len(conversation)
    while end and conversation[end - 1]["role"] == "assistant":
        end -= 1
    if not end:
        raise UsageError(f"{location}: no message but the assistant's; expected one to respond to")
    if reference and end == len(conversation):
        raise UsageError(
            f"{location}: ends with no message of the assistant's; expected a response"
        )
    return Prompt(
        location,
        "",
        messages=tuple(conversation[:end]),
        reference=conversation[-1]["content"] if reference else None,
    )


def encode(
    prompts: Sequence[Prompt], tokenizer: text.Tokenizer
) -> tuple[list[Prompt], list[list[int]]]:
    """Renders conversations and tokenises all prompts.

    A plain prompt begins with bos if the tokenizer adds it by default or the prompt has it already.
    For a conversation, the tokenizer's chat template alone decides; it also opens the assistant's
    turn.

    Returns:
      (prompts, ids), both in the given order.

    Raises:
      UsageError: a conversation without a chat template, or one that the template rejects.
    """
    if any(prompt.messages is not None for prompt in prompts):
        chat = text.load_chat_template(tokenizer)
        prompts = [_render(prompt, chat) for prompt in prompts]
    ids = tokenizer.encode_batch([prompt.text for prompt in prompts])
    before = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.adds_bos else []
    ids = [
        own if prompt.messages is not None else between(tokenizer, own, before, [])
        for prompt, own in zip(prompts, ids, strict=True)
    ]
    return list(prompts), ids


def _render(prompt: Prompt, chat: text.ChatTemplate) -> Prompt:
    if prompt.messages is None:
        return prompt
    try:
        return dataclasses.replace(prompt, text=chat.render(prompt.messages, opening=True))
    except UsageError as error:
        raise UsageError(f"{prompt.location}: {error}") from error


def continuation_text(
    tokenizer: text.Tokenizer, prompt: Sequence[int], continuation: Sequence[int]
) -> str:
    """The text that a continuation adds to a prompt: the prompt's text + this = the whole text.

    Decoding the continuation alone would lose its first space with tokenizers that strip it.
    """
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *continuation])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(continuation)


def response_text(tokenizer: text.Tokenizer, prompt: Sequence[int], response: Response) -> str:
    """The text of a response to a prompt's ids, without the stop id that ended it."""
    ids = response.ids.tolist()
    return continuation_text(tokenizer, prompt, ids[:-1] if response.finish == "stop" else ids)
