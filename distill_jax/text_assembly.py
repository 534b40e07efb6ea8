"""From a resolved config to the parts of a run on text: decoders, tokenizer, packed rows.

Nothing is written here; what does not fit is said in one line each, as in `assembly`.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import data, hosts, methods, models, parallel, text_prompts
from distill_jax.assembly import mesh_of
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.generation import Sampler
from distill_jax.models import language
from distill_jax.models.language import lora
from distill_jax.models.language.student import open_student
from distill_jax.parts import Evaluate, Parts
from distill_jax.training import optimizers, prompts, schedules, state
from distill_jax.training.rollouts import Rollout
from distill_jax.training.text import (
    Comparison,
    Divergence,
    Network,
    TextEvaluator,
    TextRecipe,
)

#: The divergence of a method on logits, and its option that is the divergence's skew.
DIVERGENCES = {
    "soft_target": ("forward_kl", ""),
    "reverse_kl": ("reverse_kl", ""),
    "jensen_shannon": ("jensen_shannon", "beta"),
    "skew_kl": ("skew_kl", "alpha"),
    "skew_reverse_kl": ("skew_reverse_kl", "alpha"),
    "total_variation": ("total_variation", ""),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextParts(Parts):
    """The parts of a run on text.

    Attributes:
      rows: the packed training documents.
    """

    rows: text.Rows

    @property
    def _order(self) -> data.Order:
        return data.Order(np.arange(len(self.rows), dtype=np.int32), self.config.seed)

    def ids(self, step: int) -> np.ndarray:
        size = self.config.training.batch_size
        return self._order.ids(step * size, size)

    def batches(self, position: int) -> Iterator[dict[str, np.ndarray]]:
        process, processes = parallel.share(self.mesh)
        size = self.config.training.batch_size
        feed = text.training(self.rows, self._order, size, process=process, processes=processes)
        return feed.at(position)

    def save(self, folder: str | os.PathLike, params: Any, stats: Any) -> str:
        """Of an adapted student a plain one, with the adapters merged, in float32."""
        del stats  # a decoder has none
        config = self.recipe.comparison.student.config
        base, options = lora.base_of(self.teacher_variables), self.config.student
        base = parallel.fetch(base)

        def write() -> str:
            whole = params
            if base:
                whole = lora.merged(params, base, options.lora_alpha / options.lora_rank)
            language.save(folder, language.assemble(config, jax.tree.map(jnp.asarray, whole)))
            return _fingerprint(config, whole)

        return hosts.on_first(write)

    def load(self, folder: str | os.PathLike) -> tuple[models.Flat, models.Flat]:
        """Of an adapted student the merged kernels, and adapters that add nothing to them."""
        params = models.split(language.load(folder, key="--workdir"))[1]
        params |= {
            name: jnp.zeros_like(value)
            for name, value in self.initial.params.items()
            if name not in params
        }
        return parallel.place(params, parallel.replicated(self.mesh)), {}


def prepare(config: ConfigDict) -> TextParts:
    """Opens and checks all that a resolved config of text names; writes nothing.

    Raises:
      UsageError: when the text, the tokenizer, the teacher, the mesh or the method do not fit.
    """
    mesh = mesh_of(config)
    whole = parallel.replicated(mesh)
    divergences, terms = _objective(config)
    teacher = _teacher(config, mesh) if divergences else None
    tokenizer, shared = _tokenizer(config)
    student = open_student(
        configs.student_options(config),
        teacher,
        tokenizer.vocab_size,
        seed=config.seed,
        dtype=jnp.dtype(config.training.compute_dtype),
        remat=config.training.remat,
    )
    vocab_size = shared
    for key, model in (("student", student), ("teacher", teacher)):
        if model is not None and model.config.vocab_size < shared:
            raise UsageError(
                f"data.tokenizer={tokenizer.path!r}: has {shared} ids, the {key} "
                f"{model.config.vocab_size}; expected the tokenizer that it was trained with"
            )
    graphdef, params, _ = models.split(student)
    params, base = lora.apart(params)
    teacher_params, entries, other, about = {}, [], None, {}
    if teacher is not None:
        other_graphdef, teacher_params, _ = models.split(teacher)
        other = Network(teacher.config, other_graphdef)
        entries = [
            {
                "path": str(config.teacher.path[0]),
                "fingerprint": _fingerprint(teacher.config, teacher_params),
                "parameters": models.count(models.split(language.abstract(teacher.config))[1]),
                "quantize": config.teacher.quantize,
            }
        ]
        teacher_params = parallel.place(teacher_params, whole)
    if base:
        about["base"] = {
            "path": config.student.path or str(config.teacher.path[0]),
            "fingerprint": _fingerprint(student.config, base),
            "parameters": models.count(base),
        }
        teacher_params |= parallel.place(lora.frozen(base), whole)
    comparison = Comparison(
        Network(student.config, graphdef), other, divergences, terms, vocab_size
    )
    # Another stream than the student's own parameters, which are drawn from the seed as it is.
    drawn = jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), 1)
    adapters = comparison.adapters(drawn)
    splits = _splits(config, tokenizer)
    asked = text_prompts.prepare(config, tokenizer, comparison, teacher_params, mesh)
    if "validation" in asked and "validation" not in splits:
        raise UsageError(
            f"evaluation.prompts={config.evaluation.prompts!r}: data.validation="
            f"{config.data.validation} holds out no text beside them; expected more, or "
            "evaluation.test_prompts"
        )
    summaries = {name: text.summary(packed) for name, packed in splits.items()}
    rows = splits.pop("train")
    steps_per_epoch = len(rows) / config.training.batch_size
    rollout = _rollout(config, comparison, tokenizer, mesh)
    recipe = _recipe(config, comparison, steps_per_epoch, rollout)

    process, processes = parallel.share(mesh)

    def evaluator(name: str, held_out: text.Rows) -> Evaluate:
        size = config.evaluation.batch_size
        feed = text.evaluation(held_out, size, process=process, processes=processes)
        evaluate = TextEvaluator(comparison, teacher_params, mesh, lambda: feed)
        return prompts.beside(evaluate, asked[name]) if name in asked else evaluate

    return TextParts(
        config=config,
        mesh=mesh,
        recipes=(recipe,),
        initial=parallel.fetch(
            state.initial(
                params,
                {},
                adapters,
                {},
                recipe.optimizer,
                seed=config.seed,
                averaged=config.training.ema_decay > 0,
                metrics=recipe.metrics,
            )
        ),
        teacher_variables=teacher_params,
        store={},
        evaluators={name: evaluator(name, held_out) for name, held_out in splits.items()},
        steps_per_epoch=steps_per_epoch,
        description={
            "teachers": entries,
            "data": {
                "name": config.data.name,
                "fingerprint": text.fingerprint(rows),
                "tokenizer": {"path": tokenizer.path, "fingerprint": tokenizer.fingerprint},
                **summaries,
                "prompts": text_prompts.described(asked),
                "class_names": None,
            },
            **about,
        },
        rows=rows,
    )


def _objective(config: ConfigDict) -> tuple[tuple[Divergence, ...], tuple[methods.Term, ...]]:
    """The divergences and the other terms of the method; none for the text alone."""
    divergences, others = [], []
    terms = methods.terms(config.method.name, configs.method_options(config))
    for term in terms:
        if term.method.text_alone:
            others.append(term)
        elif term.name in DIVERGENCES:
            if term.method.standardize:
                raise UsageError("method.standardize=True: not for text; expected False")
            name, option = DIVERGENCES[term.name]
            skew = float(getattr(term.method, option)) if option else None
            divergences.append(Divergence(name, skew, term.weight))
        elif len(terms) > 1 or term.name != "supervised":
            known = (*DIVERGENCES, "hidden_states", "attention_relations")
            raise UsageError(
                f"method.name={config.method.name!r}: {term.name} is not for text; expected "
                f"supervised, or some of {', '.join(known)} joined by +"
            )
    if others and not divergences:
        # It trains nothing, and measures how far the student is from the teacher.
        divergences.append(Divergence("forward_kl", weight=0.0))
    return tuple(divergences), tuple(others)


def _teacher(config: ConfigDict, mesh: Mesh) -> language.Decoder:
    paths = config.teacher.path
    if len(paths) != 1:
        raise UsageError(f"teacher.path={paths}: expected one teacher of text")
    dtype = jnp.dtype(config.teacher.compute_dtype)
    return language.load(
        folder_of(paths[0]),
        key="teacher.path",
        param_dtype=dtype,
        dtype=dtype,
        quantize=config.teacher.quantize,
        layout=lambda name, shape: parallel.replicated(mesh),
    )


def folder_of(path: str | os.PathLike) -> pathlib.Path:
    """The checkpoint in a workdir of ours, or the folder itself."""
    inner = pathlib.Path(path, "model")
    return inner if (inner / "config.json").is_file() else pathlib.Path(path)


def _tokenizer(config: ConfigDict) -> tuple[text.Tokenizer, int]:
    """The tokenizer of the data, and how many ids teacher and student share."""
    given = {"data.tokenizer": config.data.tokenizer, "student.path": config.student.path}
    if config.teacher.path:
        given["teacher.path"] = str(folder_of(config.teacher.path[0]))
    found = {
        key: text.load_tokenizer(path, key=key)
        for key, path in given.items()
        if path and (key == "data.tokenizer" or _has_tokenizer(path))
    }
    if not found:
        raise UsageError(
            "data.tokenizer='': neither teacher nor student comes with one; expected the folder or "
            "file of the tokenizer"
        )
    key, chosen = next(iter(found.items()))
    others = {name: other for name, other in found.items() if name != key}
    shared = [
        text.same_vocabulary(other, chosen, key=key if "path" in key else name)
        for name, other in others.items()
    ]
    return chosen, min([chosen.vocab_size, *shared])


def _has_tokenizer(folder: str) -> bool:
    return any(
        pathlib.Path(folder, name).is_file() for name in ("tokenizer.json", "tokenizer.model")
    )


def _has_template(tokenizer: text.Tokenizer) -> bool:
    beside = pathlib.Path(tokenizer.path).with_name("chat_template.jinja")
    return "chat_template" in tokenizer.settings or beside.is_file()


def _splits(config: ConfigDict, tokenizer: text.Tokenizer) -> dict[str, text.Rows]:
    """Packed rows of "train", "validation" (where held out) and "test"."""

    def documents_of(path: str) -> text.Documents:
        records = text.read(path, fields=config.data.fields, documents=config.data.documents)
        chat = text.chat_template(tokenizer) if _has_template(tokenizer) else None
        return text.tokenize(records, tokenizer, chat=chat, eos=tokenizer.eos is not None)

    if not config.data.path:
        raise UsageError("data.path='': expected the file of the training documents")
    chosen = {"validation": config.data.validation, "split_seed": config.data.split_seed}
    train = documents_of(config.data.path)
    if config.data.test_path:
        test = documents_of(config.data.test_path)
    else:
        if not config.data.validation:
            raise UsageError(
                "data.test_path='': with data.validation=0 nothing is held out; expected a file of "
                "test documents"
            )
        # Another seed than that of the validation documents, which are chosen from what is left.
        train, test = text.split(
            train, validation=config.data.validation, split_seed=config.data.split_seed + 1
        )
    train, validation = text.split(train, **chosen, fraction=config.data.fraction)
    found = {"train": train, "validation": validation, "test": test}
    return {
        name: text.pack(
            documents, config.data.length, strategy=config.data.packing, long=config.data.long
        )
        for name, documents in found.items()
        if len(documents)
    }


def _rollout(
    config: ConfigDict, comparison: Comparison, tokenizer: text.Tokenizer, mesh: Mesh
) -> Rollout | None:
    """When and how the student writes its own batches."""
    chosen = config.rollout
    if not chosen.probability:
        return None
    said = f"rollout.probability={chosen.probability}"
    if comparison.teacher is None:
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
        stops=tokenizer.stops,
        mesh=mesh,
    )


def _recipe(
    config: ConfigDict, comparison: Comparison, steps_per_epoch: float, rollout: Rollout | None
) -> TextRecipe:
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
        optimizer=optimizers.make(config.optimizer, rate),
        learning_rate=rate,
        max_norm=0.0,
        ema_decay=config.training.ema_decay,
        accumulate=config.training.accumulate,
        log_every=config.logging.every_steps,
        comparison=comparison,
        rollout=rollout,
    )


def _fingerprint(config: language.DecoderConfig, params: models.Flat) -> str:
    """SHA-256, in hex, of what a decoder computes and of all its parameters."""
    return models.fingerprint_of(dataclasses.asdict(config), parallel.fetch(params))
