"""From a config and its decoders to the comparison, the frozen parameters and the recipe.

No text is read, so that a plan, which has none, builds the very recipe of a run.
"""

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import methods, models
from distill_jax.errors import UsageError
from distill_jax.generation import Sampler
from distill_jax.models import language
from distill_jax.models.language import lora, quantized
from distill_jax.models.language.decoder import projections
from distill_jax.models.language.huggingface import compressed, tensor_map
from distill_jax.quantization.aware import Quantizer
from distill_jax.tasks import setup
from distill_jax.tasks.language.comparison import Comparison, Divergence, Network
from distill_jax.tasks.language.recipe import TextRecipe
from distill_jax.tasks.language.rollouts import Rollout
from distill_jax.tasks.quantized import make_quantizer
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


def build_comparison(
    config: ConfigDict,
    mesh: Mesh,
    teachers: Sequence[language.Decoder],
    student: language.Decoder,
    *,
    vocab_size: int,
    stored: SparseFormat | None = None,
) -> tuple[Comparison, models.Flat, Frozen]:
    """The comparison, the student's parameters that are trained, and all parameters that are not.

    Args:
      config: resolved.
      mesh: the devices.
      teachers: with arrays, or with `jax.ShapeDtypeStruct`s.
      student: likewise.
      vocab_size: how many ids they share.
      stored: the format of the stored answers that take the teachers' place; None without.
    """
    divergences, terms = _objective(config)
    graphdef, params, _ = models.split(student)
    trained, base = lora.split_adapters(params)
    online = teachers if divergences and stored is None else ()
    networks, weights = _networks(config, online)
    own = Network(student.config, graphdef)
    comparison = Comparison(own, networks, weights, divergences, terms, vocab_size, mesh, stored)
    arrays = [models.split(teacher)[1] for teacher in teachers]
    return comparison, trained, Frozen(student=base, teachers=arrays)


def _networks(
    config: ConfigDict, teachers: Sequence[language.Decoder]
) -> tuple[tuple[Network, ...], tuple[float, ...]]:
    """The teachers without their parameters, and the weight of each."""
    networks = tuple(Network(teacher.config, models.split(teacher)[0]) for teacher in teachers)
    raw = tuple(config.teacher.weights) or (1.0,) * len(networks)
    return networks, tuple(weight / sum(raw) for weight in raw[: len(networks)])


def for_evaluation(
    config: ConfigDict, comparison: Comparison, teachers: Sequence[language.Decoder]
) -> Comparison:
    """What evaluations compare: also with teachers that have no part in the loss."""
    if comparison.teachers:
        return comparison
    if not teachers:  # stored answers are those to the training rows alone
        return dataclasses.replace(comparison, divergences=(), stored=None)
    networks, weights = _networks(config, teachers)
    measure = (Divergence(weight=0.0),)
    return dataclasses.replace(
        comparison, teachers=networks, weights=weights, divergences=measure, stored=None
    )


def adapters_key(config: ConfigDict) -> jax.Array:
    """The key of the terms' adapters."""
    # Another stream than the student's own parameters, which are drawn from the seed itself.
    return jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), 1)


def student_quantizer(config: ConfigDict, student: language.Decoder) -> Quantizer | None:
    """The grids of a student, whose activations are then quantized too if they ask for it.

    Returns:
      None where the student is not quantized.

    Raises:
      UsageError: the recipe does not fit the student, or no folder can hold what it makes of it.
    """
    shapes = {name: value.shape for name, value in models.split(student)[1].items()}
    kernels = quantized.kernels(shapes)
    quantizer = make_quantizer(config, kernels, kernels)
    if quantizer is None:
        return None
    try:
        tensors = tensor_map.tensors(student.config, shapes)
        compressed.write_config(student.config, tensors, quantizer.grids)
    except UsageError as error:
        raise UsageError(f"student.quantize={quantizer.recipe!r}: {error}") from error
    for name, linear in projections(student):
        grid = quantizer.grids.get(f"{name}/kernel")
        linear.activations = grid.activations if grid else None
    return quantizer


def build_rollout(
    config: ConfigDict, comparison: Comparison, stops: Sequence[int], mesh: Mesh
) -> Rollout | None:
    """When and how the student writes its own batches; None for never.

    Raises:
      UsageError: the config contradicts itself.
    """
    chosen = config.rollout
    if not chosen.probability:
        return None
    setting = f"rollout.probability={chosen.probability}"
    if not comparison.teachers:
        raise UsageError(
            f"{setting}: method.name='supervised' has no teacher to judge what it writes"
        )
    if config.data.packing != "single":
        raise UsageError(
            f"data.packing={config.data.packing!r}: {setting} continues the prompt of a row; "
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
        stops=tuple(stops),
        mesh=mesh,
    )


def build_recipe(
    config: ConfigDict,
    comparison: Comparison,
    steps_per_epoch: float,
    rollout: Rollout | None,
    quantizer: Quantizer | None = None,
) -> TextRecipe:
    """What the compiled step is made from; `quantizer` is that of the student."""
    steps = setup.main_steps(config, steps_per_epoch)
    settings = setup.stage_settings(
        config,
        begin=0,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        learning_rate=setup.main_learning_rate(config, steps, steps_per_epoch),
        quantize=quantizer,
    )
    return TextRecipe(**vars(settings), comparison=comparison, rollout=rollout)
