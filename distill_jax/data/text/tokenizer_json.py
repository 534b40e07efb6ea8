"""tokenizer.json, read by the library `tokenizers`.

The file's settings for truncation, padding and dropout are ignored: a document is never cut
silently, and the same text always gives the same ids.
"""

import base64
import contextlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers

from distill_jax.data.text.codec import Codec, usage_error
from distill_jax.errors import UsageError

EXPECTED = "a whole tokenizer.json, as `tokenizers` or `transformers` writes it"

# The parts of the file that decide the ids of a text; the decoder and the post-processor do not.
_DECIDING = ("added_tokens", "normalizer", "pre_tokenizer", "model")

#: How many times as long as a text its tokenizer's rules may make it; published files need a few.
MOST_GROWTH = 1000

_redirecting = threading.Lock()


def load(path: pathlib.Path, location: str) -> Codec:
    """Reads a tokenizer.json.

    Args:
      path: the file.
      location: the start of an error line, such as "data.tokenizer='x/tokenizer.json'".

    Raises:
      UsageError: the file cannot be read, is truncated or of another kind, makes the parser panic,
        or describes a tokenizer that cannot encode.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{location}: cannot be read: {error}; expected {EXPECTED}") from error
    try:
        _check_growth(text)
        with _silent_stderr():
            tokenizer, vocabulary, prefix_ids = _parse(text)
    except BaseException as error:
        raise usage_error(location, error, EXPECTED) from error
    tokens = _tokens(vocabulary, location)
    content = json.loads(text)
    canonical = json.dumps(
        {key: content.get(key) for key in _DECIDING}, sort_keys=True, ensure_ascii=True
    )
    added = tokenizer.get_added_tokens_decoder()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        try:
            batch = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as error:
            expected = "a tokenizer that has a token for every text"
            raise usage_error(location, error, expected) from error
        return [encoding.ids for encoding in batch]

    def decode(ids: Iterable[int]) -> str:
        return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    return Codec(
        encode=encode,
        decode=decode,
        tokens=tokens,
        control_ids=frozenset(number for number, token in added.items() if token.special),
        parses_control_tokens=True,
        bos=None,
        eos=None,
        pad=None,
        prefix_ids=prefix_ids,
        canonical=canonical.encode(),
    )


def _check_growth(text: str) -> None:
    """ValueError for rules that make a text `MOST_GROWTH` times as long or longer.

    Each replacement may lengthen what the one before it has made, so a file of a kilobyte can ask
    for more memory than there is.
    """
    content = json.loads(text)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth, open_parts = 1, [content.get(part) if isinstance(content, dict) else None]
        while open_parts:
            rule = open_parts.pop()
            if isinstance(rule, list):
                open_parts += rule
            elif isinstance(rule, dict):
                open_parts += (value for value in rule.values() if isinstance(value, list | dict))
                growth *= _growth_of(rule)
            if growth > MOST_GROWTH:
                raise ValueError(f"its {part} makes a text over {MOST_GROWTH} times as long")


def _growth_of(rule: Mapping[str, Any]) -> int:
    """By how much a rule may multiply the length of a text, at least 1.

    The library takes a rule of an unknown type, or without one, for any that has its fields.
    """
    kinds: dict[str, tuple[set[str], Callable[[Mapping[str, Any]], int]]] = {
        "Replace": ({"pattern", "content"}, _growth_of_replacement),
        "Prepend": ({"prepend"}, lambda rule: len(str(rule["prepend"]))),  # before a whole text
        "Precompiled": ({"precompiled_charsmap"}, _longest_of_table),
    }
    kind, growth = rule.get("type"), 1
    for name, (fields, measure) in kinds.items():
        if fields <= rule.keys() and (kind == name or kind not in kinds):
            growth *= max(1, measure(rule))
    return growth


def _growth_of_replacement(rule: Mapping[str, Any]) -> int:
    new, pattern = len(str(rule["content"])), rule.get("pattern")
    old = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(old, str) and old:
        return -(-new // len(old))
    return new + 1  # an empty match may be between any two characters


def _longest_of_table(rule: Mapping[str, Any]) -> int:
    """The characters of the longest replacement in a table of SentencePiece.

    Base64 of the bytes of a trie, their number before them, and then the replacements, each ended
    by a zero byte. One replaces one character or several.
    """
    table = base64.b64decode(str(rule["precompiled_charsmap"] or ""))
    size = int.from_bytes(table[:4], "little")
    replacements = table[4 + size :].split(b"\0")
    return max(len(one.decode(errors="replace")) for one in replacements)


class _Parsed(NamedTuple):
    tokenizer: tokenizers.Tokenizer
    vocabulary: dict[str, int]
    prefix_ids: tuple[int, ...]  # that the post-processor puts before a text


def _parse(text: str) -> _Parsed:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    # Some faults show only when encoding: a rule that names a token which it does not define.
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    processed = tokenizer.encode("a", add_special_tokens=True).ids
    starts = (i for i in range(len(processed)) if processed[i : i + len(plain)] == plain)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return _Parsed(tokenizer, vocabulary, tuple(processed[: next(starts, 0)]))


def _tokens(vocabulary: Mapping[str, int], location: str) -> tuple[str | None, ...]:
    """The token of each id, None for an id without one."""
    if not vocabulary:
        raise UsageError(f"{location}: holds no token; expected {EXPECTED}")
    # A file of a few bytes can name the id 2**32 - 1.
    size = max(vocabulary.values()) + 1
    if size > 2 * len(vocabulary) + 2**16:
        raise UsageError(
            f"{location}: {len(vocabulary)} tokens have ids up to {size - 1}; expected ids without"
            " gaps"
        )
    tokens: list[str | None] = [None] * size
    for token, number in vocabulary.items():
        tokens[number] = token
    return tuple(tokens)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discards what is written to stderr: a panic prints a report, which the error repeats.

    Rust code writes the report, so the file descriptor itself has to be redirected.
    """
    with _redirecting, open(os.devnull, "w") as null:
        saved = os.dup(2)
        try:
            os.dup2(null.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
