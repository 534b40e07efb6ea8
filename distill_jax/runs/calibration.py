"""Calibration text of `distill-jax quantize`: from a file to the batches that a decoder reads."""

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np

from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.storage import local_path

#: Rows, and tokens in a row, where the user leaves them open.
ROWS, LENGTH = 128, 512
# Rows that a layer reads at a time.
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Packed rows of a text.

    Attributes:
      batches: "tokens", "positions" and "segments", int32 [B, T] each; segment 0 is padding.
      description: what the folder that is written records of them.
    """

    batches: tuple[dict[str, np.ndarray], ...]
    description: dict[str, Any]


def read(
    path: str | os.PathLike,
    tokenizer: text.Tokenizer,
    *,
    rows: int = ROWS,
    length: int = LENGTH,
    vocab_size: int,
    key: str = "--calibration",
) -> Calibration:
    """The first rows of a text, one document after the other.

    Args:
      path: a .txt, .jsonl, .json or .parquet file, see `text.read`.
      tokenizer: of the decoder.
      rows: how many at most.
      length: tokens in a row.
      vocab_size: how many ids the decoder has.
      key: the flag that errors name.

    Raises:
      UsageError: there is no such file, it holds no text, or the decoder does not have its ids.
    """
    if rows < 1:
        raise UsageError(f"{key}-rows={rows}: expected at least one row of text")
    file = local_path(path, key)
    if not file.is_file():
        raise UsageError(f"{key}={str(path)!r}: no such file; expected one of text")
    content = file.read_bytes()
    if not content.strip():
        raise UsageError(f"{key}={str(path)!r}: is empty; expected text of two tokens or more")
    try:
        documents = text.tokenize(
            text.read(file),
            tokenizer,
            chat=text.load_chat_template(tokenizer) if text.has_chat_template(tokenizer) else None,
            eos=tokenizer.eos is not None,
            prompt_loss=True,
        )
        packed = text.pack(documents, length, strategy="concatenate")
    except UsageError as error:
        raise UsageError(str(error).replace("data.path", key, 1)) from error
    chosen = min(rows, len(packed))
    batches = tuple(_batch(packed, start, chosen) for start in range(0, chosen, _BATCH))
    highest = max(int(batch["tokens"].max()) for batch in batches)
    if highest >= vocab_size:
        raise UsageError(
            f"{key}={str(path)!r}: its text has the id {highest}, and the model ids below "
            f"{vocab_size}; expected a folder with the tokenizer of its model"
        )
    tokens = sum(int(np.count_nonzero(batch["segments"])) for batch in batches)
    description = {
        "file": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": chosen,
        "length": length,
        "tokens": tokens,
    }
    return Calibration(batches, description)


def _batch(packed: text.Rows, start: int, rows: int) -> dict[str, np.ndarray]:
    """Rows from `start` on, filled up with padding to one size."""
    ids = np.arange(start, start + _BATCH)
    batch = packed.batch(np.minimum(ids, rows - 1))
    segments = batch["segments"] * (ids < rows)[:, None].astype(np.int32)
    return {"tokens": batch["tokens"], "positions": batch["positions"], "segments": segments}
