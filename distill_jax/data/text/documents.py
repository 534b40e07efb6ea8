"""From records to token ids: every document in one flat array, with what is learned of each.

Left out on purpose: a cache on disk. Tokenising 1.1 MB took half a second to a second on two cores,
and a token takes five bytes of memory.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from distill_jax.data import order
from distill_jax.data.images.sources.base import Info
from distill_jax.data.text import chat as chats
from distill_jax.data.text.sources import Record
from distill_jax.data.text.tokenizer import Tokenizer
from distill_jax.errors import UsageError

# Records that are tokenised at a time: enough to keep the library's threads busy.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Documents:
    """Tokenised documents.

    Attributes:
      tokens: int32 [N], the ids of all documents, one after the other.
      loss_mask: bool [N], the tokens that a model is to predict; a document's first is never
        predicted, whatever stands here.
      offsets: int64 [D + 1], document d is tokens[offsets[d]:offsets[d + 1]].
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
) -> Documents:
    """Tokenises records.

    A text is [bos] text [eos], and all of it is learned. A prompt and its response are [bos] prompt
    response [eos], and the response and eos are learned. Where the tokens of the prompt are the
    first of those of prompt and response together, the rest is the response; where a token would
    cross the border, the response is tokenised by itself, as a model that was given the prompt has
    to write it. A conversation is what the template writes, and the turns of the assistant are
    learned; the template alone decides on bos and eos.

    Args:
      records: see sources.py; read once.
      tokenizer: a tokenizer.
      chat: the template of conversations; where it is None, a conversation is refused.
      bos: put bos before each text; None does what the tokenizer does by default.
      eos: put eos after each text.
      prompt_loss: learn prompts too, and in conversations everything.

    Returns:
      The documents, one a record, in the records' order.

    Raises:
      UsageError: no record, a bad one, or a tokenizer without the special token that is asked for.
    """
    bos = tokenizer.adds_bos if bos is None else bos
    for name, wanted in (("bos", bos), ("eos", eos)):
        if wanted and getattr(tokenizer, name) is None:
            raise UsageError(
                f"data.{name}=True: {tokenizer.path!r} names no {name} token; expected False, or"
                f" {name}_token in tokenizer_config.json"
            )
    before = [tokenizer.bos] if bos else []
    after = [tokenizer.eos] if eos else []
    tokens: list[np.ndarray] = []
    learned: list[np.ndarray] = []
    records = iter(records)
    while part := list(itertools.islice(records, CHUNK)):
        for ids, flags in _encoded(part, tokenizer, chat, before, after):
            tokens.append(np.asarray(ids, np.int32))
            learned.append(np.ones(len(ids), bool) if prompt_loss else np.asarray(flags, bool))
    if not tokens:
        raise UsageError("data.path: holds no record; expected at least one document")
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    return Documents(np.concatenate(tokens), np.concatenate(learned), offsets)


def _encoded(
    records: list[Record],
    tokenizer: Tokenizer,
    chat: chats.ChatTemplate | None,
    before: list[int],
    after: list[int],
) -> Iterator[tuple[list[int], list[bool]]]:
    """(ids, learned) of each record."""
    texts: list[str] = []
    for record in records:
        if record.text is not None:
            texts.append(record.text)
        elif record.messages is None:
            texts += [record.prompt, record.prompt + record.response, record.response]
    encoded = iter(tokenizer.encode_batch(texts))
    for record in records:
        if record.text is not None:
            ids = [*before, *next(encoded), *after]
            yield ids, [True] * len(ids)
        elif record.messages is None:
            prompt, joined, alone = next(encoded), next(encoded), next(encoded)
            response = joined[len(prompt) :] if joined[: len(prompt)] == prompt else alone
            head, tail = [*before, *prompt], [*response, *after]
            yield head + tail, [False] * len(head) + [True] * len(tail)
        elif chat is None:
            raise UsageError(
                f"{record.location}: is a conversation, and no chat template is given; expected a"
                " tokenizer with one, or records with text, or with prompt and response"
            )
        else:
            yield chats.encode(tokenizer, chat, record.messages, where=record.location)


@dataclasses.dataclass(frozen=True)
class _Unlabelled:
    """Documents as `order.splits` wants examples: all of one class."""

    count: int
    info: Info = Info("text", num_classes=1, image_shape=(0, 0, 0), class_names=("document",))

    def __len__(self) -> int:
        return self.count

    def labels(self) -> np.ndarray:
        return np.zeros(self.count, np.int32)


def split(
    documents: Documents, *, validation: float | int, split_seed: int, fraction: float = 1.0
) -> tuple[Documents, Documents]:
    """Divides documents into what trains and what chooses, at random by `split_seed`.

    Args:
      documents: all of them.
      validation: the part held out: a float in [0, 1) or a count of documents.
      split_seed: the seed of the choice.
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
