"""Writes the answer store of a run on text: what a teacher predicts at each training token."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import models, parallel, teachers
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.optim import schedules
from distill_jax.tasks.language import networks
from distill_jax.tasks.language.comparison import Comparison, Network, hidden_and_head
from distill_jax.tasks.language.data import check_vocabulary, load_splits, notes_on, open_tokenizer
from distill_jax.tasks.language.evaluation import TextEvaluator
from distill_jax.tasks.language.parts import describe_teacher
from distill_jax.tasks.setup import make_mesh
from distill_jax.training.state import Frozen


def precompute(
    config: ConfigDict,
    folder: str | os.PathLike,
    *,
    answers: str = "sampled",
    dtype: str = "float16",
    part_size: int = 0,
    licence: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Stores a teacher's answers to every token of the packed training rows.

    Args:
      config: resolved, of the later runs: data, tokenizer, teacher and its temperature; draws come
        from its seed, whatever seed the later runs have.
      folder: of the store.
      answers: "sampled:DRAWS" or "top_k:IDS", as `teachers.SparseFormat.parse` reads it.
      dtype: of the log-probabilities of "top_k".
      part_size: rows a part; 0 for about 64 MiB.
      licence: of the teacher, for the manifest.

    Returns:
      {"path", "scheme", "rows", "bytes", "bytes_a_token"}.

    Raises:
      UsageError: the config has another method or no single temperature, something does not fit,
        or as `teachers.precompute_text`.
    """
    temperature = _temperature(config)
    mesh = make_mesh(config)
    (teacher,) = networks.open_teachers(config, mesh)
    tokenizer, shared = open_tokenizer(config)
    check_vocabulary(tokenizer, shared, {f"teacher {config.teacher.path[0]!r}": teacher})
    splits = load_splits(config, tokenizer, shared)
    rows = splits.pop("train")
    for line in notes_on({"train": rows}):
        _note(f"WARNING: {line}")
    entry = describe_teacher(config, config.teacher.path[0], teacher)
    source = teachers.TextSource(
        teacher=entry["fingerprint"],
        parameters=entry["parameters"],
        quantize=entry["quantize"],
        compute_dtype=config.teacher.compute_dtype,
        rows=len(rows),
        length=rows.length,
        rows_fingerprint=text.fingerprint(rows),
        tokenizer=tokenizer.fingerprint,
        sparse=teachers.SparseFormat.parse(answers, shared, dtype, key="--answers"),
        seed=config.seed,
        temperature=temperature,
        licence=licence or {},
    )
    manifest = teachers.precompute_text(
        folder,
        source,
        compute=_answers_to(rows, teacher, source, mesh),
        measure=lambda: _figures(config, mesh, teacher, shared, splits),
        batch_size=config.evaluation.batch_size,
        part_size=part_size,
        note=_note,
        style=config.logging.progress,
    )
    return {
        "path": str(folder),
        "scheme": str(source.sparse),
        "rows": len(rows),
        "bytes": manifest["answer_bytes"],
        "bytes_a_token": source.sparse.nbytes,
    }


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _answers_to(
    rows: text.Rows, teacher: language.Decoder, source: teachers.TextSource, mesh: Mesh
) -> Callable[[np.ndarray], dict[str, Any]]:
    """The function from numbers of rows to what the store keeps of their tokens."""
    graphdef, params, _ = models.split(teacher)
    network = Network(teacher.config, graphdef)

    @jax.jit
    def answer(params, batch):
        hidden, head = hidden_and_head(network.read(params, batch))
        length = batch["tokens"].shape[1]
        found = teachers.compute_sparse_answers(
            source.sparse,
            hidden,
            head,
            source.sparse.uniforms(source.seed, batch["id"], length),
            readout=network.readout(),
            temperature=source.temperature,
            mesh=mesh,
        )
        return {name: a.reshape(-1, length, *a.shape[1:]) for name, a in found.items()}

    def compute(ids: np.ndarray) -> dict[str, Any]:
        batch = {"id": ids, **rows.batch(ids)}
        return answer(params, parallel.put_rows(batch, parallel.batch_sharding(mesh)))

    return compute


def _figures(
    config: ConfigDict,
    mesh: Mesh,
    teacher: language.Decoder,
    shared: int,
    splits: dict[str, text.Rows],
) -> dict[str, Any]:
    """The teacher's own figures on some splits, and which rows they are of."""
    graphdef, params, _ = models.split(teacher)
    alone = Comparison(Network(teacher.config, graphdef), (), (), (), (), shared, mesh)
    found = {}
    for name, rows in splits.items():
        batches = text.evaluation_feed(rows, config.evaluation.batch_size)
        figures = TextEvaluator(alone, Frozen(), mesh, batches)(params, {})
        found[name] = {"fingerprint": text.fingerprint(rows), **figures}
    return found


def _temperature(config: ConfigDict) -> float:
    """The one temperature of the later runs, which must minimise the forward KL."""
    if config.method.name != "soft_target":
        raise UsageError(
            f"method.name={config.method.name!r}: stored answers are for the forward KL; expected "
            "the config of the later runs, soft_target"
        )
    temperature = schedules.parse(config.method.temperature)
    if temperature.extremes[0] != temperature.extremes[1]:
        raise UsageError(
            f"method.temperature={config.method.temperature!r}: stored answers are of one "
            "temperature; expected a number"
        )
    return temperature.start
