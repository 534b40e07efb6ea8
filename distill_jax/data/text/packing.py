"""Packs documents of many lengths into rows of one length, with inputs, targets and a loss mask.

A document of n tokens has n - 1 inputs, each with the next token as its target; its last token is
only a target. Every pair of adjacent tokens of a document is in exactly one row, also where the
document continues in another row: the last target of a piece is the first input of the next piece.
The documents of a row have different segment ids, and attention does not cross segments.

Rows are not stored: `Rows.batch` gathers them from the flat array of all tokens. Packing adds two
numbers a piece to memory.
"""

import bisect
import dataclasses
import hashlib

import numpy as np

from distill_jax.data.text.documents import Documents
from distill_jax.errors import UsageError, unknown

STRATEGIES = ("whole", "concatenate", "single")
LONG = ("split", "cut")

# The id of padding in tokens and targets. The mask excludes padding from every loss, and segment 0
# excludes it from the attention of every real token.
PADDING = 0

Batch = dict[str, np.ndarray]

_HASHED_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed rows; gathered by `batch`.

    Attributes:
      documents: what was packed.
      length: T, the length of each row.
      starts: int64 [P], the index in documents.tokens of the first input of each piece.
      lengths: int64 [P], the inputs of each piece, at least 1.
      offsets: int64 [R + 1]; row r holds pieces offsets[r] to offsets[r + 1] - 1, in order.
      left_out: (rows, inputs) that were packed and have nothing to learn, such as a part of a long
        prompt; they are in no row.
    """

    documents: Documents
    length: int
    starts: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray
    left_out: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    def batch(self, ids: np.ndarray) -> Batch:
        """The rows with the numbers `ids`, int [B].

        Returns:
          All [B, T]: "tokens", int32, the inputs; "segments", int32, 1, 2, ... for the pieces of a
          row and 0 for padding; "positions", int32, 0, 1, ... in each piece; "targets", int32, the
          next token of the document; "mask", bool, True at the positions that have a loss: those
          whose target is in the documents' loss mask.
        """
        ids = np.asarray(ids, np.int64)
        first, counts = self.offsets[ids], self.offsets[ids + 1] - self.offsets[ids]
        piece = _ranges(first, counts)
        lengths = self.lengths[piece]
        positions = _ranges(np.zeros_like(lengths), lengths)
        source = np.repeat(self.starts[piece], lengths) + positions
        filled = _before(lengths)[_before(counts)]
        place = _ranges(np.arange(len(ids)) * self.length, np.diff(filled))
        columns = {
            "tokens": (self.documents.tokens[source], PADDING, np.int32),
            "segments": (np.repeat(piece - np.repeat(first, counts) + 1, lengths), 0, np.int32),
            "positions": (positions, 0, np.int32),
            "targets": (self.documents.tokens[source + 1], PADDING, np.int32),
            "mask": (self.documents.loss_mask[source + 1], False, bool),
        }
        batch = {}
        for name, (values, padding, dtype) in columns.items():
            flat = np.full(len(ids) * self.length, padding, dtype)
            flat[place] = values
            batch[name] = flat.reshape(len(ids), self.length)
        return batch


def pack(
    documents: Documents, length: int, *, strategy: str = "whole", long: str = "split"
) -> Rows:
    """Packs documents into rows. The same documents always give the same rows.

    Args:
      documents: the documents.
      length: T, at least 1.
      strategy: "whole": a document that fits in a row is not split; the longest first, each into
        the fullest row that has room for it (best-fit decreasing). "concatenate": one document
        after the other, split wherever a row ends; no padding but in the last row. "single": each
        document, or piece of one, has a row of its own.
      long: what happens to a document of more than T inputs: "split", it continues in another row,
        as a piece that does not attend to the one before; "cut", only its first T inputs are kept.

    Returns:
      The rows. A document of fewer than two tokens has no target and is in no row.

    Raises:
      UsageError: an unknown choice, a length below 1, or documents with nothing to learn.
    """
    if strategy not in STRATEGIES:
        raise unknown("data.packing", strategy, STRATEGIES)
    if long not in LONG:
        raise unknown("data.long", long, LONG)
    if type(length) is not int or length < 1:
        raise UsageError(f"data.length={length!r}: expected the tokens of a row, at least 1")
    counts = np.diff(documents.offsets) - 1
    starts = documents.offsets[:-1][counts > 0]
    counts = counts[counts > 0]
    if long == "cut":
        counts = np.minimum(counts, length)
    if strategy == "concatenate":
        starts, lengths, row = _concatenated(starts, counts, length)
    else:
        starts, lengths = _pieces(starts, counts, length)
        row = np.arange(len(starts))
        if strategy == "whole":
            starts, lengths, row = _whole(starts, lengths, length)
    rows = Rows(documents, length, starts, lengths, _before(np.bincount(row)))
    if not summary(rows)["learned_tokens"]:
        raise UsageError(
            f"data.path: {len(documents)} documents hold nothing to learn in rows of {length}"
            " tokens; expected texts of two tokens or more, or responses that are not cut off"
        )
    return rows


def without_unlearned(rows: Rows) -> Rows:
    """The rows in which a target has a loss, of rows from `pack`; a step of others learns nothing.

    The same rows where all have one.
    """
    keep = np.add.reduceat(_learned(rows), rows.offsets[:-1]) > 0
    if keep.all():
        return rows
    counts = np.diff(rows.offsets)
    of_piece = np.repeat(keep, counts)
    return Rows(
        rows.documents,
        rows.length,
        rows.starts[of_piece],
        rows.lengths[of_piece],
        _before(counts[keep]),
        left_out=(int(np.sum(~keep)), int(rows.lengths[~of_piece].sum())),
    )


def _learned(rows: Rows) -> np.ndarray:
    """int64 [P]: how many targets of each piece have a loss."""
    before = _before(rows.documents.loss_mask)
    return before[rows.starts + 1 + rows.lengths] - before[rows.starts + 1]


def summary(rows: Rows) -> dict[str, int | float]:
    """Counts of documents and tokens, and how full the rows are.

    Returns:
      rows; documents; short_documents, those of fewer than two tokens, which are in no row;
      split_documents, those in more than one piece; unlearned_documents, those of two tokens or
      more without a target that has a loss; cut_tokens, targets that long="cut" dropped;
      left_out_rows, those without a target that has a loss;
      input_tokens, those that are not padding; learned_tokens, those with a loss; fill,
      input_tokens over rows x T.
    """
    documents = rows.documents
    counts = np.maximum(np.diff(documents.offsets) - 1, 0)
    owner = np.searchsorted(documents.offsets, rows.starts, side="right") - 1
    learned = _learned(rows)
    of_document = np.bincount(owner, learned, minlength=len(counts))
    inputs = int(rows.lengths.sum())
    return {
        "rows": len(rows),
        "documents": len(documents),
        "short_documents": int(np.sum(counts == 0)),
        "split_documents": int(np.sum(np.bincount(owner, minlength=1) > 1)),
        "unlearned_documents": int(np.sum((counts > 0) & (of_document == 0))),
        "cut_tokens": int(counts.sum()) - inputs - rows.left_out[1],
        "left_out_rows": rows.left_out[0],
        "input_tokens": inputs,
        "learned_tokens": int(learned.sum()),
        "fill": inputs / max(len(rows) * rows.length, 1),
    }


def fingerprint(rows: Rows) -> str:
    """A SHA-256, in hex, of every row's tokens, segments, targets and mask, in order.

    A teacher's stored answers are used only with rows of the same fingerprint.
    """
    digest = hashlib.sha256(f"rows {len(rows)} of {rows.length}".encode())
    for start in range(0, len(rows), _HASHED_ROWS):
        batch = rows.batch(np.arange(start, min(start + _HASHED_ROWS, len(rows))))
        for name in ("tokens", "segments", "targets"):
            digest.update(batch[name].astype("<i4", copy=False).data)
        digest.update(batch["mask"].data)
    return digest.hexdigest()


def _before(values: np.ndarray) -> np.ndarray:
    """int64 [n + 1]: the exclusive cumulative sum, with the sum of all values at the end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The concatenation of range(start, start + count) over all starts and counts."""
    total = _before(counts)
    return np.arange(total[-1]) + np.repeat(starts - total[:-1], counts)


def _concatenated(
    starts: np.ndarray, counts: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces (start, length, row): a piece begins where a document does, and where a row does."""
    begins = _before(counts)
    bounds = np.union1d(begins, np.arange(0, begins[-1], length))
    stream = bounds[:-1]
    owner = np.searchsorted(begins, stream, side="right") - 1
    return starts[owner] + stream - begins[owner], np.diff(bounds), stream // length


