"""tokenizer.json, as the library `tokenizers` reads it.

What the file says of truncation, padding and dropout is put aside: a document is never cut unseen,
and the same text always gives the same ids.
"""

import contextlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Sequence

import tokenizers

from distill_jax.data.text.codec import Codec, refused
from distill_jax.errors import UsageError

EXPECTED = "a whole tokenizer.json, as `tokenizers` or `transformers` writes it"

# What decides which ids a text has; the decoder and the post-processor change none of them.
_DECIDING = ("added_tokens", "normalizer", "pre_tokenizer", "model")

_redirecting = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is written to stderr inside: a panic prints its own report, which the error repeats.

    The report comes from Rust, so that the file descriptor itself has to be turned away.
    """
    with _redirecting, open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def load(path: pathlib.Path, where: str) -> Codec:
    """Reads a tokenizer.json.

    Args:
      path: the file.
      where: how an error begins, such as "data.tokenizer='x/tokenizer.json'".

    Raises:
      UsageError: the file cannot be read, is truncated or of another kind, makes the parser panic,
        or describes a tokenizer that cannot encode.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: cannot be read: {error}; expected {EXPECTED}") from error
    try:
        with _quiet():
            tokenizer = tokenizers.Tokenizer.from_str(text)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            if getattr(tokenizer.model, "dropout", None) is not None:
                tokenizer.model.dropout = None
            # Some faults show only here: a rule that names a token which it does not define.
            plain = tokenizer.encode("a", add_special_tokens=False).ids
            dressed = tokenizer.encode("a", add_special_tokens=True).ids
            names = tokenizer.get_vocab(with_added_tokens=True)
    except BaseException as error:
        raise refused(where, error, EXPECTED) from error
    if not names:
        raise UsageError(f"{where}: holds no token; expected {EXPECTED}")

    # A file of a few bytes can name the id 2**32 - 1.
    size = max(names.values()) + 1
    if size > 2 * len(names) + 2**16:
        raise UsageError(
            f"{where}: {len(names)} tokens have ids up to {size - 1}; expected ids without gaps"
        )
    tokens: list[str | None] = [None] * size
    for name, number in names.items():
        tokens[number] = name
    content = json.loads(text)
    canonical = json.dumps(
        {key: content.get(key) for key in _DECIDING}, sort_keys=True, ensure_ascii=True
    )
    added = tokenizer.get_added_tokens_decoder()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        try:
            batch = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as error:
            raise refused(where, error, "a tokenizer that has a token for every text") from error
        return [encoding.ids for encoding in batch]

    def decode(ids: Iterable[int]) -> str:
        return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    at = (i for i in range(len(dressed)) if dressed[i : i + len(plain)] == plain)
    return Codec(
        encode=encode,
        decode=decode,
        tokens=tuple(tokens),
        controls=frozenset(number for number, token in added.items() if token.special),
        reads_controls=True,
        bos=None,
        eos=None,
        pad=None,
        before=tuple(dressed[: next(at, 0)]),
        canonical=canonical.encode(),
    )
