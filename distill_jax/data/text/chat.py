"""Chat templates: from messages to text, and which of its tokens the assistant wrote.

A template is Jinja and is rendered by `minijinja`. It has access to the messages, the bos and eos
tokens, `tojson`, `raise_exception` and `strftime_now`, and to nothing else of Python.
`template_process` limits the time and the memory that it may take.

The tokens of an assistant's turn are found by rendering the conversation twice: up to the turn,
with the template's own opening of it (the generation prompt), and up to the end of the turn. The
tokens of both are a prefix of the tokens of the whole conversation, unless a template renders
earlier turns differently from the last one (some drop old reasoning). Then the turn is what changes
in the whole conversation when the turn says something else.

Left out on purpose: content other than text (images), and named templates other than the default.
"""

import dataclasses
import datetime
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.data.text import template_process
from distill_jax.data.text.codec import is_unicode, short_repr
from distill_jax.data.text.tokenizer import Tokenizer
from distill_jax.errors import UsageError
from distill_jax.storage import resolve_path

# The tags that transformers puts around an assistant's text. The text between them is kept.
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

_MESSAGES = 'a list of {"role": ..., "content": ...} with text in both'
# ShareGPT's and other programs' names of the roles.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function_response": "tool",
    "observation": "tool",
}
# Two texts that no model writes, with other first and last letters.
_STAND_INS = ("\u2460 stand-in \u2461", "\u2462 stand-in \u2463")

#: Which of the assistant's turns have a loss.
TURNS = ("all", "last")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
      source: the Jinja text.
      location: the start of an error line, such as "data.tokenizer='x/tokenizer.json'".
      bos, eos: the tokens that the template knows as bos_token and eos_token.
      date: the date of `strftime_now`. None leaves that function undefined: a template that tests
        for it then writes its own fixed date, so that the text does not change from day to day.
    """

    source: str = dataclasses.field(repr=False)
    location: str
    bos: str
    eos: str
    date: datetime.date | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        opening: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
          messages: each with a "role" and a "content".
          opening: whether to end with the opening of an assistant's turn (add_generation_prompt).
          tools: what the assistant may call, as JSON schemas.

        Raises:
          UsageError: the template rejects the messages, is not valid, or exceeds a limit of
            `template_process`.
        """
        source = _GENERATION.sub(
            lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", self.source
        )
        try:
            return template_process.render(
                source,
                {
                    "messages": list(messages),
                    "bos_token": self.bos,
                    "eos_token": self.eos,
                    "add_generation_prompt": opening,
                    "tools": tools,
                    "documents": None,
                },
                self.date,
            )
        except template_process.TemplateFault as error:
            line = f" in line {error.line}" if error.line else ""
            fault = short_repr(str(error)) if error.line else str(error)
            raise UsageError(f"{self.location}: chat template{line}: {fault}") from error


def load(tokenizer: Tokenizer, *, date: datetime.date | None = None) -> ChatTemplate:
    """The chat template of a tokenizer: chat_template.jinja in its folder, else its settings.

    Args:
      tokenizer: read from a tokenizer.json, whose encoder parses the names of special tokens.
      date: today's date for the template; see `ChatTemplate`.

    Raises:
      UsageError: there is no template, or the tokenizer reads special tokens as plain text.
    """
    location = f"data.tokenizer={tokenizer.path!r}"
    if not tokenizer.codec.parses_control_tokens:
        raise UsageError(
            f"{location}: a chat template writes special tokens by name, which this kind of file"
            " reads as plain text; expected a tokenizer.json"
        )
    file = resolve_path(tokenizer.path, "data.tokenizer").parent / "chat_template.jinja"
    source = tokenizer.settings.get("chat_template")
    if file.is_file():
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{location}: chat_template.jinja cannot be read: {error}") from error
    elif isinstance(source, list):  # several by name
        named = [entry for entry in source if isinstance(entry, dict)]
        source = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if not isinstance(source, str):
        raise UsageError(
            f"{location}: no chat template; expected chat_template.jinja next to the tokenizer or"
            " chat_template in tokenizer_config.json"
        )
    bos, eos = tokenizer.token(tokenizer.bos), tokenizer.token(tokenizer.eos)
    return ChatTemplate(source, location, bos, eos, date)


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether a chat template lies with the tokenizer: its model was trained on conversations."""
    folder = resolve_path(tokenizer.path, "data.tokenizer").parent
    return "chat_template" in tokenizer.settings or (folder / "chat_template.jinja").is_file()


def encode(
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    location: str,
    tools: Sequence[Any] | None = None,
    turns: str = "all",
) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation, and which of them the assistant wrote.

    An assistant's turn begins after the template's opening of it and ends with its last special
    token, such as "<|im_end|>"; white space that the template writes after that token is not part
    of the turn. Without such a special token, the turn ends where the next one begins. An earlier
    turn that a template writes differently once more follows (without its reasoning, say) is taken
    as the whole conversation has it.

    Args:
      tokenizer: the tokenizer that `chat` was loaded for.
      chat: the template.
      messages: the conversation, with at least one message by "assistant".
      location: the start of an error line, such as "data.path='x.jsonl': line 3".
      tools: as for `ChatTemplate.render`.
      turns: of `TURNS`: "all" turns of the assistant, or the "last" alone.

    Returns:
      (ids, by_assistant): int [n] and bool [n]. No id is added to what the template writes.

    Raises:
      UsageError: `messages` is not a conversation or has no message by the assistant, the template
        rejects it, or a turn is not divided from its neighbours.
    """
    messages = conversation(messages, location)
    if all(message["role"] != "assistant" for message in messages):
        raise UsageError(f"{location}: no message by the assistant; expected at least one to learn")
    learned = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    learned = learned[-1:] if turns == "last" else learned
    try:
        texts = [chat.render(messages, tools=tools)]
        for turn in learned:
            texts.append(chat.render(messages[:turn], opening=True, tools=tools))
            texts.append(chat.render(messages[: turn + 1], tools=tools))
        texts, within = _with_spans(chat, messages, tools, texts, learned)
    except UsageError as error:
        raise UsageError(f"{location}: {error}") from error
    ids, *parts = tokenizer.encode_batch(texts)
    _check_parts(ids, parts, texts, learned, location)
    by_assistant = [False] * len(ids)
    for turn, opened, closed in zip(learned, parts[::2], parts[1::2], strict=True):
        start, stop = len(opened), len(closed)
        if turn not in within:
            stop = _turn_end(tokenizer, ids, start, stop)
        elif stop < len(ids) and ids[stop] in tokenizer.codec.control_ids:
            stop += 1  # the special token that closes the turn
        by_assistant[start:stop] = [True] * (stop - start)
    return ids, by_assistant


