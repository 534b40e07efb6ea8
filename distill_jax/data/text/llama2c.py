"""The .bin vocabularies of llama2.c: byte-pair encoding by scores, in a few lines of Python.

The file, little-endian: the length of the longest token (int32), then for each id its score
(float32), its length in bytes (int32), and the bytes. Ids 0, 1 and 2 are unknown, bos and eos; ids
3 to 258 are the bytes "<0x00>" to "<0xFF>". These vocabularies are exported from SentencePiece
models that put a space before every text and write a character without a token as bytes.

Encoding repeatedly merges the two neighbours whose joined token has the highest score, the leftmost
on a tie (llama2.c, run.c, `encode`). Left out on purpose: merges that result in ids 0 to 258, which
stand for no text in SentencePiece.
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

# Where no token crosses a space, text is merged word by word, and the ids of words are cached.
CACHED_WORDS = 2**16


def load(path: pathlib.Path, location: str) -> Codec:
    """Reads a .bin vocabulary.

    Args:
      path: the file.
      location: the start of an error line, such as "data.tokenizer='tok512.bin'".

    Raises:
      UsageError: the file cannot be read, is truncated, or is of another kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{location}: cannot be read: {error.strerror}; expected {EXPECTED}"
        ) from error
    scores, pieces = _parse(data, location)
    ids = {piece: number for number, piece in enumerate(pieces) if number >= FIRST_PIECE}
    # As in the SentencePiece model that the file comes from; the export writes "\n<s>\n".
    names = [piece.replace(" ", "▁") for piece in pieces]
    names[BOS], names[EOS] = pieces[BOS].strip("\n"), pieces[EOS].strip("\n")
    spaces_inside = any(" " in piece.lstrip(" ") or piece.startswith("  ") for piece in ids)
    merge_word = functools.lru_cache(CACHED_WORDS)(lambda word: _merge(word, ids, scores))

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encode_one(text) for text in texts]

    def encode_one(text: str) -> list[int]:
        if not text:
            return []
        words = [" " + text] if spaces_inside else re.findall(r" ?[^ ]+| ", " " + text)
        return [number for word in words for number in merge_word(word)]

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
        control_ids=frozenset((UNKNOWN, BOS, EOS)),
        parses_control_tokens=False,
        bos=BOS,
        eos=EOS,
        pad=None,
        prefix_ids=(BOS,),
        canonical=data,
    )


def _parse(data: bytes, location: str) -> tuple[list[float], list[str]]:
    scores: list[float] = []
    pieces: list[str] = []
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
            f"{location}: damaged, truncated or of another kind at byte {position} of {len(data)}"
            f" ({error}); expected {EXPECTED}"
        ) from error
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    if pieces[FIRST_BYTE:FIRST_PIECE] != names:
        raise UsageError(f"{location}: ids 3 to 258 are not the 256 bytes; expected {EXPECTED}")
    return scores, pieces


def _merge(text: str, ids: dict[str, int], scores: list[float]) -> tuple[int, ...]:
    """The ids of a text of n characters, in O(n log n) by a heap of candidate merges."""
    symbols: list[str | None] = list(text)
    left, right = list(range(-1, len(text) - 1)), list(range(1, len(text) + 1))
    heap: list[tuple[float, int, str]] = []

    def push_merge(start: int) -> None:
        if start >= 0 and right[start] < len(symbols):
            first, second = symbols[start], symbols[right[start]]
            assert first is not None and second is not None  # links skip merged symbols
            # A character without a token becomes bytes, and bytes are not merged.
            if first in ids and second in ids and (pair := first + second) in ids:
                heapq.heappush(heap, (-scores[ids[pair]], start, pair))

    for start in range(len(text)):
        push_merge(start)
    while heap:
        _, start, pair = heapq.heappop(heap)
        first, after = symbols[start], right[start]
        # A candidate is stale if either side has been merged since it was pushed.
        if first is None or after >= len(symbols):
            continue
        second = symbols[after]
        if second is None or first + second != pair:
            continue
        symbols[start], symbols[after] = pair, None
        right[start] = right[after]
        if right[start] < len(symbols):
            left[right[start]] = start
        push_merge(left[start])
        push_merge(start)
    numbers: list[int] = []
    for symbol in symbols:
        if symbol is None:  # merged into the symbol on its left
            continue
        if symbol in ids:
            numbers.append(ids[symbol])
        else:
            numbers.extend(FIRST_BYTE + byte for byte in symbol.encode(errors="replace"))
    return tuple(numbers)
