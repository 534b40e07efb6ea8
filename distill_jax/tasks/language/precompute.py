"""From a config to a store of what its teacher says of each training token."""

import os
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from distill_jax import models, parallel, teachers
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.losses.vocab import Readout
from distill_jax.optim import schedules
from distill_jax.tasks.images.parts import mesh_of
from distill_jax.tasks.language import objective
from distill_jax.tasks.language import parts as text_parts
from distill_jax.tasks.language.recipe import Network, states

DEFAULT = "sampled"


def write(
    config: ConfigDict,
    where: str | os.PathLike,
    *,
    answers: str = DEFAULT,
    dtype: str = "float16",
    part_size: int = 0,
) -> dict[str, Any]:
    """Stores a teacher's answers to every token of the packed training rows.

    Args:
      config: resolved, of the later runs: data, tokenizer, teacher and its temperature; draws come
        from its seed, whatever the later runs have.
      where: the folder of the store.
      answers: "sampled:DRAWS" or "top_k:IDS", as `teachers.SparseFormat.parse` reads it.
      dtype: of the log-probabilities of "top_k".
      part_size: rows a part; 0 for about 64 MiB.

    Returns:
      {"path", "scheme", "rows", "bytes", "bytes_a_token"}.

    Raises:
      UsageError: the config has another method, no single teacher or no single temperature,
        something does not fit, or as `teachers.precompute_text`.
    """
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
    mesh = mesh_of(config)
    (teacher,) = objective.open_teachers(config, mesh)
    tokenizer, shared = text_parts.tokenizer_of(config)
    text_parts.check_vocabulary(tokenizer, shared, {f"teacher {config.teacher.path[0]!r}": teacher})
    rows = text_parts.splits_of(config, tokenizer)["train"]
    sparse = teachers.SparseFormat.parse(answers, shared, dtype, key="--answers")
    graphdef, params, _ = models.split(teacher)
    network = Network(teacher.config, graphdef)
    entry = text_parts.described(config, config.teacher.path[0], teacher)

    @jax.jit
    def answer(params, batch):
        hidden, head = states(network.read(params, batch))
        length = batch["tokens"].shape[1]
        found = teachers.compute_sparse_answers(
            sparse,
            hidden,
            head,
            sparse.uniforms(config.seed, batch["id"], length),
            readout=Readout(teacher.config.logit_cap, teacher.config.logit_scale),
            temperature=temperature.start,
            mesh=mesh,
        )
        return {name: a.reshape(-1, length, *a.shape[1:]) for name, a in found.items()}

    def of_rows(ids: np.ndarray) -> dict[str, Any]:
        batch = {"id": ids, **rows.batch(ids)}
        return answer(params, parallel.put_rows(batch, parallel.batch_sharding(mesh)))

    source = teachers.TextSource(
        teacher=entry["fingerprint"],
        parameters=entry["parameters"],
        quantize=entry["quantize"],
        compute_dtype=config.teacher.compute_dtype,
        rows=len(rows),
        length=rows.length,
        rows_fingerprint=text.fingerprint(rows),
        tokenizer=tokenizer.fingerprint,
        sparse=sparse,
        seed=config.seed,
        temperature=temperature.start,
    )
    manifest = teachers.precompute_text(
        where,
        source,
        compute=of_rows,
        batch_size=config.evaluation.batch_size,
        part_size=part_size,
        note=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return {
        "path": str(where),
        "scheme": str(sparse),
        "rows": len(rows),
        "bytes": manifest["answer_bytes"],
        "bytes_a_token": sparse.nbytes,
    }
