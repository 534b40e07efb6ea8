"""Models beside a run: evaluating an imported or a quantized one, and writing what one answers.

Such a model is evaluated as the student that a run would begin with (`student.path`), so that
its figures are computed by the very program that evaluates students.
"""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from distill_jax import config as configs
from distill_jax import models, tasks
from distill_jax.config.schema import TEXT
from distill_jax.errors import UsageError
from distill_jax.models import Flat
from distill_jax.processes import coordination
from distill_jax.storage import write_atomically
from distill_jax.tasks.base import Parts
from distill_jax.tasks.images.answers_of_students import Answers, answers_of
from distill_jax.tasks.images.recipe import ImageRecipe

_SECTIONS = ("data", "evaluation", "mesh", "teacher", "imports")


def prepare(
    folder: pathlib.Path, which: str, overrides: Mapping[str, str], data_of: str | None
) -> Parts:
    """A run that would begin with a model, on the data to evaluate it on.

    Args:
      folder: of the model.
      which: "final"; a lone model has no other.
      overrides: config keys, of which those of the data, evaluation, mesh and teacher count.
      data_of: a config file that gives the same keys; None without one.

    Raises:
      UsageError: no data are named, or the model is for other images or classes.
    """
    if which != "final":
        raise UsageError(f"--which={which}: an imported model is one; expected final")
    for key in overrides:
        if key.split(".")[0] not in _SECTIONS:
            raise UsageError(
                f"--config.{key}: has no meaning for a model without a run; expected keys of "
                + ", ".join(_SECTIONS)
            )
    given = configs.read(data_of, {}) if data_of else {}
    given = {section: values for section, values in given.items() if section in _SECTIONS}
    given.pop("teacher", None)
    changed = configs.apply_overrides(given, overrides)
    if "name" not in changed.get("data", {}):
        raise UsageError(
            "--config.data.name: --workdir holds a model without a run; expected the data to "
            "evaluate it on, such as --config.data.name=cifar100, or --config=FILE"
        )
    changed["evaluation"] = {**changed.get("evaluation", {}), "select": "nll"}
    if (folder / "config.json").exists():
        return _prepare_decoder(folder, changed)
    spec = models.load(folder, key="--workdir").spec
    changed["student"] = {"name": spec.name, **spec.options, "path": str(folder)}
    changed["data"] = {"resident": "no", **changed["data"], "mean": spec.mean, "std": spec.std}
    if changed["data"]["name"] == TEXT:
        raise UsageError(f"data.name={TEXT!r}: --workdir={folder} is a model of images")
    parts = tasks.prepare(configs.resolve(changed))
    found = cast(ImageRecipe, parts.recipe).spec.num_classes
    if found != spec.num_classes:
        raise UsageError(
            f"--workdir={folder}: the model has num_classes={spec.num_classes}, data.name="
            f"{changed['data']['name']!r} has {found}; expected the same"
        )
    return parts


def _prepare_decoder(folder: pathlib.Path, changed: dict[str, Any]) -> Parts:
    """As `prepare`, of a Hugging Face folder, quantized or not."""
    if changed["data"]["name"] != TEXT:
        raise UsageError(
            f"data.name={changed['data']['name']!r}: --workdir={folder} is a decoder; expected "
            f"{TEXT!r}"
        )
    changed["student"] = {"name": "decoder", "path": str(folder)}
    if "path" in changed.get("teacher", {}):
        # What measures how far the student is from the teacher.
        changed["method"] = {"name": "soft_target"}
    return tasks.prepare(configs.resolve(changed))


def check_dump(
    file: str | os.PathLike | None, taps: Sequence[str], *, on_text: bool | None
) -> None:
    """Refuses a dump that cannot be written, before anything is computed.

    Args:
      file: to write; None for none.
      taps: features to add.
      on_text: whether the run is on text; None where that is not known yet.

    Raises:
      UsageError: taps without a file, another suffix, no such folder, or a run on text.
    """
    if not file:
        if taps:
            raise UsageError(f"--taps={','.join(taps)}: expected --dump=FILE with it")
        return
    if pathlib.Path(file).suffix != ".npz":
        raise UsageError(f"--dump={file}: expected a name that ends in .npz")
    if not pathlib.Path(file).absolute().parent.is_dir():
        raise UsageError(f"--dump={file}: expected a file in a folder that exists")
    if on_text:
        raise UsageError(f"--dump={file}: a run on text; expected one on images")


def dump(
    parts: Parts,
    split: str,
    params: Flat,
    stats: Flat,
    file: str | os.PathLike,
    taps: Sequence[str],
) -> None:
    """Writes logits, labels and ids of every example of a split, and taps, as an .npz file.

    Raises:
      UsageError: a tap is unknown, or the file cannot be written.
    """
    found: Answers = answers_of(parts, split, params, stats, taps)
    if not coordination.is_first():
        return
    buffer = io.BytesIO()
    np.savez(buffer, **cast(dict[str, Any], found))
    try:
        write_atomically(pathlib.Path(file), buffer.getvalue())
    except OSError as error:
        raise UsageError(f"--dump={file}: cannot be written: {error.strerror}") from error
