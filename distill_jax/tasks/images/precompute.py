"""Writes the answer store of a run on images: to all views, or to the steps of the run."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax import data, models, parallel, teachers
from distill_jax.errors import UsageError
from distill_jax.tasks.images.data import load_splits, train_ids_of
from distill_jax.tasks.setup import select_kernels


def precompute(
    config: ConfigDict,
    folder: str | os.PathLike,
    *,
    taps: Sequence[str] | None,
    dtype: str,
    licence: Mapping[str, Any],
) -> dict[str, Any]:
    """Stores the outputs of a teacher; see `distill_jax.tasks.precompute`."""
    splits = load_splits(config)
    augment = data.Augment(**config.data.augment)
    finite = _has_finitely_many_views(augment)
    loaded = models.load(config.teacher.path[0], key="teacher.path")
    saved, note = teachers.with_classes_of(
        loaded,
        splits["train"].info.known_names,
        how=config.teacher.classes,
        location=f"teacher.path={config.teacher.path[0]!r}",
    )
    if note:
        _note(note)
    mapped = config.teacher.classes == "by_name" and saved is not loaded
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    select_kernels(config, mesh)
    computation = teachers.AnswerComputation(
        saved=saved,
        classes="by_name" if mapped else "same",
        train=splits["train"],
        test=splits["test"],
        augment=augment,
        batch_size=config.evaluation.batch_size if finite else config.training.batch_size,
        dtype=dtype,
        taps=("pooled",) if taps is None else tuple(taps),
        compute_dtype=config.teacher.compute_dtype,
        mesh=mesh,
        licence=licence,
    )
    if finite:
        manifest = teachers.precompute_views(
            folder, computation, note=_note, style=config.logging.progress
        )
        amount = {"images": manifest["items"], "views": manifest["answers_an_item"]}
    else:
        ids, _ = train_ids_of(config, splits["train"])
        per_epoch = len(ids) / config.training.batch_size
        steps = config.training.steps or -(-config.training.epochs * per_epoch // 1)
        manifest = teachers.precompute_steps(
            folder,
            computation,
            train_ids=ids,
            seed=config.seed,
            steps=int(steps),
            note=_note,
            style=config.logging.progress,
        )
        amount = {"steps": manifest["items"]}
    jax.clear_caches()
    return {
        "path": str(folder),
        "scheme": manifest["scheme"]["scheme"],
        "bytes": manifest["answer_bytes"],
        **amount,
    }


def store_logits(
    config: ConfigDict,
    folder: str | os.PathLike,
    file: str | os.PathLike,
    *,
    dtype: str,
    licence: Mapping[str, Any],
) -> dict[str, Any]:
    """Stores the logits of a file, which another program computed; see `teachers.given`."""
    splits = load_splits(config)
    given = teachers.GivenLogits(
        file, splits["train"], splits["test"], data.Augment(**config.data.augment), dtype, licence
    )
    manifest = teachers.store_given_logits(folder, given, note=_note)
    return {
        "path": str(folder),
        "scheme": manifest["scheme"]["scheme"],
        "bytes": manifest["answer_bytes"],
        "images": manifest["items"],
        "views": manifest["answers_an_item"],
    }


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _has_finitely_many_views(augment: data.Augment) -> bool:
    try:
        teachers.Finite.of(augment)
    except UsageError:
        return False
    return True
