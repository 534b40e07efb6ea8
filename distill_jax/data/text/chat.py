"""Chat templates: from messages to text, and which of its tokens the assistant wrote.

A template is Jinja and is rendered by `minijinja`. It has access to the messages, the bos and eos
tokens and the functions below, and to nothing else of Python. Fuel, a limit on the number of
instructions, stops endless loops and strings that grow without bound. It does not bound a list that
is added to itself repeatedly: a malicious template can still use up time and memory, but do nothing
else.

The tokens of an assistant's turn are found by rendering the conversation twice: up to the turn,
with the template's own opening of it (the generation prompt), and up to the end of the turn. The
tokens of both must be a prefix of the tokens of the whole conversation. They are not where a
template renders earlier turns differently from the last one (some drop old reasoning); such a
conversation raises an error.

Left out on purpose: tools, content in parts (images), and named templates other than the default.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import minijinja

from distill_jax.data.text.codec import is_panic, is_unicode, short_repr
from distill_jax.data.text.tokenizer import Tokenizer
from distill_jax.errors import UsageError
from distill_jax.storage import resolve_path

# Instructions that one rendering may execute; 18 public templates needed 70 to 130 a message.
FUEL = 1_000_000

# The tags that transformers puts around an assistant's text. The text between them is kept.
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

_MESSAGES = 'a list of {"role": ..., "content": ...} with text in both'


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

    def render(self, messages: Sequence[Mapping[str, Any]], *, opening: bool = False) -> str:
        """The text of a conversation.

        Args:
          messages: each with a "role" and a "content".
          opening: whether to end with the opening of an assistant's turn (add_generation_prompt).

        Raises:
          UsageError: the template rejects the messages, is not valid, or runs out of fuel.
        """
        environment = minijinja.Environment(
            fuel=FUEL,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_escape_callback=lambda name: False,
        )
        environment.add_filter("tojson", _tojson)
        environment.add_function(  # type: ignore[attr-defined]  # missing in minijinja's stubs
            "raise_exception", _raise
        )
        if self.date is not None:
            environment.add_function(  # type: ignore[attr-defined]  # missing in the stubs
                "strftime_now", self.date.strftime
            )
        source = _GENERATION.sub(
            lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", self.source
        )
        try:
            return environment.render_str(
                source,
                # A copy, because a template may call methods that change lists and dictionaries.
                messages=json.loads(json.dumps(list(messages))),
                bos_token=self.bos,
                eos_token=self.eos,
                add_generation_prompt=opening,
                tools=None,
                documents=None,
            )
        except minijinja.TemplateError as error:
            line = f" in line {error.line}" if error.line else ""
            fault = f"{error.kind}: {error.detail}" if error.detail else error.kind
            raise UsageError(
                f"{self.location}: chat template{line}: {short_repr(fault)}"
            ) from error
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise UsageError(f"{self.location}: chat template: {error}") from error


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


def encode(
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    location: str,
) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation, and which of them the assistant wrote.

    An assistant's turn begins after the template's opening of it and ends with its last special
    token, such as "<|im_end|>"; white space that the template writes after that token is not part
    of the turn. Without such a special token, the turn ends where the next one begins.

    Args:
      tokenizer: the tokenizer that `chat` was loaded for.
      chat: the template.
      messages: the conversation, with at least one message by "assistant".
      location: the start of an error line, such as "data.path='x.jsonl': line 3".

    Returns:
      (ids, by_assistant): int [n] and bool [n]. No id is added to what the template writes.

    Raises:
      UsageError: `messages` is not a conversation or has no message by the assistant, the template
        rejects it, or the tokens of a part are not a prefix of the tokens of the whole.
    """
    check(messages, location)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    try:
        texts = [chat.render(messages)]
        for turn in turns:
            texts.append(chat.render(messages[:turn], opening=True))
            texts.append(chat.render(messages[: turn + 1]))
    except UsageError as error:
        raise UsageError(f"{location}: {error}") from error
    ids, *parts = tokenizer.encode_batch(texts)
    for number, part in enumerate(parts):
        if ids[: len(part)] != part:
            fault = (
                "the tokenizer joins it with its neighbours in one token"
                if texts[0].startswith(texts[number + 1])
                else "the template writes it differently when more follows"
            )
            raise UsageError(
                f"{location}: cannot tell which tokens of message {turns[number // 2]} the"
                f" assistant wrote: {fault}; expected a template that only appends to what it"
                " wrote, between special tokens"
            )
    by_assistant = [False] * len(ids)
    for opened, closed in zip(parts[::2], parts[1::2], strict=True):
        start, stop = len(opened), _turn_end(tokenizer, ids, len(opened), len(closed))
        by_assistant[start:stop] = [True] * (stop - start)
    return ids, by_assistant


def _turn_end(tokenizer: Tokenizer, ids: list[int], start: int, stop: int) -> int:
    """The end of the turn ids[start:stop], without white space after its last special token."""
    controls = [i for i in range(start, stop) if ids[i] in tokenizer.codec.control_ids]
    if controls and not tokenizer.decode(ids[controls[-1] + 1 : stop]).strip():
        return controls[-1] + 1
    return stop


def check(messages: object, location: str) -> None:
    """Checks that messages are a conversation, with at least one message by the assistant.

    Raises:
      UsageError: they are not; the line begins with `location`.
    """
    if not messages:
        raise UsageError(f"{location}: messages is {short_repr(messages)}; expected {_MESSAGES}")
    conversation = check_messages(messages, location)
    if all(message["role"] != "assistant" for message in conversation):
        raise UsageError(f"{location}: no message by the assistant; expected at least one to learn")


def check_messages(messages: object, location: str) -> Sequence[Mapping[str, Any]]:
    """The messages, checked: each is a dictionary with text in "role" and "content".

    Raises:
      UsageError: they are not; the line begins with `location`.
    """
    if not isinstance(messages, list | tuple):
        raise UsageError(f"{location}: messages is {short_repr(messages)}; expected {_MESSAGES}")
    for number, message in enumerate(messages):
        fields = message if isinstance(message, dict) else {}
        if not all(is_unicode(fields.get(name)) for name in ("role", "content")):
            raise UsageError(
                f"{location}: message {number} is {short_repr(message)}; expected {_MESSAGES}"
            )
    return messages


def _tojson(value: object, indent: int | None = None, **options: Any) -> str:
    """JSON as transformers writes it: without escapes for HTML or for non-ASCII characters."""
    return json.dumps(value, ensure_ascii=options.get("ensure_ascii", False), indent=indent)


def _raise(message: str) -> None:
    raise UsageError(message)
