"""SentencePiece models (tokenizer.model, spiece.model), read by the library `sentencepiece`."""

import pathlib
from collections.abc import Iterable, Sequence

from distill_jax.data.text.codec import Codec, usage_error
from distill_jax.errors import UsageError

EXPECTED = "a SentencePiece model"


def load(path: pathlib.Path, location: str) -> Codec:
    """Reads a .model file.

    Args:
      path: the file.
      location: the start of an error line, such as "data.tokenizer='x/tokenizer.model'".

    Raises:
      UsageError: the library is not installed, or the file cannot be read or is of another kind.
    """
    try:
        import sentencepiece  # optional: most checkpoints have a tokenizer.json
    except ImportError as error:
        raise UsageError(
            f"{location}: reading a SentencePiece model needs a package that is not installed;"
            " expected `pip install distill_jax[sentencepiece]`, or a tokenizer.json next to it"
        ) from error
    try:
        data = path.read_bytes()
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
    except OSError as error:
        raise UsageError(
            f"{location}: cannot be read: {error.strerror}; expected {EXPECTED}"
        ) from error
    except Exception as error:  # the library raises RuntimeError, TypeError and its own
        raise usage_error(location, error, EXPECTED) from error

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return model.encode(list(texts))

    def decode(ids: Iterable[int]) -> str:
        return model.decode([int(i) for i in ids if 0 <= i < size and int(i) not in controls])

    size = model.get_piece_size()
    controls = frozenset(i for i in range(size) if model.is_control(i) or model.is_unknown(i))
    named = {"bos": model.bos_id(), "eos": model.eos_id(), "pad": model.pad_id()}
    return Codec(
        encode=encode,
        decode=decode,
        tokens=tuple(model.id_to_piece(i) for i in range(size)),
        control_ids=controls,
        parses_control_tokens=False,
        prefix_ids=(named["bos"],) if named["bos"] >= 0 else (),
        canonical=data,
        **{role: number if number >= 0 else None for role, number in named.items()},
    )
