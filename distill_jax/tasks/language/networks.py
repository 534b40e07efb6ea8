"""Opens the decoders of a run: its teachers and its student."""

import os
import pathlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import parallel
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language.student import open_student as student_of
from distill_jax.storage import reporting_unreachable, resolve_path

#: Reads a folder: `language.load`, or `language.load_zeros` where only shapes are wanted.
Load = Callable[..., language.Decoder]


def open_teachers(
    config: ConfigDict, mesh: Mesh, load: Load = language.load
) -> tuple[language.Decoder, ...]:
    """The teachers; () where none is named.

    Raises:
      UsageError: one cannot be used.
    """
    dtype = jnp.dtype(config.teacher.compute_dtype)
    teachers = tuple(
        load(
            decoder_folder(path),
            key="teacher.path",
            param_dtype=dtype,
            dtype=dtype,
            quantize=config.teacher.quantize,
            sharding_fn=_sharding_fn(config, mesh, "teacher"),
            attention=config.training.attention,
            mesh=mesh,
        )
        for path in config.teacher.path
    )
    for path, teacher in zip(config.teacher.path, teachers, strict=True):
        _check_positions(config, teacher, f"the teacher {path!r}")
    return teachers


def _check_positions(config: ConfigDict, decoder: language.Decoder, who: str) -> None:
    """UsageError where rows are longer than the positions that a decoder has learned."""
    most = decoder.config.max_positions
    if decoder.config.positions == "learned" and config.data.length > most:
        raise UsageError(
            f"data.length={config.data.length}: {who} has learned {most} positions; expected at "
            f"most {most}"
        )


def open_student(
    config: ConfigDict,
    mesh: Mesh,
    teachers: Sequence[language.Decoder],
    vocab_size: int,
    load: Load = language.load,
) -> language.Decoder:
    """The student, with its adapters if the config asks for some.

    Args:
      config: resolved.
      mesh: the devices.
      teachers: the first one gives layers, or the family of a new model; may be empty.
      vocab_size: of a new model.
      load: reads a folder.

    Raises:
      UsageError: it cannot be made.
    """
    shapes_alone = load is language.load_zeros
    student = student_of(
        configs.student_options(config),
        teachers[0] if teachers else None,
        vocab_size,
        seed=config.seed,
        sharding_fn=None if shapes_alone else _sharding_fn(config, mesh, "student"),
        load=load,
        dtype=jnp.dtype(config.training.compute_dtype),
        remat=config.training.remat,
        attention=config.training.attention,
        mesh=mesh,
    )
    _check_positions(config, student, "the student")
    return student


def load_saved(config: ConfigDict, mesh: Mesh, folder: str | os.PathLike) -> language.Decoder:
    """A student that a run of this config saved."""
    layout = _sharding_fn(config, mesh, "student")
    return language.load(folder, key="--workdir", sharding_fn=layout)


def _sharding_fn(config: ConfigDict, mesh: Mesh, part: str) -> language.ShardingFn | None:
    """The sharding of each parameter of "student" or "teacher"; None for the only device."""
    if mesh.size == 1:
        return None
    if part in config.mesh.replicate:
        return lambda name, shape: parallel.replicated(mesh)
    return lambda name, shape: parallel.sharding(name, shape, mesh)


def decoder_folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder of a decoder: the model in a workdir of ours, or the folder itself."""
    folder = resolve_path(path, "teacher.path")
    inner = folder / "model"
    with reporting_unreachable(folder, "teacher.path"):
        return inner if (inner / "config.json").is_file() else folder