def _pieces(starts: np.ndarray, counts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces (start, length) of at most a row, in order."""
    pieces = -(-counts // length)
    number = _ranges(np.zeros_like(pieces), pieces)
    starts = np.repeat(starts, pieces) + number * length
    return starts, np.minimum(np.repeat(counts, pieces) - number * length, length)


def _whole(
    starts: np.ndarray, lengths: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces (start, length, row), sorted by row: full rows, and the rest by best fit."""
    longest_first = np.argsort(-lengths, kind="stable")
    row = _best_fit(lengths[longest_first].tolist(), length)
    by_row = np.argsort(row, kind="stable")
    chosen = longest_first[by_row]
    return starts[chosen], lengths[chosen], row[by_row]


def _best_fit(lengths: list[int], capacity: int) -> np.ndarray:
    """int64 [n]: for each length, in order, the fullest row that has room, else a new row."""
    rooms: list[int] = []  # the distinct rooms left, sorted
    rows: dict[int, list[int]] = {}  # the rows that have each of them
    count = 0
    chosen = np.empty(len(lengths), np.int64)
    for index, size in enumerate(lengths):
        at = bisect.bisect_left(rooms, size)
        if at < len(rooms):
            room = rooms[at]
            row = rows[room].pop()
            if not rows[room]:
                del rows[room], rooms[at]
        else:
            room, row, count = capacity, count, count + 1
        chosen[index] = row
        if left := room - size:
            if left not in rows:
                bisect.insort(rooms, left)
                rows[left] = []
            rows[left].append(row)
    return chosen