def _check_parts(
    ids: list[int],
    parts: Sequence[list[int]],
    texts: Sequence[str],
    learned: Sequence[int],
    location: str,
) -> None:
    """UsageError where the tokens of a part are no beginning of those of the whole."""
    for number, part in enumerate(parts):
        if ids[: len(part)] != part:
            fault = (
                "the tokenizer joins it with its neighbours in one token"
                if texts[0].startswith(texts[number + 1])
                else "the template writes it differently when more follows"
            )
            raise UsageError(
                f"{location}: cannot tell which tokens of message {learned[number // 2]} the"
                f" assistant wrote: {fault}; expected a template that divides the turns by special"
                " tokens, or data.turns='last'"
            )


def _with_spans(
    chat: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    texts: Sequence[str],
    learned: Sequence[int],
) -> tuple[list[str], set[int]]:
    """The texts, with other parts for turns whose parts are no beginning of the whole.

    Those parts are the whole conversation up to the text of the turn, and up to its end; special
    tokens that close the turn follow.

    Args:
      chat: the template.
      messages: the conversation.
      tools: as for `ChatTemplate.render`.
      texts: the whole, then two for each learned turn: up to the turn and up to its end.
      learned: the numbers of the turns.

    Returns:
      The texts, and the numbers of the turns that have other parts.
    """
    whole, found, within = texts[0], list(texts), set()
    for number, turn in enumerate(learned):
        pair = slice(2 * number + 1, 2 * number + 3)
        if all(whole.startswith(part) for part in found[pair]):
            continue
        others = [
            chat.render(
                [*messages[:turn], {"role": "assistant", "content": text}, *messages[turn + 1 :]],
                tools=tools,
            )
            for text in _STAND_INS
        ]
        before = min(_shared(whole, other) for other in others)
        after = min(_shared(whole[before:][::-1], other[before:][::-1]) for other in others)
        stop = len(whole) - after
        if before < stop and all(s in o for s, o in zip(_STAND_INS, others, strict=True)):
            stop += len(whole[stop:]) - len(whole[stop:].lstrip())
            found[pair] = whole[:before], whole[:stop]
            within.add(turn)
    return found, within


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their start."""
    return len(os.path.commonprefix([one, other]))


def _turn_end(tokenizer: Tokenizer, ids: list[int], start: int, stop: int) -> int:
    """The end of the turn ids[start:stop], without white space after its last special token."""
    controls = [i for i in range(start, stop) if ids[i] in tokenizer.codec.control_ids]
    if controls and not tokenizer.decode(ids[controls[-1] + 1 : stop]).strip():
        return controls[-1] + 1
    return stop


def conversation(messages: object, location: str) -> list[dict[str, Any]]:
    """The messages in one form: {"role": ..., "content": text, and what else a message has}.

    Read are also ShareGPT's messages, {"from": "human", "value": ...}; a content of None where the
    assistant calls tools instead; and content in parts that are all text.

    Raises:
      UsageError: it is no list of messages, or one has no role or no text; the line begins with
        `location`.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError(f"{location}: messages is {short_repr(messages)}; expected {_MESSAGES}")
    return [_message(message, number, location) for number, message in enumerate(messages)]


def _message(message: object, number: int, location: str) -> dict[str, Any]:
    fields = dict(message) if isinstance(message, dict) else {}
    if "role" not in fields and "from" in fields:
        role = fields.pop("from")
        fields = {"role": _ROLES.get(role, role) if isinstance(role, str) else role, **fields}
        if "content" not in fields:
            fields["content"] = fields.pop("value", None)
    # Tables have every column in every row: what a message lacks is null there.
    fields = {name: v for name, v in fields.items() if v is not None or name == "content"}
    content = fields.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if content is None and fields.get("tool_calls"):
        content = ""
    if not is_unicode(content) or not is_unicode(fields.get("role")):
        raise UsageError(
            f"{location}: message {number} is {short_repr(message)}; expected {_MESSAGES}"
        )
    return {**fields, "content": content}


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and is_unicode(part.get("text"))
