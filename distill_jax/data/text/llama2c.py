"""The .bin vocabularies of llama2.c: byte-pair encoding by scores, in a few lines of Python.

The file is, little-endian: int32, the length of the longest token; then for each id float32, its
score, int32, its length in bytes, and the bytes. Ids 0, 1 and 2 are unknown, bos and eos, 3 to 258
the bytes "<0x00>" to "<0xFF>". These vocabularies are exported from SentencePiece models that put
a space before every text and have a byte for every character that is no token.

Encoding merges, again and again, the neighbours that make the token of the highest score, the
leftmost of equals (llama2.c, run.c, `encode`). Left out on purpose: tokens 0 to 258 as a result of
merging, which in SentencePiece stand for no text.
"""

import functools
import heapq
import math
import pathlib
import re
import struct
from collections.abc import Iterable, Sequence

from distill_jax.data.text.codec import Codec
from distill_jax.errors import UsageError

UNKNOWN, BOS, EOS, FIRST_BYTE, FIRST_PIECE = 0, 1, 2, 3, 259
EXPECTED = "a vocabulary of llama2.c: the longest length, then score, length and bytes of each id"

# Text is merged a word at a time where no token crosses a space; words come again.
CACHED_WORDS = 2**16


def load(path: pathlib.Path, where: str) -> Codec:
    """Reads a .bin vocabulary.

    Args:
      path: the file.
      where: how an error begins, such as "data.tokenizer='tok512.bin'".

    Raises:
      UsageError: the file cannot be read, is truncated, or is of another kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{where}: cannot be read: {error.strerror}; expected {EXPECTED}"
        ) from error
    scores, pieces = _parsed(data, where)
    ids = {piece: number for number, piece in enumerate(pieces) if number >= FIRST_PIECE}
    # As in the SentencePiece model that the file comes from; the export writes "\n<s>\n".
    names = [piece.replace(" ", "▁") for piece in pieces]
    names[BOS], names[EOS] = pieces[BOS].strip("\n"), pieces[EOS].strip("\n")
    crossing = any(" " in piece.lstrip(" ") or piece.startswith("  ") for piece in ids)
    words = functools.lru_cache(CACHED_WORDS)(lambda word: _merged(word, ids, scores))

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [one(text) for text in texts]

    def one(text: str) -> list[int]:
        if not text:
            return []
        parts = [" " + text] if crossing else re.findall(r" ?[^ ]+| ", " " + text)
        return [number for part in parts for number in words(part)]

    def decode(numbers: Iterable[int]) -> str:
        out = bytearray()
        for number in map(int, numbers):
            if FIRST_BYTE <= number < FIRST_PIECE:
                out.append(number - FIRST_BYTE)
            elif FIRST_PIECE <= number < len(pieces):
                out += pieces[number].encode()
        return out.decode(errors="replace").removeprefix(" ")

    return Codec(
        encode=encode,
        decode=decode,
        tokens=tuple(names),
        controls=frozenset((UNKNOWN, BOS, EOS)),
        reads_controls=False,
        bos=BOS,
        eos=EOS,
        pad=None,
        before=(BOS,),
        canonical=data,
    )


def _parsed(data: bytes, where: str) -> tuple[list[float], list[str]]:
    scores, pieces = [], []
    position = 4
    try:
        struct.unpack_from("<i", data)
        while position < len(data):
            score, length = struct.unpack_from("<fi", data, position)
            position += 8
            if not 0 <= length <= len(data) - position or not math.isfinite(score):
                raise ValueError(f"id {len(pieces)} has length {length} and score {score}")
            scores.append(score)
            pieces.append(data[position : position + length].decode())
            position += length
    except (struct.error, ValueError) as error:
        raise UsageError(
            f"{where}: damaged, truncated or of another kind at byte {position} of {len(data)}"
            f" ({error}); expected {EXPECTED}"
        ) from error
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    if pieces[FIRST_BYTE:FIRST_PIECE] != names:
        raise UsageError(f"{where}: ids 3 to 258 are not the 256 bytes; expected {EXPECTED}")
    return scores, pieces


def _merged(text: str, ids: dict[str, int], scores: list[float]) -> tuple[int, ...]:
    """The ids of a text. A heap of candidate merges makes it n log n in the text's length."""
    symbols: list[str | None] = list(text)
    left, right = list(range(-1, len(text) - 1)), list(range(1, len(text) + 1))
    heap: list[tuple[float, int, str]] = []

    def consider(start: int) -> None:
        if start >= 0 and right[start] < len(symbols):
            first, second = symbols[start], symbols[right[start]]
            # A character that is no token becomes bytes, and bytes are not merged.
            if first in ids and second in ids and (pair := first + second) in ids:
                heapq.heappush(heap, (-scores[ids[pair]], start, pair))

    for start in range(len(text)):
        consider(start)
    while heap:
        _, start, pair = heapq.heappop(heap)
        after = right[start]
        # A candidate is stale if either side was merged since.
        if symbols[start] is None or after >= len(symbols):
            continue
        if symbols[start] + symbols[after] != pair:
            continue
        symbols[start], symbols[after] = pair, None
        right[start] = right[after]
        if right[start] < len(symbols):
            left[right[start]] = start
        consider(left[start])
        consider(start)
    numbers = []
    for symbol in symbols:
        if symbol in ids:
            numbers.append(ids[symbol])
        elif symbol is not None:
            numbers.extend(FIRST_BYTE + byte for byte in symbol.encode(errors="replace"))
    return tuple(numbers)
