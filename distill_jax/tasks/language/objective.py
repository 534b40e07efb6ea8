"""Where a decoder meets its teacher: both networks, what they are compared by, and their recipe.

No text is opened here, so that a plan, which has none, makes the very recipe of a run.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import methods, models, parallel
from distill_jax.errors import UsageError
from distill_jax.generation import Sampler
from distill_jax.models import language
from distill_jax.models.language import lora
from distill_jax.models.language.student import open_student
from distill_jax.optim import optimizers, schedules
from distill_jax.storage import reporting_unreachable, resolve_path
from distill_jax.tasks.language.recipe import Comparison, Divergence, Network, TextRecipe
from distill_jax.tasks.language.rollouts import Rollout
from distill_jax.teachers import SparseFormat
from distill_jax.training.state import Frozen


def _objective(config: ConfigDict) -> tuple[tuple[Divergence, ...], tuple[methods.Term, ...]]:
    """The divergences and the other terms of the method; none for the text alone."""
    divergences, others = [], []
    terms = methods.terms(config.method.name, configs.method_options(config))
    for term in terms:
        divergence = term.method.vocab_divergence()
        if divergence is not None:
            divergences.append(Divergence(divergence, term.weight))
        elif term.method.only == "text":
            others.append(term)
        elif len(terms) > 1 or term.name != "supervised":
            known = [name for name in methods.names_for_text() if name != "supervised"]
            raise UsageError(
                f"method.name={config.method.name!r}: {term.name} is not for text; expected "
                f"supervised, or some of {', '.join(known)} joined by +"
            )
    if others and not divergences:
        # It trains nothing, and measures how far the student is from the teacher.
        divergences.append(Divergence(weight=0.0))
    return tuple(divergences), tuple(others)


def open_teachers(
    config: ConfigDict, mesh: Mesh, load: Callable[..., language.Decoder] = language.load
) -> tuple[language.Decoder, ...]:
    """The teachers; () where none is named.

    Args:
      config: resolved.
      mesh: the devices.
      load: reads a folder; `language.load_zeros` where only shapes are wanted.

    Raises:
      UsageError: one cannot be used.
    """
    dtype = jnp.dtype(config.teacher.compute_dtype)
    return tuple(
        load(
            folder_of(path),
            key="teacher.path",
            param_dtype=dtype,
            dtype=dtype,
            quantize=config.teacher.quantize,
            sharding_fn=placement(config, mesh, "teacher"),
            attention=config.training.attention,
            mesh=mesh,
        )
        for path in config.teacher.path
    )


def open_own(
    config: ConfigDict,
    mesh: Mesh,
    teacher: language.Decoder | None,
    vocab_size: int,
    load: Callable[..., language.Decoder] = language.load,
) -> language.Decoder:
    """The student, with its adapters if it has some.

    Args:
      config: resolved.
      mesh: the devices.
      teacher: the first teacher, for layers or the family of it.
      vocab_size: of a new model.
      load: as in `open_teachers`.

    Raises:
      UsageError: it cannot be made.
    """
    return open_student(
        configs.student_options(config),
        teacher,
        vocab_size,
        seed=config.seed,
        sharding_fn=None if load is language.load_zeros else placement(config, mesh, "student"),
        load=load,
        dtype=jnp.dtype(config.training.compute_dtype),
        remat=config.training.remat,
        attention=config.training.attention,
        mesh=mesh,
    )


def compare(
    config: ConfigDict,
    mesh: Mesh,
    teachers: Sequence[language.Decoder],
    student: language.Decoder,
    vocab_size: int,
    stored: SparseFormat | None = None,
) -> tuple[Comparison, models.Flat, Frozen]:
    """The comparison, the student's parameters that are trained, and all parameters that are not.

    Args:
      config: resolved.
      mesh: the devices.
      teachers: of arrays, or of `jax.ShapeDtypeStruct`s.
      student: likewise.
      vocab_size: how many ids they share.
      stored: what is kept of the answers that a store gives in the teachers' place; None without.
    """
    divergences, terms = _objective(config)
    graphdef, params, _ = models.split(student)
    trained, base = lora.split_adapters(params)
    online = teachers if divergences and stored is None else ()
    networks, weights = _of_teachers(config, online)
    own = Network(student.config, graphdef)
    comparison = Comparison(own, networks, weights, divergences, terms, vocab_size, mesh, stored)
    arrays = [models.split(teacher)[1] for teacher in teachers]
    return comparison, trained, Frozen(student=base, teachers=arrays)


def _of_teachers(
    config: ConfigDict, teachers: Sequence[language.Decoder]
) -> tuple[tuple[Network, ...], tuple[float, ...]]:
    """Their networks, and the weight of each."""
    networks = tuple(Network(teacher.config, models.split(teacher)[0]) for teacher in teachers)
    raw = tuple(config.teacher.weights) or (1.0,) * len(networks)
    return networks, tuple(weight / sum(raw) for weight in raw[: len(networks)])


def measured(
    config: ConfigDict, comparison: Comparison, teachers: Sequence[language.Decoder]
) -> Comparison:
    """What evaluations compare: also with teachers that have no part in the loss."""
    if comparison.teachers:
        return comparison
    if not teachers:  # stored answers are of the training rows alone
        return dataclasses.replace(comparison, divergences=(), stored=None)
    networks, weights = _of_teachers(config, teachers)
    measure = (Divergence(weight=0.0),)
    return dataclasses.replace(
        comparison, teachers=networks, weights=weights, divergences=measure, stored=None
    )


def adapters_key(config: ConfigDict) -> jax.Array:
    """The key of the terms' adapters."""
    # Another stream than the student's own parameters, which are drawn from the seed as it is.
    return jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), 1)


