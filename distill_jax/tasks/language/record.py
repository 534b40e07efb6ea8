"""The record of a run on text for its page: what both models expect at each token of a few rows.

Logits are computed a chunk of tokens at a time; of each token five candidates, the losses and the
KL are kept, for a few rows, and sums by position and by length for more of them.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax import parallel
from distill_jax.data import text
from distill_jax.tasks.evaluation import Batch, HostBatch, batches_on
from distill_jax.tasks.language.comparison import Comparison, hidden_and_head
from distill_jax.teachers import mean_probabilities
from distill_jax.training.recipe import Flat
from distill_jax.training.state import Frozen

MOST_LOGITS = 2**22  # of one network that exist at a time
TOP = 5
SHOWN_ROWS = 8
SHOWN_TOKENS = 1200  # of all the rows that are shown
MEASURED_TOKENS = 65_536  # of the sums by position and by length
BUCKETS = 24  # 0, 1, 2-3, 4-7, ... tokens
CONTEXT = 4  # tokens before one, with which its text is decoded


def token_answers(
    comparison: Comparison, params: Flat, frozen: Frozen, batch: Batch
) -> dict[str, jax.Array]:
    """What the networks expect at each token, at T = 1.

    Returns:
      By name, [B, T] and [B, T, 5]: of "student", and of "teacher" where there is one (several: of
      their mean distribution), "..._nll" of the target in nats, "..._ids" and "..._p" of the five
      likeliest ids; with a teacher "kl", KL(teacher || student) in nats.
    """
    readings = [comparison.student.read({**frozen.student, **params}, batch)]
    readouts = [comparison.student.readout()]
    for network, own in zip(comparison.teachers, frozen.teachers, strict=False):
        readings.append(network.read(own, batch))
        readouts.append(network.readout())
    hidden, heads = zip(*map(hidden_and_head, readings), strict=True)
    shape, size = batch["targets"].shape, batch["targets"].size
    chunk = min(max(MOST_LOGITS // comparison.vocab_size, 8), size)
    padding = -size % chunk

    def chunks(a: jax.Array) -> jax.Array:
        padded = jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1))
        return padded.reshape(-1, chunk, *a.shape[1:])

    def of_chunk(rows: tuple[list[jax.Array], jax.Array]) -> dict[str, jax.Array]:
        states, targets = rows
        logits = [
            readout.logits(state, head)[:, : comparison.vocab_size]
            for readout, state, head in zip(readouts, states, heads, strict=True)
        ]
        logs = {"student": jax.nn.log_softmax(logits[0])}
        if len(logits) > 1:
            logs["teacher"] = mean_probabilities(logits[1:], comparison.weights, 1.0)
        return _expected(logs, targets)

    targets = batch["targets"].reshape(-1)
    found = jax.lax.map(of_chunk, ([chunks(h) for h in hidden], chunks(targets)))
    return {
        name: a.reshape(-1, *a.shape[2:])[:size].reshape(*shape, *a.shape[2:])
        for name, a in found.items()
    }


def _expected(logs: dict[str, jax.Array], targets: jax.Array) -> dict[str, jax.Array]:
    """The figures of `token_answers` for N tokens, from log probabilities [N, V] by network."""
    found: dict[str, jax.Array] = {}
    for name, values in logs.items():
        own = jnp.take_along_axis(values, targets[:, None], axis=-1)
        best, ids = jax.lax.top_k(values, min(TOP, values.shape[-1]))
        found |= {f"{name}_nll": -own[:, 0], f"{name}_ids": ids, f"{name}_p": jnp.exp(best)}
    if "teacher" in logs:
        p, q = logs["teacher"], logs["student"]
        found["kl"] = jnp.sum(jnp.where(p > -jnp.inf, jnp.exp(p) * (p - q), 0.0), axis=-1)
    return found


def record_of(
    comparison: Comparison,
    frozen: Frozen,
    mesh: Mesh,
    batches: Iterable[HostBatch],
    tokenizer: text.Tokenizer,
    params: Flat,
    stats: Flat,
) -> dict[str, np.ndarray]:
    """The record of the test split.

    Returns:
      "rows": uint8, JSON in UTF-8, the first rows of the split, a list of lists of tokens, each a
      dict: "text"; and where it has a loss "nll", and "top" [[text, probability], ...] of the
      student, with a teacher also "teacher_nll", "teacher_top", "kl". "by_position" and
      "by_length", float64 [buckets, 3]: tokens, and the sums of the student's and the teacher's
      losses (NaN without a teacher), by the position in the document and by the length of the
      document; bucket 0 is for 0, bucket b for 2^(b-1) to 2^b - 1 tokens. "each_nll", float64, and
      "each_count", int32 [R], of each measured row: the summed loss of the student and the tokens
      it is of; "each_of": the SHA-256 of the ids to be predicted, for paired comparisons of runs.
    """
    del stats
    compiled = jax.jit(
        lambda params, frozen, batch: token_answers(comparison, params, frozen, batch),
        out_shardings=parallel.replicated(mesh),
    )
    sums = {name: np.zeros((BUCKETS, 3)) for name in ("by_position", "by_length")}
    rows: list[list[dict[str, Any]]] = []
    each: dict[str, list[np.ndarray]] = {"each_nll": [], "each_count": []}
    targets = hashlib.sha256()
    left, seen = SHOWN_TOKENS, 0
    for batch in batches_on(mesh, batches):
        answers, host = parallel.fetch((compiled(params, frozen, batch), dict(batch)))
        seen += _add(sums, host, answers)
        mask = host["mask"]
        whole = mask.any(axis=1)  # other rows pad the batch
        losses = np.where(mask, np.float64(answers["student_nll"]), 0.0).sum(axis=1)
        each["each_nll"].append(losses[whole])
        each["each_count"].append(mask.sum(axis=1)[whole].astype(np.int32))
        # Rows that pad are left out: their number follows the size of a batch.
        targets.update(np.where(mask, host["targets"], -1)[whole].astype("<i4").tobytes())
        for row in range(len(host["tokens"])):
            if len(rows) < SHOWN_ROWS and left > 0 and host["mask"][row].any():
                rows.append(_shown(tokenizer, host, answers, row, left))
                left -= len(rows[-1])
        if seen >= MEASURED_TOKENS:
            break
    shown = np.frombuffer(json.dumps(rows, ensure_ascii=False).encode(), np.uint8)
    joined = {name: np.concatenate(parts) for name, parts in each.items()}
    return {"rows": shown, **sums, **joined, "each_of": np.array(targets.hexdigest())}


def _add(
    sums: dict[str, np.ndarray], batch: dict[str, np.ndarray], answers: dict[str, np.ndarray]
) -> int:
    """Adds the tokens of a batch that have a loss; their number."""
    mask = batch["mask"]
    student = answers["student_nll"][mask]
    teacher = answers.get("teacher_nll", np.full(mask.shape, np.nan))[mask]
    # The length of the piece that each token is in.
    code = batch["segments"] + np.arange(len(mask))[:, None] * (batch["segments"].max() + 1)
    length = np.bincount(code.ravel())[code]
    for name, values in (("by_position", batch["positions"]), ("by_length", length)):
        bucket = np.minimum(np.ceil(np.log2(np.float64(values[mask]) + 1)), BUCKETS - 1)
        terms = np.stack([np.ones_like(student), student, teacher], axis=1)
        np.add.at(sums[name], bucket.astype(int), terms)
    return int(mask.sum())


def _shown(
    tokenizer: text.Tokenizer,
    batch: dict[str, np.ndarray],
    answers: dict[str, np.ndarray],
    row: int,
    most: int,
) -> list[dict[str, Any]]:
    """The tokens of a row, at most so many, with what the networks expected."""
    filled = int(np.count_nonzero(batch["segments"][row]))
    inputs, targets = (batch[name][row].tolist() for name in ("tokens", "targets"))
    found: list[dict[str, Any]] = []
    for at in range(min(filled, most)):
        begin = max(at + 1 - min(CONTEXT, int(batch["positions"][row, at]) + 1), 0)
        before = inputs[begin : at + 1]
        if batch["positions"][row, at] == 0:
            found.append({"text": _piece(tokenizer, [], inputs[at]), "begin": True})
        token: dict[str, Any] = {"text": _piece(tokenizer, before, targets[at])}
        if batch["mask"][row, at]:
            for name, prefix in (("student", ""), ("teacher", "teacher_")):
                if f"{name}_nll" in answers:
                    token[f"{prefix}nll"] = _rounded(answers[f"{name}_nll"][row, at])
                    token[f"{prefix}top"] = [
                        [_piece(tokenizer, before, int(k)), _rounded(p)]
                        for k, p in zip(
                            answers[f"{name}_ids"][row, at],
                            answers[f"{name}_p"][row, at],
                            strict=True,
                        )
                    ]
            if "kl" in answers:
                token["kl"] = _rounded(answers["kl"][row, at])
        found.append(token)
    return found


def _rounded(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _piece(tokenizer: text.Tokenizer, before: list[int], token: int) -> str:
    """The text that a token adds to the tokens before it, or its name where it adds none."""
    start, whole = tokenizer.decode(before), tokenizer.decode([*before, token])
    added = whole[len(start) :] if whole.startswith(start) else ""
    if not added or "\N{REPLACEMENT CHARACTER}" in added:
        return tokenizer.token(token)
    return added
