"""What every kind of tokenizer file gives: text to ids, ids to text, and what each id means.

One file a kind: tokenizer_json.py, llama2c.py, sentencepiece_model.py. What the rest of the code
sees is the `Tokenizer` of tokenizer.py, which adds the special ids.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from distill_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Codec:
    """A vocabulary and what turns text into its ids.

    Attributes:
      encode: ids of each of several texts, nothing put before or after them.
      decode: the text of ids; control ids stand for none.
      tokens: what each id is called, spaces written "▁" or "Ġ" as the file has them; None where an
        id has no token. Its length is the real size of the vocabulary, the largest id plus one.
      controls: ids that stand for no text, such as "</s>".
      reads_controls: whether the name of a control token in a text becomes that token.
      bos, eos, pad: the ids that the file itself names so.
      before: the ids that the file's own rule puts before a text.
      canonical: bytes that two files share if and only if they encode alike.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Iterable[int]], str]
    tokens: tuple[str | None, ...]
    controls: frozenset[int]
    reads_controls: bool
    bos: int | None
    eos: int | None
    pad: int | None
    before: tuple[int, ...]
    canonical: bytes


def shortened(value: object) -> str:
    """`repr`, of no more than 80 characters: what a file says may be long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def is_unicode(value: object) -> bool:
    """Whether a value is a text, and one that UTF-8 can write: JSON may hold half a character."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_panic(error: BaseException) -> bool:
    """Whether Rust code inside a library panicked; PyO3's exception is no `Exception`, on purpose.

    Anything else that is no `Exception`, such as `KeyboardInterrupt`, is not for us to catch.
    """
    return type(error).__name__ == "PanicException"


def refused(where: str, error: BaseException, expected: str) -> UsageError:
    """The error for what a library could not read; raises `error` again if it is not its kind.

    Args:
      where: the start of the line, such as "data.tokenizer='x.json'".
      error: what the library raised, a panic included.
      expected: what would have been accepted.
    """
    if not isinstance(error, Exception) and not is_panic(error):
        raise error
    return UsageError(f"{where}: {shortened(str(error))[1:-1]}; expected {expected}")