def where(config: ConfigDict, mesh: Mesh, arrays: models.Flat, part: str) -> Any:
    """The shardings of frozen arrays of "student" or "teacher"."""
    return parallel.shardings({part: arrays}, mesh, config.mesh.replicate)[part]


def placement(config: ConfigDict, mesh: Mesh, part: str) -> language.ShardingFn | None:
    """Where the parameters of "student" or "teacher" go; None for the only device."""
    if mesh.size == 1:
        return None
    if part in config.mesh.replicate:
        return lambda name, shape: parallel.replicated(mesh)
    return lambda name, shape: parallel.sharding(name, shape, mesh)


def folder_of(path: str | os.PathLike) -> pathlib.Path:
    """The checkpoint in a workdir of ours, or the folder itself."""
    folder = resolve_path(path, "teacher.path")
    inner = folder / "model"
    with reporting_unreachable(folder, "teacher.path"):
        return inner if (inner / "config.json").is_file() else folder


def rollout_of(
    config: ConfigDict, comparison: Comparison, stops: Sequence[int], mesh: Mesh
) -> Rollout | None:
    """When and how the student writes its own batches; None for never.

    Raises:
      UsageError: the config asks for what cannot be.
    """
    chosen = config.rollout
    if not chosen.probability:
        return None
    said = f"rollout.probability={chosen.probability}"
    if not comparison.teachers:
        raise UsageError(f"{said}: method.name='supervised' has no teacher to judge what it writes")
    if config.data.packing != "single":
        raise UsageError(
            f"data.packing={config.data.packing!r}: {said} continues the prompt of a row; "
            "expected 'single', one document a row"
        )
    if chosen.max_new_tokens >= config.data.length:
        raise UsageError(
            f"rollout.max_new_tokens={chosen.max_new_tokens}: expected less than "
            f"data.length={config.data.length}, which holds the prompt too"
        )
    return Rollout(
        probability=chosen.probability,
        sampler=Sampler(chosen.temperature, chosen.top_k, chosen.top_p, key="rollout"),
        max_new_tokens=chosen.max_new_tokens,
        prompt_tokens=chosen.prompt_tokens,
        vocab_size=comparison.vocab_size,
        stops=stops,
        mesh=mesh,
    )


def recipe_of(
    config: ConfigDict, comparison: Comparison, steps_per_epoch: float, rollout: Rollout | None
) -> TextRecipe:
    """What the compiled step is made from."""
    steps = config.training.steps or math.ceil(config.training.epochs * steps_per_epoch - 1e-9)
    rate = optimizers.learning_rate(
        config.schedule, config.optimizer.learning_rate, steps, steps_per_epoch
    )
    return TextRecipe(
        begin=0,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        hard_weight=schedules.parse(config.method.hard_weight),
        soft_weight=schedules.parse(config.method.soft_weight),
        temperature=schedules.parse(config.method.temperature),
        optimizer=optimizers.create(config.optimizer, rate),
        learning_rate=rate,
        max_norm=0.0,
        ema_decay=config.training.ema_decay,
        accumulate=config.training.accumulate,
        log_every=config.logging.every_steps,
        comparison=comparison,
        rollout=rollout,
    )
