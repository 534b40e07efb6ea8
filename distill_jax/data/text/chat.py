"""Chat templates: messages to text, and which tokens of it the assistant wrote.

A template is Jinja, rendered by `minijinja`: it sees messages, the names of bos and eos, and the
functions below, and nothing of Python. Fuel, a number of instructions, ends endless loops and
strings that grow without end. What it does not bound is a list added to itself again and again: a
template made to harm can still take time and memory with it, though nothing else.

What the assistant wrote is found by differences: the tokens of the conversation up to a turn of
the assistant, with the template's own opening of that turn, and of the conversation up to its end.
Both have to be a prefix of the tokens of the whole. Where a template writes earlier turns in
another way than the last one (some leave out old thoughts), they are not, and that is refused.

Left out on purpose: tools and content in parts (images), and named templates beside the default.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import minijinja

from distill_jax.data.text.codec import is_panic, is_unicode, shortened
from distill_jax.data.text.tokenizer import Tokenizer
from distill_jax.errors import UsageError
from distill_jax.storage import resolve_path

# Instructions of one rendering. Eighteen public templates needed 70 to 130 a message.
FUEL = 1_000_000

# transformers' own tags around what the assistant writes. Their text is kept, as it does.
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

_MESSAGES = 'expected a list of {"role": ..., "content": ...} with text in both'


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
      source: the Jinja text.
      location: how an error begins, such as "data.tokenizer='x/tokenizer.json'".
      bos, eos: the names that the template calls bos_token and eos_token.
      date: what `strftime_now` says; None leaves it undefined, so that a template that asks first
        writes the fixed date that it has for this case, and text does not change overnight.
    """

    source: str = dataclasses.field(repr=False)
    location: str
    bos: str
    eos: str
    date: datetime.date | None = None

    def render(self, messages: Sequence[Mapping[str, Any]], *, opening: bool = False) -> str:
        """The text of a conversation.

        Args:
          messages: each a "role" and a "content".
          opening: end with what opens a turn of the assistant (add_generation_prompt).

        Raises:
          UsageError: the template refuses the messages, is not valid, or runs out of fuel.
        """
        environment = minijinja.Environment(
            fuel=FUEL,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_escape_callback=lambda name: False,
        )
        environment.add_filter("tojson", _tojson)
        environment.add_function("raise_exception", _raise)
        if self.date is not None:
            environment.add_function("strftime_now", self.date.strftime)
        source = _GENERATION.sub(
            lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", self.source
        )
        try:
            return environment.render_str(
                source,
                # A copy: a template may call methods that change lists and dictionaries.
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
            raise UsageError(f"{self.location}: chat template{line}: {shortened(fault)}") from error
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise UsageError(f"{self.location}: chat template: {error}") from error


def load(tokenizer: Tokenizer, *, date: datetime.date | None = None) -> ChatTemplate:
    """The chat template that lies beside a tokenizer: chat_template.jinja or tokenizer_config.json.

    Args:
      tokenizer: of the kind tokenizer.json, which reads the names of special tokens.
      date: what the template is told is today; see `ChatTemplate`.

    Raises:
      UsageError: there is none, or the tokenizer would read special tokens as plain text.
    """
    where = f"data.tokenizer={tokenizer.path!r}"
    if not tokenizer.codec.reads_controls:
        raise UsageError(
            f"{where}: a chat template writes special tokens by name, which this kind of file reads"
            " as plain text; expected a tokenizer.json"
        )
    file = resolve_path(tokenizer.path, "data.tokenizer").parent / "chat_template.jinja"
    source = tokenizer.settings.get("chat_template")
    if file.is_file():
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{where}: chat_template.jinja cannot be read: {error}") from error
    elif isinstance(source, list):  # several by name
        named = [entry for entry in source if isinstance(entry, dict)]
        source = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if not isinstance(source, str):
        raise UsageError(
            f"{where}: no chat template; expected chat_template.jinja beside the tokenizer or"
            " chat_template in tokenizer_config.json"
        )
    bos, eos = tokenizer.token(tokenizer.bos), tokenizer.token(tokenizer.eos)
    return ChatTemplate(source, where, bos, eos, date)


def encode(
    tokenizer: Tokenizer, chat: ChatTemplate, messages: Sequence[Mapping[str, Any]], *, where: str
) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation, and which the assistant wrote.

    A turn of the assistant begins after what the template opens it with and ends with its last
    special token, such as "<|im_end|>"; white space that the template puts after it does not count.
    Where no special token ends it, it ends where the next turn begins.

    Args:
      tokenizer: what `chat` was made from.
      chat: the template.
      messages: the conversation, at least one message by "assistant".
      where: how an error begins, such as "data.path='x.jsonl': line 3".

    Returns:
      (ids, written): int [n] and bool [n]. Nothing is added to what the template writes.

    Raises:
      UsageError: `messages` is no conversation, the assistant says nothing in it, the template
        refuses it, or the tokens of a part are not a prefix of the tokens of the whole.
    """
    check(messages, where)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    try:
        texts = [chat.render(messages)]
        for turn in turns:
            texts.append(chat.render(messages[:turn], opening=True))
            texts.append(chat.render(messages[: turn + 1]))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    whole, *parts = tokenizer.encode_batch(texts)
    written = [False] * len(whole)
    for number, turn in enumerate(turns):
        opened, closed = parts[2 * number : 2 * number + 2]
        for part, text in ((opened, texts[2 * number + 1]), (closed, texts[2 * number + 2])):
            if whole[: len(part)] != part:
                fault = (
                    "the tokenizer joins it with its neighbours in one token"
                    if texts[0].startswith(text)
                    else "the template writes it in another way when more follows"
                )
                raise UsageError(
                    f"{where}: what the assistant wrote in message {turn} cannot be told: {fault};"
                    " expected a template that only adds to what it wrote, between special tokens"
                )
        stop = len(closed)
        controls = [i for i in range(len(opened), stop) if whole[i] in tokenizer.codec.controls]
        if controls and not tokenizer.decode(whole[controls[-1] + 1 : stop]).strip():
            stop = controls[-1] + 1
        written[len(opened) : stop] = [True] * (stop - len(opened))
    return whole, written


def check(messages: object, where: str) -> None:
    """Refuses what is no conversation, or one in which the assistant says nothing."""
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError(f"{where}: messages is {shortened(messages)}; {_MESSAGES}")
    for number, message in enumerate(messages):
        fields = message if isinstance(message, dict) else {}
        if not all(is_unicode(fields.get(name)) for name in ("role", "content")):
            raise UsageError(f"{where}: message {number} is {shortened(message)}; {_MESSAGES}")
    if all(message["role"] != "assistant" for message in messages):
        raise UsageError(f"{where}: no message by the assistant; expected at least one to learn")


def _tojson(value: object, indent: int | None = None, **options: Any) -> str:
    """JSON as transformers writes it: no escapes for HTML or for other scripts."""
    return json.dumps(value, ensure_ascii=options.get("ensure_ascii", False), indent=indent)


def _raise(message: str) -> None:
    raise UsageError(message)
