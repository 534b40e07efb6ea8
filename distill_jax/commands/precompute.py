"""`distill-jax precompute`: writes a teacher's answers to all training data to disk."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill_jax.commands import flags
from distill_jax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from distill_jax.data import Augment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `precompute`."""
    parser.description = (
        "Computes the answers of the config's teacher to all training data, once, and writes them "
        "to a folder. A run with --config.teacher.store=DIR reads them in place of the teacher. "
        f"The same command resumes where a stopped one ended. {flags.CONFIG_KEYS}"
    )
    parser.epilog = (
        "example: distill-jax precompute --config=configs/digits.py --workdir=answers "
        "--config.teacher.path=runs/teacher"
    )
    flags.add_config(parser, " of the runs that will read the answers")
    flags.add_workdir(parser, "folder for the answers", remote=False)
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="dtype of the answers (default: float16; bfloat16 for images alone)",
    )
    parser.add_argument(
        "--taps",
        metavar="NAME,NAME",
        help="images: features to write with the logits, such as pooled,stage3; '' for none "
        "(default: pooled)",
    )
    parser.add_argument(
        "--answers",
        metavar="KIND:N",
        help="text: what to keep of the distribution of each token, sampled:N draws or the N most "
        "likely ids, such as top_k:64 (default: sampled:50)",
    )


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Writes the answers and prints how many there are."""
    from distill_jax import config as configs

    config = configs.load(arguments.config, overrides)
    taps = arguments.taps
    if taps is not None:
        taps = tuple(name for name in taps.split(",") if name)
    written = write(
        config, arguments.workdir, dtype=arguments.dtype, taps=taps, answers=arguments.answers
    )
    print(json.dumps(written))
    return 0


def write(
    config: "Mapping[str, Any] | ConfigDict",
    where: str | os.PathLike,
    *,
    dtype: str | None = None,
    taps: Sequence[str] | None = None,
    answers: str | None = None,
) -> dict[str, Any]:
    """Stores the answers that runs with this config would ask its teacher for.

    Of text: draws from the teacher's distribution of each token, or its likeliest ids
    (`text_storing`). Of images: where the augmentation has finitely many views (crop and flip), all
    of them, for any seed and any number of epochs; else the steps of this very run, its order and
    views with them.

    Args:
      config: of the later runs: data, augmentation, teacher; of a store of steps also the seed, the
        batch size and the number of epochs.
      where: the folder of the store.
      dtype: of the stored answers: "float16" (the default), "bfloat16" (of images alone) or
        "float32"; of text that of log-probabilities.
      taps: of images, the teacher's features that are stored beside its logits; "pooled" by
        default.
      answers: of text, "sampled:50" (the default) or "top_k:64", with other numbers.

    Returns:
      {"path", "scheme", "bytes"}, and "images" and "views", or "steps", or of text "rows" and
      "bytes_a_token".

    Raises:
      UsageError: the config has no single teacher, or as `teachers.precompute_views`.
    """
    import jax

    from distill_jax import config as configs
    from distill_jax import data, models, parallel, teachers
    from distill_jax.config import schema
    from distill_jax.tasks.images.parts import load_splits, train_ids_of
    from distill_jax.tasks.language import precompute as store_text

    config = configs.resolve(config)
    if len(config.teacher.path) != 1:
        raise UsageError(
            f"teacher.path={config.teacher.path}: a store has one teacher; expected one path"
        )
    on_text = config.data.name == schema.TEXT
    for flag, value, meant in (("taps", taps, not on_text), ("answers", answers, on_text)):
        if value is not None and not meant:
            raise UsageError(f"--{flag}={value}: has no meaning for data.name={config.data.name!r}")
    dtype = dtype or "float16"
    if on_text:
        answers = answers or store_text.DEFAULT
        return store_text.write(config, where, answers=answers, dtype=dtype)
    splits = load_splits(config)
    saved = models.load(config.teacher.path[0], key="teacher.path")
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    augment = data.Augment(**config.data.augment)
    finite = _has_finitely_many_views(augment)
    computation = teachers.AnswerComputation(
        saved=saved,
        train=splits["train"],
        test=splits["test"],
        augment=augment,
        batch_size=config.evaluation.batch_size if finite else config.training.batch_size,
        dtype=dtype,
        taps=("pooled",) if taps is None else tuple(taps),
        compute_dtype=config.teacher.compute_dtype,
        mesh=mesh,
    )
    if finite:
        manifest = teachers.precompute_views(where, computation, note=_print_note)
        amount = {"images": manifest["items"], "views": manifest["answers_an_item"]}
    else:
        ids, _ = train_ids_of(config, splits["train"])
        per_epoch = len(ids) / config.training.batch_size
        steps = config.training.steps or -(-config.training.epochs * per_epoch // 1)
        manifest = teachers.precompute_steps(
            where,
            computation,
            train_ids=ids,
            seed=config.seed,
            steps=int(steps),
            note=_print_note,
        )
        amount = {"steps": manifest["items"]}
    jax.clear_caches()
    return {
        "path": str(where),
        "scheme": manifest["scheme"]["scheme"],
        "bytes": manifest["answer_bytes"],
        **amount,
    }


def _print_note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _has_finitely_many_views(augment: "Augment") -> bool:
    from distill_jax import teachers

    try:
        teachers.Finite.of(augment)
    except UsageError:
        return False
    return True
