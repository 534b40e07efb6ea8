"""The step of a run on text as shapes, for a plan: no text, no weights.

A decoder comes from the config.json of its folder; stored answers from the manifest of their store,
or from a description of one that need not exist.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import models, teachers
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.tasks import quantized, setup
from distill_jax.tasks.base import AbstractStep
from distill_jax.tasks.language import build, networks
from distill_jax.teachers import ANSWER_PREFIX
from distill_jax.teachers.answers.sparse import KINDS
from distill_jax.training.state import Frozen, InitialArrays, with_shardings


def abstract_step(config: ConfigDict, mesh: Mesh) -> AbstractStep:
    """The step of a resolved config on a mesh.

    Raises:
      UsageError: the teacher, the student or the method do not fit.
    """
    decoders = nnx.eval_shape(lambda: networks.open_teachers(config, mesh, language.load_zeros))
    # The decoders are an argument, because a student may copy layers of the first one.
    student = nnx.eval_shape(lambda opened: _open_student(config, mesh, opened), decoders)
    sizes = [decoder.config.vocab_size for decoder in decoders]
    shared = min([*sizes, student.config.vocab_size])
    stored = _stored_format(config, shared)
    if stored is not None:
        decoders, shared = (), stored.vocab_size
    quantizer = build.student_quantizer(config, student)
    comparison, params, frozen = build.build_comparison(
        config, mesh, decoders, student, vocab_size=shared, stored=stored
    )
    frozen = _with_shardings(config, mesh, frozen)
    adapters = jax.eval_shape(comparison.adapters, build.adapters_key(config))
    rollout = build.build_rollout(config, comparison, (), mesh)
    # The text decides how many steps an epoch has; the program does not depend on it.
    recipe = build.build_recipe(config, comparison, 1.0, rollout, quantizer)
    counted = {"student": models.parameter_count({**params, **frozen.student})}
    if decoders:
        counted["teacher"] = sum(
            models.parameter_count(models.split(language.abstract(decoder.config))[1])
            for decoder in decoders
        )
    arrays = InitialArrays(params, {}, adapters, {})
    return AbstractStep(
        config=config,
        mesh=mesh,
        recipe=recipe,
        state=setup.initial_state(config, mesh, recipe, arrays),
        frozen=frozen,
        resident={},
        batches=setup.abstract_batches(mesh, _batch_shapes(config, stored), recipe.ahead),
        total_steps=config.training.steps or None,
        unit="tokens",
        units=config.training.batch_size * config.data.length,
        parameters=counted,
        saved_bytes=quantized.saved_bytes(quantizer, 4 * counted["student"], params),
    )


def _open_student(
    config: ConfigDict, mesh: Mesh, decoders: Sequence[language.Decoder]
) -> language.Decoder:
    if not decoders and not config.student.path:
        raise UsageError(
            "student.path='': without a teacher a plan does not know the vocabulary; expected a "
            "folder with a config.json"
        )
    vocab_size = decoders[0].config.vocab_size if decoders else 0
    return networks.open_student(config, mesh, decoders, vocab_size, language.load_zeros)


def _with_shardings(config: ConfigDict, mesh: Mesh, frozen: Frozen) -> Frozen:
    def laid_out(arrays: Any, part: str) -> Any:
        return with_shardings(arrays, setup.frozen_shardings(config, mesh, arrays, part))

    return Frozen(
        student=laid_out(frozen.student, "student"), teachers=laid_out(frozen.teachers, "teacher")
    )


def _batch_shapes(
    config: ConfigDict, stored: teachers.SparseFormat | None
) -> dict[str, tuple[tuple[int, ...], Any]]:
    tokens = (config.training.batch_size, config.data.length)
    names = ("tokens", "segments", "positions", "targets")
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        name: (tokens, jnp.dtype(jnp.int32)) for name in names
    }
    shapes["mask"] = (tokens, jnp.dtype(bool))  # a step on text does not use the ids of rows
    for name, (shape, dtype) in (stored.arrays if stored else {}).items():
        shapes[ANSWER_PREFIX + name] = ((*tokens, *shape), dtype)
    return shapes


def _stored_format(config: ConfigDict, vocab_size: int) -> teachers.SparseFormat | None:
    """What `teacher.store` keeps of each token: of a store that exists, or of "sampled:50"."""
    store = config.teacher.store
    if not store:
        return None
    if pathlib.Path(store).is_dir():
        return teachers.describe_text_store(store)[0]
    if store.partition(":")[0] not in KINDS:
        raise UsageError(
            f"teacher.store={store!r}: no such folder; expected that of a store, sampled:DRAWS, or "
            "top_k:IDS"
        )
    return teachers.SparseFormat.parse(store, vocab_size, key="teacher.store")
