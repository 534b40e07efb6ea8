"""Prompts from JSONL, their token ids, and the text of the responses.

A line is an object with "messages" or "conversations" (a conversation; the assistant's messages at
its end are dropped), "prompt" or "text"; the first of these that is present is read. The reference,
if it is wanted, is the line's "response" or "completion", or the assistant's last message. Other
fields are ignored.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.data import text
from distill_jax.data.text.chat import conversation
from distill_jax.data.text.codec import short_repr
from distill_jax.data.text.documents import between
from distill_jax.data.text.sources import joined, parse_fields, tools_of
from distill_jax.errors import UsageError
from distill_jax.generation.decode import Response

_KINDS = '"messages", "prompt" or "text"'
_CONVERSATIONS = ("messages", "conversations", "conversation")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
      location: the start of an error line about it, such as "prompts='x.jsonl': line 3".
      text: what the model continues; "" for a conversation until `encode` renders it.
      messages: the conversation that the response continues, or None.
      reference: the reference response, or None if references were not requested.
      tools: what the assistant of a conversation may call, or None.
    """

    location: str
    text: str
    messages: tuple[Mapping[str, Any], ...] | None = None
    reference: str | None = None
    tools: Sequence[Any] | None = None


def read(
    path: str | os.PathLike, *, fields: str = "", key: str = "prompts", references: bool = False
) -> list[Prompt]:
    """The prompts of a JSONL file; blank lines are skipped.

    Args:
      path: the file, UTF-8.
      fields: which fields make the prompt, as in `text.parse_fields`; "" for those of the module's
        docstring.
      key: the config key of the path in errors.
      references: whether every line must have a response, which becomes `Prompt.reference`.

    Raises:
      UsageError: the file cannot be read or has no prompt, a line is not a prompt, or it lacks the
        response that `references` requires.
    """
    chosen = parse_fields(fields, key="generate.fields" if key == "prompts" else key)
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
    # str.splitlines() would also split at Unicode's separators inside a text.
    lines = enumerate(content.split("\n"), 1)
    found = [
        _prompt(line, f"{location}: line {n}", chosen, references)
        for n, line in lines
        if line.strip()
    ]
    if not found:
        raise UsageError(f"{location}: holds no prompt; expected a JSON object a line")
    return found


def _prompt(
    line: str, location: str, chosen: Mapping[str, Sequence[str]] | None, references: bool
) -> Prompt:
    """The prompt of a line, with its reference where they are required."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{location}: not JSON: {error}; expected an object") from None
    if not isinstance(row, dict):
        raise UsageError(f"{location}: {short_repr(row)}; expected an object with {_KINDS}")
    if chosen is None:
        present = [
            name for name in (*_CONVERSATIONS, "prompt", "text") if row.get(name) is not None
        ]
        if not present:
            raise UsageError(f"{location}: has {short_repr(sorted(row))}; expected {_KINDS}")
        part = "messages" if present[0] in _CONVERSATIONS else "prompt"
        chosen = {part: present[:1], "response": ("response|completion",)}
    tools = tools_of(row, location)
    if "messages" in chosen:
        messages = row.get(chosen["messages"][0])
        return _conversation(messages, location, tools, reference=references)
    names = chosen.get("prompt") or chosen["text"]
    value = row.get(names[0])
    if isinstance(value, list):  # of messages
        answer = row.get("completion") or row.get("response") or []
        turns = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
        return _conversation([*value, *turns], location, tools, reference=references)
    reference = None
    if references:
        reference = joined(row, chosen.get("response", ("response",)), location)
    return Prompt(location, joined(row, names, location), reference=reference)


def _conversation(
    messages: object, location: str, tools: Sequence[Any] | None, *, reference: bool
) -> Prompt:
    """The prompt of a conversation, without the assistant's messages at its end."""
    turns = conversation(messages, location)
    end = len(turns)
    while end and turns[end - 1]["role"] == "assistant":
        end -= 1
    if not end:
        raise UsageError(f"{location}: no message but the assistant's; expected one to respond to")
    if reference and end == len(turns):
        raise UsageError(
            f"{location}: ends with no message of the assistant's; expected a response"
        )
    return Prompt(
        location,
        "",
        messages=tuple(turns[:end]),
        reference=turns[-1]["content"] if reference else None,
        tools=tools,
    )


def encode(
    prompts: Sequence[Prompt], tokenizer: text.Tokenizer, *, as_chat: bool = False
) -> tuple[list[Prompt], list[list[int]]]:
    """Renders conversations and tokenises all prompts.

    A plain prompt begins with bos if the tokenizer adds it by default or the prompt has it already.
    For a conversation, the tokenizer's chat template alone decides; it also opens the assistant's
    turn.

    Args:
      prompts: from `read`.
      tokenizer: of the model that continues them.
      as_chat: whether a plain prompt is the user's message in a conversation.

    Returns:
      (prompts, ids), both in the given order.

    Raises:
      UsageError: a conversation without a chat template, or one that the template rejects.
    """
    if as_chat:
        prompts = [_as_conversation(prompt) for prompt in prompts]
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


def _as_conversation(prompt: Prompt) -> Prompt:
    if prompt.messages is not None:
        return prompt
    return dataclasses.replace(prompt, messages=({"role": "user", "content": prompt.text},))


def _render(prompt: Prompt, chat: text.ChatTemplate) -> Prompt:
    if prompt.messages is None:
        return prompt
    try:
        return dataclasses.replace(
            prompt, text=chat.render(prompt.messages, opening=True, tools=prompt.tools)
        )
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
