"""What a tokenizer file provides: text to ids, ids to text, and the token of each id.

Each format has a module that makes a `Codec`: tokenizer_json.py, llama2c.py and
sentencepiece_model.py. The rest of the code uses the `Tokenizer` of tokenizer.py, which adds the
special ids.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeGuard

from distill_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Codec:
    """A vocabulary with its encoder and decoder.

    Attributes:
      encode: ids of each of several texts, without ids before or after the text.
      decode: the text of ids; control ids are skipped.
      tokens: the token of each id, spaces written "▁" or "Ġ" as in the file; None for an id without
        a token. The length is the real vocabulary size, the largest id plus one.
      control_ids: ids that stand for no text, such as that of "</s>".
      parses_control_tokens: whether the name of a control token in a text becomes that token.
      bos, eos, pad: the ids that the file itself gives these roles, or None.
      prefix_ids: the ids that the file's own rule puts before a text.
      canonical: bytes that are equal for two files if and only if they encode alike.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Iterable[int]], str]
    tokens: tuple[str | None, ...]
    control_ids: frozenset[int]
    parses_control_tokens: bool
    bos: int | None
    eos: int | None
    pad: int | None
    prefix_ids: tuple[int, ...]
    canonical: bytes


def short_repr(value: object) -> str:
    """`repr`, cut to 80 characters: a value from a file may be long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def is_unicode(value: object) -> TypeGuard[str]:
    """Whether a value is a string that UTF-8 can encode: JSON may hold half a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_panic(error: BaseException) -> bool:
    """Whether Rust code inside a library panicked.

    PyO3 derives its exception from `BaseException` on purpose. Any other that is no `Exception`,
    such as `KeyboardInterrupt`, must not be caught.
    """
    return type(error).__name__ == "PanicException"


def usage_error(location: str, error: BaseException, expected: str) -> UsageError:
    """A `UsageError` for input that a library could not read.

    Args:
      location: the start of the error line, such as "data.tokenizer='x.json'".
      error: what the library raised, a panic included.
      expected: what would have been accepted.

    Raises:
      BaseException: `error` itself, if it is neither an `Exception` nor a panic.
    """
    if not isinstance(error, Exception) and not is_panic(error):
        raise error
    return UsageError(f"{location}: {short_repr(str(error))[1:-1]}; expected {expected}")
