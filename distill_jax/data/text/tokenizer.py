"""Tokenizers: text to ids and back, the special ids, and whether two tokenizers are one.

Three kinds of files are read, each in a file of its own: tokenizer.json, .model (SentencePiece) and
.bin (llama2.c). Nothing in them is executed. Left out on purpose: vocab.json with merges.txt, which
`transformers` converts, and the padded size of a model's head, which is the model's business.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill_jax.data.text import llama2c, sentencepiece_model, tokenizer_json
from distill_jax.data.text.codec import Codec, shortened
from distill_jax.errors import UsageError
from distill_jax.storage import local_copy, resolve_path

_LOADERS = {
    ".json": tokenizer_json.load,
    ".model": sentencepiece_model.load,
    ".bin": llama2c.load,
}
# What a folder is searched for, the first that is there.
_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

# Where tokenizers differ: runs of digits and spaces, capitals, contractions, accents, scripts.
_PROBE = (
    "It's 1234567 o'clock:\n\n\tdef  f(x_1):   return x**2  # ÉCOLE naïve 東京 Москва 🙂 don't\n"
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with its special ids.

    Attributes:
      path: the file that it was read from.
      codec: what encodes.
      vocab_size: the number of real ids, the largest plus one. A model's may be padded beyond it.
      bos, eos, pad: the special ids, or None.
      stop_ids: every id that ends a generated text, eos first; sorted after it.
      adds_bos: whether bos is put before a text by default.
      settings: the content of tokenizer_config.json, {} where there is none.
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
        """The ids of a text; neither bos nor eos is added.

        The name of a special token inside the text, such as "</s>", becomes that token in a
        tokenizer.json, as in `transformers`, and stays text in the other kinds.
        """
        return self.codec.encode([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, which is quicker for many."""
        return self.codec.encode(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ids stand for none, damaged UTF-8 becomes U+FFFD."""
        return self.codec.decode(ids)

    def token(self, number: int | None) -> str:
        """The name of an id; "" for None and for an id without one."""
        in_range = number is not None and 0 <= number < self.vocab_size
        return (self.codec.tokens[number] or "") if in_range else ""


def load(path: str | os.PathLike, *, key: str = "data.tokenizer") -> Tokenizer:
    """Reads a tokenizer.

    The special ids come from, the first that says something: tokenizer_config.json,
    special_tokens_map.json, generation_config.json, config.json beside the file, the file itself.

    Args:
      path: a tokenizer.json, .model or .bin file, or a folder that holds tokenizer.json or
        tokenizer.model.
      key: what an error calls the path, such as "teacher.path".

    Returns:
      The tokenizer.

    Raises:
      UsageError: nothing to read there, an unreadable file, or a special token that is not in the
        vocabulary.
    """
    where = f"{key}={str(path)!r}"
    file = resolve_path(path, key).expanduser()
    if file.is_dir():
        found = next((file / name for name in _FILES if (file / name).is_file()), None)
        if found is None:
            raise UsageError(
                f"{where}: no tokenizer in this folder; expected {_FILES[0]} or .model"
            )
        file = found
    elif not file.is_file():
        raise UsageError(f"{where}: no such file or folder; expected a tokenizer")
    loader = _LOADERS.get(file.suffix)
    if loader is None:
        raise UsageError(f"{where}: unknown kind of tokenizer; expected .json, .model or .bin")
    with local_copy(file.parent, (file.name,)) as here:
        codec = loader(here / file.name, where)

    settings = _json(file.parent / "tokenizer_config.json", key)
    special = _json(file.parent / "special_tokens_map.json", key)
    generation = _json(file.parent / "generation_config.json", key)
    config = _json(file.parent / "config.json", key)
    numbers = {name: i for i, name in enumerate(codec.tokens) if name is not None}

    def ids(role: str) -> list[int]:
        for source in (settings, special):
            name = source.get(f"{role}_token")
            name = name.get("content") if isinstance(name, dict) else name
            if isinstance(name, str) and name in numbers:
                return [numbers[name]]
            # A padding token that is missing does no harm: no loss reads padding.
            if isinstance(name, str) and role != "pad":
                raise UsageError(
                    f"{where}: {role}_token {shortened(name)} is not in the vocabulary;"
                    " expected one of its tokens"
                )
        return listed(role, generation) or listed(role, config) or own(role)

    def listed(role: str, source: Mapping[str, Any]) -> list[int]:
        value = source.get(f"{role}_token_id")
        values = value if isinstance(value, list) else [] if value is None else [value]
        for number in values:
            if type(number) is not int or not 0 <= number < len(codec.tokens):
                if role == "pad":  # -1 in the first Llama's files
                    return []
                raise UsageError(
                    f"{where}: {role}_token_id is {shortened(value)}; expected an id in"
                    f" [0, {len(codec.tokens)})"
                )
        return values

    def own(role: str) -> list[int]:
        number = getattr(codec, role)
        return [] if number is None else [number]

    bos, eos, pad = (next(iter(ids(role)), None) for role in ("bos", "eos", "pad"))
    others = {*ids("eos"), *listed("eos", generation)} - {eos}
    digest = hashlib.sha256(codec.canonical)
    digest.update(json.dumps([bos, eos, pad]).encode())
    adds = settings.get("add_bos_token")
    return Tokenizer(
        path=str(file),
        codec=codec,
        vocab_size=len(codec.tokens),
        bos=bos,
        eos=eos,
        pad=pad,
        stop_ids=(() if eos is None else (eos,)) + tuple(sorted(others)),
        adds_bos=bos is not None
        and (adds if isinstance(adds, bool) else codec.before[:1] == (bos,)),
        settings=settings,
        fingerprint=digest.hexdigest(),
    )


def same_vocabulary(teacher: Tokenizer, student: Tokenizer, *, key: str = "student.path") -> int:
    """The number of ids that teacher and student share, if their tokenizers are one.

    They are if every id below the smaller size has the same token in both and a probing text has
    the same ids; the larger may have more tokens, and a model's head may be padded further.

    Args:
      teacher: the teacher's tokenizer.
      student: the student's.
      key: what an error calls the student.

    Returns:
      How many first ids mean the same in both; distributions are compared on these alone.

    Raises:
      UsageError: the tokenizers differ; the line names the way that remains.
    """
    shared = min(teacher.vocab_size, student.vocab_size)
    if teacher.codec.canonical == student.codec.canonical:
        return shared
    pairs = zip(teacher.codec.tokens, student.codec.tokens, strict=False)
    unlike = [i for i, (theirs, ours) in enumerate(pairs) if theirs != ours]
    if unlike:
        first = unlike[0]
        fault = (
            f"{len(unlike)} of {shared} ids differ, the first {first}:"
            f" {shortened(student.codec.tokens[first])} here,"
            f" {shortened(teacher.codec.tokens[first])} there"
        )
    elif teacher.encode(_PROBE) != student.encode(_PROBE):
        fault = "the tokens are the same, but text is cut into them in another way"
    else:
        return shared
    raise UsageError(
        f"{key}={student.path!r}: not the tokenizer of the teacher, {teacher.path!r} ({fault});"
        " expected the same tokenizer, or sequence-level distillation: training on text that the"
        " teacher generated"
    )


def _json(path: pathlib.Path, key: str) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{key}={str(path)!r}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{key}={str(path)!r}: holds {shortened(content)}; expected an object")
    return content
