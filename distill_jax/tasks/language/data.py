"""The text of a run: its tokenizer, and the packed rows of its splits."""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from distill_jax import storage
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.tasks.language.networks import decoder_folder


def open_tokenizer(config: ConfigDict) -> tuple[text.Tokenizer, int]:
    """The tokenizer of the data, and how many ids teachers and student share.

    Raises:
      UsageError: there is none, or two of them differ.
    """
    given = [("data.tokenizer", config.data.tokenizer), ("student.path", config.student.path)]
    given += [("teacher.path", str(decoder_folder(path))) for path in config.teacher.path]
    found = [
        (key, text.load_tokenizer(path, key=key))
        for key, path in given
        if path and (key == "data.tokenizer" or _has_tokenizer(path))
    ]
    if not found:
        raise UsageError(
            "data.tokenizer='': neither teacher nor student comes with one; expected the folder or "
            "file of the tokenizer"
        )
    (key, chosen), *others = found
    shared = []
    for name, other in others:
        if name == "teacher.path" != key:
            shared.append(text.same_vocabulary(other, chosen, key=key))
        else:  # the error names the other one, which may be a second teacher's
            shared.append(text.same_vocabulary(chosen, other, key=name))
    return chosen, min([chosen.vocab_size, *shared])


def _has_tokenizer(folder: str) -> bool:
    return any(
        (storage.resolve_path(folder, "teacher.path") / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model")
    )


def check_vocabulary(
    tokenizer: text.Tokenizer, shared: int, decoders: Mapping[str, language.Decoder]
) -> None:
    """UsageError where a decoder has fewer ids than are shared."""
    for name, decoder in decoders.items():
        if decoder.config.vocab_size < shared:
            raise UsageError(
                f"data.tokenizer={tokenizer.path!r}: has {shared} ids, the {name} "
                f"{decoder.config.vocab_size}; expected the tokenizer that it was trained with"
            )


def load_splits(config: ConfigDict, tokenizer: text.Tokenizer, shared: int) -> dict[str, text.Rows]:
    """Packed rows of "train", "validation" (where held out) and "test".

    Args:
      config: resolved.
      tokenizer: of the text.
      shared: how many ids teachers and student share.

    Raises:
      UsageError: a file is not named or cannot be read, nothing is held out for the test, or a
        document has an id that is not shared.
    """

    def documents_of(path: str, key: str) -> text.Documents:
        records = text.read(path, fields=config.data.fields, documents=config.data.documents)
        needed = config.data.chat or text.has_chat_template(tokenizer)
        found = text.tokenize(
            records,
            tokenizer,
            chat=text.load_chat_template(tokenizer) if needed else None,
            eos=tokenizer.eos is not None,
            as_chat=config.data.chat,
            turns=config.data.turns,
        )
        _check_ids(found, tokenizer, shared, f"{key}={path!r}")
        return found

    if not config.data.path:
        raise UsageError("data.path='': expected the file of the training documents")
    held_out, seed = config.data.validation, config.data.split_seed
    train = documents_of(config.data.path, "data.path")
    if config.data.test_path:
        test = documents_of(config.data.test_path, "data.test_path")
    else:
        if not held_out:
            raise UsageError(
                "data.test_path='': with data.validation=0 nothing is held out; expected a file of "
                "test documents"
            )
        # Another seed than that of the validation documents, which are chosen from what is left.
        train, test = text.split(train, validation=held_out, split_seed=seed + 1)
    train, validation = text.split(
        train, validation=held_out, split_seed=seed, fraction=config.data.fraction
    )
    found = {"train": train, "validation": validation, "test": test}
    return {
        name: text.without_unlearned(
            text.pack(
                documents, config.data.length, strategy=config.data.packing, long=config.data.long
            )
        )
        for name, documents in found.items()
        if len(documents)
    }


def _check_ids(
    documents: text.Documents, tokenizer: text.Tokenizer, shared: int, location: str
) -> None:
    """UsageError where a document has an id that a teacher or the student does not have."""
    beyond = np.flatnonzero(documents.tokens >= shared)
    if not len(beyond):
        return
    owners = np.searchsorted(documents.offsets, beyond, side="right")  # counted from 1
    number = int(documents.tokens[beyond[0]])
    raise UsageError(
        f"{location}: {len(np.unique(owners))} of {len(documents)} documents have ids that teacher "
        f"and student do not share, such as {number} ({tokenizer.token(number)!r}) in document "
        f"{owners[0]}; expected ids below {shared}: text without these tokens, or a tokenizer that "
        "both have"
    )


def notes_on(splits: Mapping[str, text.Rows]) -> tuple[str, ...]:
    """Lines about documents and rows that have nothing to learn."""
    lines = []
    for name, rows in splits.items():
        counted = text.summary(rows)
        unlearned, left_out = counted["unlearned_documents"], counted["left_out_rows"]
        if unlearned:
            lines.append(
                f"{unlearned} of {counted['documents']} {name} documents have nothing to learn in "
                f"rows of data.length={rows.length} tokens: no token of a response is left in them"
            )
        if left_out:
            lines.append(
                f"{left_out} {name} rows without a token to learn, such as parts of long prompts, "
                f"are left out; {len(rows)} rows remain"
            )
    return tuple(lines)
