"""From records to token ids: all documents in one flat array, with a mask of the tokens to learn.

Left out on purpose: a cache on disk. Tokenising 1.1 MB took 0.5 to 1 second on two cores, and each
token takes five bytes of memory.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from distill_jax.data import order
from distill_jax.data.text import chat as chats
from distill_jax.data.text.sources import Record
from distill_jax.data.text.tokenizer import Tokenizer
from distill_jax.errors import UsageError

# Records tokenised in one call: enough to keep the library's threads busy.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Documents:
    """Tokenised documents.

    Attributes:
      tokens: int32 [N], the ids of all documents, one after the other.
      loss_mask: bool [N], the tokens that have a loss as targets. The first token of a document
        is never a target, whatever its value here.
      offsets: int64 [D + 1]; document d is tokens[offsets[d]:offsets[d + 1]].
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.offsets) - 1

    def take(self, ids: np.ndarray) -> "Documents":
        """The documents at int positions `ids`, in that order."""
        lengths = np.diff(self.offsets)[ids]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        index = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][ids] - offsets[:-1], lengths)
        return Documents(self.tokens[index], self.loss_mask[index], offsets)


def tokenize(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    *,
    chat: chats.ChatTemplate | None = None,
    bos: bool | None = None,
    eos: bool = True,
    prompt_loss: bool = False,
    as_chat: bool = False,
    turns: str = "all",
) -> Documents:
    """Tokenises records.

    A text becomes [bos] text [eos], and all of it has a loss. A prompt with its response becomes
    [bos] prompt response [eos]; the response and eos have a loss. What begins with bos already, or
    ends with a stop id, gets no second one. Prompt and response are tokenised
    together if the prompt's own tokens are a prefix of the result. If a token would cross the
    boundary, the response is tokenised by itself, which is how a model that is given the prompt has
    to write it. A conversation becomes what the template writes, and the assistant's turns have a
    loss; the template alone decides on bos and eos.

    Args:
      records: see sources.py; iterated once.
      tokenizer: the tokenizer.
      chat: the template of conversations; None makes a conversation an error.
      bos: whether to put bos before each text; None follows the tokenizer's default.
      eos: whether to put eos after each text.
      prompt_loss: whether prompts, and everything in conversations, have a loss too.
      as_chat: whether a prompt with its response is a conversation of one turn, which the template
        writes.
      turns: which of the assistant's turns have a loss, see `chat.encode`.

    Returns:
      The documents, one a record, in the order of the records.

    Raises:
      UsageError: no record, a bad one, or a tokenizer without the special token that is wanted.
    """
    bos = tokenizer.adds_bos if bos is None else bos
    before = _special("bos", tokenizer.bos, bos, tokenizer)
    after = _special("eos", tokenizer.eos, eos, tokenizer)
    tokens: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    records = iter(records)
    while chunk := list(itertools.islice(records, CHUNK)):
        if as_chat:
            chunk = [_as_conversation(record) for record in chunk]
        for ids, mask in _encode(chunk, tokenizer, chat, before, after, turns):
            tokens.append(np.asarray(ids, np.int32))
            masks.append(np.ones(len(ids), bool) if prompt_loss else np.asarray(mask, bool))
    if not tokens:
        raise UsageError("data.path: holds no record; expected at least one document")
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    return Documents(np.concatenate(tokens), np.concatenate(masks), offsets)


def _special(name: str, number: int | None, wanted: bool, tokenizer: Tokenizer) -> list[int]:
    """[the id of a special token] if it is wanted, else []."""
    if not wanted:
        return []
    if number is None:
        raise UsageError(
            f"data.{name}=True: {tokenizer.path!r} names no {name} token; expected False, or"
            f" {name}_token in tokenizer_config.json"
        )
    return [number]


def between(tokenizer: Tokenizer, ids: list[int], before: list[int], after: list[int]) -> list[int]:
    """The ids of a text with bos and eos around them, but for those that it has already.

    Args:
      tokenizer: of the ids.
      ids: of the text.
      before: [bos], or [].
      after: [eos], or []. White space after a stop id, as templates write it, ends a text too.
    """
    if ids[: len(before)] == before:
        before = []
    stops = [i for i, number in enumerate(ids) if number in tokenizer.stop_ids]
    if stops and not tokenizer.decode(ids[stops[-1] + 1 :]).strip():
        after = []
    return [*before, *ids, *after]


def _as_conversation(record: Record) -> Record:
    """A prompt with its response as messages; a conversation as it is."""
    if record.messages is not None:
        return record
    if record.prompt is None:
        raise UsageError(
            f"data.chat=True: {record.location} is a text; expected a prompt with its response, or "
            "data.chat=False"
        )
    pair = (("user", record.prompt), ("assistant", record.response))
    messages = [{"role": role, "content": content} for role, content in pair]
    return dataclasses.replace(record, messages=messages, prompt=None, response=None)


def _encode(
    records: list[Record],
    tokenizer: Tokenizer,
    chat: chats.ChatTemplate | None,
    before: list[int],
    after: list[int],
    turns: str,
) -> Iterator[tuple[list[int], list[bool]]]:
    """(ids, loss mask) of each record."""
    texts: list[str] = []
    for record in records:
        if record.text is not None:
            texts.append(record.text)
        elif record.prompt is not None and record.response is not None:
            texts += [record.prompt, record.prompt + record.response, record.response]
    encoded = iter(tokenizer.encode_batch(texts))
    for record in records:
        if record.text is not None:
            ids = between(tokenizer, next(encoded), before, after)
            yield ids, [True] * len(ids)
        elif record.messages is None:
            prompt, joined, response = next(encoded), next(encoded), next(encoded)
            if joined[: len(prompt)] == prompt:
                response = joined[len(prompt) :]
            head = between(tokenizer, prompt, before, [])
            tail = between(tokenizer, response, [], after)
            yield head + tail, [False] * len(head) + [True] * len(tail)
        elif chat is None:
            raise UsageError(
                f"{record.location}: is a conversation, and no chat template is given; expected a"
                " tokenizer with one, or records with text, or with prompt and response"
            )
        else:
            yield chats.encode(
                tokenizer,
                chat,
                record.messages,
                location=record.location,
                tools=record.tools,
                turns=turns,
            )


class _OneClass(NamedTuple):
    """The class of every document, for `order.splits`, which stratifies by class."""

    num_classes: int = 1
    class_names: tuple[str, ...] = ("document",)


@dataclasses.dataclass(frozen=True)
class _Unlabelled:
    """Documents as the labelled examples that `order.splits` divides, all of one class."""

    count: int
    info: _OneClass = _OneClass()

    def __len__(self) -> int:
        return self.count

    def labels(self) -> np.ndarray:
        return np.zeros(self.count, np.int32)


def split(
    documents: Documents, *, validation: float | int, split_seed: int, fraction: float = 1.0
) -> tuple[Documents, Documents]:
    """Divides documents at random into a training and a validation set.

    Args:
      documents: all of them.
      validation: the part held out for validation: a float in [0, 1) or a count of documents.
      split_seed: the seed of the division.
      fraction: the part of the rest that is trained on, in (0, 1].

    Returns:
      (train, validation), each in the order of `documents`; no document is in both.

    Raises:
      UsageError: a value out of its range, or nothing left to train on.
    """
    train, held_out = order.splits(
        _Unlabelled(len(documents)),
        validation=validation,
        split_seed=split_seed,
        fraction=fraction,
    )
    return documents.take(train), documents.take(held_out)
