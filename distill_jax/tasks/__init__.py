"""From a config to the parts of a run: the same steps for images and for text.

    parts = tasks.prepare(config)               # data, models and recipe: opened and checked
    step = tasks.abstract_step(config, devices) # the same step as shapes, for a plan
    tasks.precompute(config, "runs/answers")    # a teacher's answers to all training data, on disk

`images` and `language` have the same files: `data`, `teachers` or `networks`, `recipe` (the step),
`build` (from a config to recipes), `evaluation`, `parts`, `abstract` and `precompute`. What both do
alike is here: `base` (what they return), `setup` (mesh, state, the settings of a stage) and
`evaluation` (sums over a split).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import provenance, storage
from distill_jax.config import schema
from distill_jax.errors import UsageError
from distill_jax.tasks import licences
from distill_jax.tasks.base import AbstractStep, Parts
from distill_jax.tasks.images import abstract as image_step
from distill_jax.tasks.images import parts as image_parts
from distill_jax.tasks.images import precompute as image_answers
from distill_jax.tasks.language import abstract as text_step
from distill_jax.tasks.language import parts as text_parts
from distill_jax.tasks.language import precompute as text_answers
from distill_jax.tasks.setup import make_mesh
from distill_jax.training import compilation_cache

__all__ = ["AbstractStep", "Parts", "abstract_step", "licences", "precompute", "prepare"]


def _on_text(config: ConfigDict) -> bool:
    return config.data.name == schema.TEXT


def prepare(config: ConfigDict) -> Parts:
    """Opens and checks all that a resolved config names; writes nothing.

    Raises:
      UsageError: when the data, the teacher, the mesh or the method do not fit.
    """
    return (text_parts if _on_text(config) else image_parts).prepare(config)


def abstract_step(config: ConfigDict, devices: Sequence[Any]) -> AbstractStep:
    """The step of a resolved config as shapes, for devices that need not be present.

    Neither data nor weights are read, but the config.json of decoders and the specs of image
    models. The recipe is built by the code that builds that of a run, from arrays that have a
    shape, a dtype and a sharding and no values. Evaluations, which have programs of their own, are
    left out on purpose.

    Raises:
      UsageError: the teacher, the mesh, the data or the method do not fit.
    """
    mesh = make_mesh(config, devices)
    return (text_step if _on_text(config) else image_step).abstract_step(config, mesh)


def precompute(
    config: Mapping[str, Any] | ConfigDict,
    folder: str | os.PathLike,
    *,
    dtype: str = "float16",
    taps: Sequence[str] | None = None,
    answers: str | None = None,
    logits: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Writes an answer store: what its teacher answers to the training data of later runs.

    Of images, it holds the answers to every view where the augmentation has finitely many (crop
    and flip), for any seed and any number of epochs; else those to the steps of this very run, with
    their order and views. Of text, it holds draws from the teacher's distribution at each token, or
    its most likely ids. An interrupted call is resumed by the same call.

    Args:
      config: of the later runs: data, augmentation, teacher; for a store of steps also the seed,
        the batch size and the number of epochs; for text also the tokenizer and the temperature.
      folder: of the store.
      dtype: of the stored values: "float16", "float32", or of images also "bfloat16".
      taps: of images, the teacher's features to store with its logits; ("pooled",) by default.
      answers: of text, "sampled:DRAWS" or "top_k:IDS"; "sampled:50" by default.
      logits: of images, a file of logits that another program computed, in place of a teacher; see
        `teachers.answers.given`.

    Returns:
      {"path", "scheme", "bytes"}, and "images" and "views", or "steps", or of text "rows" and
      "bytes_a_token".

    Raises:
      UsageError: the config has no single teacher, an option is of the other kind of data, or
        something does not fit.
    """
    config = configs.resolve(config)
    if logits:
        if config.teacher.path or taps or _on_text(config):
            raise UsageError(
                f"--logits={logits}: stands in place of a teacher of images; expected neither "
                "teacher.path nor --taps with it, and data of images"
            )
        licence = _checked_licence(config, given=True)
        return image_answers.store_logits(config, folder, logits, dtype=dtype, licence=licence)
    if len(config.teacher.path) != 1:
        raise UsageError(
            f"teacher.path={config.teacher.path}: a store has one teacher; expected one path"
        )
    on_text = _on_text(config)
    for flag, value, fits in (("taps", taps, not on_text), ("answers", answers, on_text)):
        if value is not None and not fits:
            raise UsageError(f"--{flag}={value}: has no meaning for data.name={config.data.name!r}")
    licence = _checked_licence(config, given=False)
    cache = compilation_cache.opened(config.training.compilation_cache)
    with storage.holding(folder, "--workdir"), cache:
        if on_text:
            return text_answers.precompute(
                config, folder, answers=answers or "sampled", dtype=dtype, licence=licence
            )
        return image_answers.precompute(config, folder, taps=taps, dtype=dtype, licence=licence)


def _checked_licence(config: ConfigDict, *, given: bool) -> dict[str, Any]:
    """The licence of the teacher of a store, whose outputs may train a student.

    Args:
      config: resolved.
      given: whether its answers are given in a file, so that the config alone can name a licence.

    Raises:
      UsageError: the licence forbids it, and no permission is stated.
    """
    if given:
        found = [("--logits", licences.stated(provenance.record_of(None, ""), config.teacher))]
    else:
        found = licences.teacher_licences(config)
    for path, record in found:
        provenance.check_permitted(path, record)
        if line := provenance.note_on(path, record):
            print(line, file=sys.stderr, flush=True)
    return found[0][1] if found else {}
