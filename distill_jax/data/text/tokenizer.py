"""Tokenizers: text to ids and back, the special ids, and whether two tokenizers are the same.

Three file formats are read, each by a module of its own: tokenizer.json, .model (SentencePiece) and
.bin (llama2.c). Nothing in them is executed. Left out on purpose: vocab.json with merges.txt, which
`transformers` converts, and the padded vocabulary size of a model, which belongs to the model.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill_jax.data.text import llama2c, sentencepiece_model, tokenizer_json
from distill_jax.data.text.codec import Codec, short_repr
from distill_jax.data.text.special_tokens import SpecialTokens
from distill_jax.errors import UsageError
from distill_jax.storage import local_copy, resolve_path

_LOADERS = {
    ".json": tokenizer_json.load,
    ".model": sentencepiece_model.load,
    ".bin": llama2c.load,
}
# The file names that are looked for in a folder; the first that exists is read.
_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

# Text on which tokenizers differ: runs of digits and spaces, capitals, contractions, accents,
# scripts.
_PROBE = (
    "It's 1234567 o'clock:\n\n\tdef  f(x_1):   return x**2  # ÉCOLE naïve 東京 Москва 🙂 don't\n"
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with its special ids.

    Attributes:
      path: the file that it was read from.
      codec: encodes and decodes.
      vocab_size: the number of real ids, the largest plus one. A model may pad its own beyond this.
      bos, eos, pad: the special ids, or None.
      stop_ids: every id that ends a generated text: eos first, the rest sorted.
      adds_bos: whether bos is put before a text by default.
      settings: the content of tokenizer_config.json; {} if there is none.
      fingerprint: SHA-256, in hex, of what decides the ids of a text, and of the special ids.
    """

    path: str
    codec: Codec = dataclasses.field(repr=False)
    vocab_size: int
    bos: int | None
    eos: int | None
    pad: int | None
    stop_ids: tuple[int, ...]
    adds_bos: bool
    settings: Mapping[str, Any] = dataclasses.field(repr=False)
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without bos and eos.

        The name of a special token inside the text, such as "</s>", becomes that token with a
        tokenizer.json, as in `transformers`; with the other formats it stays plain text.
        """
        return self.codec.encode([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text; faster than one call a text."""
        return self.codec.encode(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ids are skipped, invalid UTF-8 becomes U+FFFD."""
        return self.codec.decode(ids)

    def token(self, number: int | None) -> str:
        """The token of an id; "" for None and for an id without a token."""
        if number is None or not 0 <= number < self.vocab_size:
            return ""
        return self.codec.tokens[number] or ""


def load(path: str | os.PathLike, *, key: str = "data.tokenizer") -> Tokenizer:
    """Reads a tokenizer.

    The special ids come from the first of these that names them: tokenizer_config.json,
    special_tokens_map.json, generation_config.json and config.json, all from the folder of the
    file, and last the file itself.

    Args:
      path: a tokenizer.json, .model or .bin file, or a folder that holds tokenizer.json or
        tokenizer.model.
      key: the config key that errors name, such as "teacher.path".

    Returns:
      The tokenizer.

    Raises:
      UsageError: nothing to read at `path`, an unreadable file, or a special token that is not in
        the vocabulary.
    """
    location = f"{key}={str(path)!r}"
    file = _tokenizer_file(resolve_path(path, key).expanduser(), location)
    loader = _LOADERS.get(file.suffix)
    if loader is None:
        raise UsageError(f"{location}: unknown kind of tokenizer; expected .json, .model or .bin")
    with local_copy(file.parent, (file.name,)) as folder:
        codec = loader(folder / file.name, location)
    special = SpecialTokens.read(file.parent, codec, location=location, key=key)
    bos, eos, pad, stop_ids = special.resolve()
    digest = hashlib.sha256(codec.canonical)
    digest.update(json.dumps([bos, eos, pad]).encode())
    add_bos = special.settings.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = codec.prefix_ids[:1] == (bos,)
    return Tokenizer(
        path=str(file),
        codec=codec,
        vocab_size=len(codec.tokens),
        bos=bos,
        eos=eos,
        pad=pad,
        stop_ids=stop_ids,
        adds_bos=bos is not None and add_bos,
        settings=special.settings,
        fingerprint=digest.hexdigest(),
    )


def _tokenizer_file(path: pathlib.Path, location: str) -> pathlib.Path:
    """The tokenizer file that a path names: itself, or the first known name in a folder."""
    if path.is_dir():
        found = next((path / name for name in _FILES if (path / name).is_file()), None)
        if found is None:
            raise UsageError(
                f"{location}: no tokenizer in this folder; expected {_FILES[0]} or .model"
            )
        return found
    if not path.is_file():
        raise UsageError(f"{location}: no such file or folder; expected a tokenizer")
    return path


def same_vocabulary(teacher: Tokenizer, student: Tokenizer, *, key: str = "student.path") -> int:
    """The number of ids that teacher and student share, if their tokenizers are the same.

    They are the same if every id below the smaller vocabulary size has the same token in both, and
    both give the same ids for a probe text. The larger vocabulary may have more tokens, and a
    model's head may be padded further.

    Args:
      teacher: the teacher's tokenizer.
      student: the student's.
      key: the config key of the student in an error.

    Returns:
      N: ids 0 to N - 1 have the same token in both; distributions are compared on these alone.

    Raises:
      UsageError: the tokenizers differ; the message names the alternative.
    """
    shared = min(teacher.vocab_size, student.vocab_size)
    if teacher.codec.canonical == student.codec.canonical:
        return shared
    pairs = zip(teacher.codec.tokens, student.codec.tokens, strict=False)
    different = [i for i, (first, second) in enumerate(pairs) if first != second]
    if different:
        number = different[0]
        fault = (
            f"{len(different)} of {shared} ids differ, the first {number}:"
            f" {short_repr(student.codec.tokens[number])} for the student,"
            f" {short_repr(teacher.codec.tokens[number])} for the teacher"
        )
    elif teacher.encode(_PROBE) != student.encode(_PROBE):
        fault = "the tokens are the same, but a text is split into them in another way"
    else:
        return shared
    raise UsageError(
        f"{key}={student.path!r}: not the tokenizer of the teacher, {teacher.path!r} ({fault});"
        " expected the same tokenizer, or sequence-level distillation: training on text that the"
        " teacher generated"
    )
