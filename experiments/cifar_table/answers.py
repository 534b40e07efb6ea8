"""The answers of a table's teachers to every view of every training image, computed once.

A crop and a flip make 162 views of an image: 8.1 million forward passes, as many as the teacher's
part of one run, and then no run of any seed or method computes the teacher again. Only the logits
are stored; methods that read features have the teacher in the step.
"""

import contextlib
import pathlib
from typing import Any

from ml_collections import ConfigDict

from distill_jax import data, tasks
from distill_jax import teachers as library
from distill_jax.errors import UsageError
from distill_jax.teachers.answers.manifest import read_manifest
from distill_jax.teachers.answers.store import check_finished
from experiments.cifar_table import clock

#: Methods that read nothing of the teacher but its logits on the student's own view.
LOGIT_METHODS = ("soft_target", "dkd", "dist", "ctkd")
DTYPE = "float16"


def can_be_stored(config: ConfigDict) -> bool:
    """Whether a run can read stored logits in place of its teacher."""
    if config.method.name not in LOGIT_METHODS or len(config.teacher.path) != 1:
        return False
    try:
        library.Finite.of(data.Augment(**config.data.augment))
    except UsageError:
        return False
    return True


def store(config: ConfigDict, root: pathlib.Path) -> pathlib.Path:
    """Computes the answers of a run's teacher, or goes on where an earlier call was stopped.

    Args:
      config: of the run, with its teacher.
      root: the workdir of the table.

    Returns:
      The folder of the answers.
    """
    folder = folder_of(config, root)
    # Called for a finished store too: it repairs parts that are damaged.
    counted = contextlib.nullcontext() if _is_finished(folder) else clock.running(clock_of(folder))
    with counted:
        tasks.precompute(config, folder, dtype=DTYPE, taps=())
    return folder


def _is_finished(folder: pathlib.Path) -> bool:
    try:
        check_finished(folder, read_manifest(folder))
    except UsageError:
        return False
    return True


def folder_of(config: ConfigDict, root: pathlib.Path) -> pathlib.Path:
    """The folder of the answers of a run's teacher to its views."""
    teacher = pathlib.Path(config.teacher.path[0]).name
    augment = config.data.augment
    views = f"{augment.padding_mode}{augment.crop_padding}{'-flip' if augment.flip else ''}"
    return root / "answers" / f"{teacher}-{views}-{config.teacher.compute_dtype}"


def clock_of(folder: pathlib.Path) -> pathlib.Path:
    """The file that counts the time of computing the answers in a folder."""
    return folder.with_name(f"{folder.name}.clock.json")


def facts(folder: pathlib.Path) -> dict[str, Any]:
    """What a record has of the stored answers: their dtype, size and cost."""
    manifest = read_manifest(folder)
    spent = clock.read(clock_of(folder))
    return {
        "dtype": manifest["dtype"],
        "compute_dtype": manifest["compute_dtype"],
        "bytes": manifest["answer_bytes"],
        "answers": manifest["items"] * manifest["answers_an_item"],
        "hours": spent["wall_s"] / 3600,
        "cpu_hours": spent["cpu_s"] / 3600,
        "resumes": max(spent["starts"] - 1, 0),
    }
