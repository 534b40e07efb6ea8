"""From a resolved config to the parts of a run on text: decoders, tokenizer, packed rows.

Nothing is written here; what does not fit is said in one line each, as in `assembly`.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from distill_jax import data, models, parallel, storage, teachers
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import lora
from distill_jax.optim import schedules
from distill_jax.processes import coordination
from distill_jax.tasks.base import Evaluate, Parts
from distill_jax.tasks.images.parts import initial_state, mesh_of
from distill_jax.tasks.language import objective, prompts, questions
from distill_jax.tasks.language.recipe import TextEvaluator


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextParts(Parts):
    """The parts of a run on text.

    Attributes:
      rows: the packed training documents.
      answers: what a store keeps of each token, and its files; None without one.
    """

    rows: text.Rows
    answers: tuple[teachers.SparseFormat, teachers.AnswerStore] | None = None

    @property
    def _order(self) -> data.Order:
        return data.Order(np.arange(len(self.rows), dtype=np.int32), self.config.seed)

    def ids(self, step: int) -> np.ndarray:
        size = self.config.training.batch_size
        return self._order.ids(step * size, size)

    def batches(self, position: int) -> Iterator[dict[str, np.ndarray]]:
        process, processes = parallel.process_share(self.mesh)
        size = self.config.training.batch_size
        feed = text.training_feed(
            self.rows, self._order, size, process=process, processes=processes
        )
        if self.answers is None:
            return feed.at(position)
        sparse, files = self.answers
        return (
            {**batch, **teachers.gather_answers(files, tuple(sparse.arrays), batch["id"])}
            for batch in feed.at(position)
        )

    def save(self, folder: str | os.PathLike, params: Any, stats: Any) -> str:
        """Of an adapted student a plain one, with the adapters merged, in float32."""
        del stats  # a decoder has none
        config = self.recipe.comparison.student.config
        base, options = self.frozen.student, self.config.student
        if base:
            params = lora.merge_adapters(params, base, options.lora_alpha / options.lora_rank)
        with storage.staging_folder(folder, "config.json") as here:
            language.save_params(here, config, params)
        definition = dataclasses.asdict(config)
        fingerprint = models.fingerprint_of(definition, params, parallel.fetch_to_first)
        return coordination.broadcast_from_first(lambda: fingerprint)

    def load(self, folder: str | os.PathLike) -> tuple[models.Flat, models.Flat]:
        """Of an adapted student the merged kernels, and adapters that add nothing to them."""
        layout = objective.placement(self.config, self.mesh, "student")
        params = models.split(language.load(folder, key="--workdir", sharding_fn=layout))[1]
        params |= {
            name: jnp.zeros_like(value)
            for name, value in self.initial.params.items()
            if name not in params
        }
        return params, {}


def prepare(config: ConfigDict) -> TextParts:
    """Opens and checks all that a resolved config of text names; writes nothing.

    Raises:
      UsageError: when the text, the tokenizer, the teacher, the mesh or the method do not fit.
    """
    mesh = mesh_of(config)
    opened = objective.open_teachers(config, mesh)
    tokenizer, shared = tokenizer_of(config)
    first = opened[0] if opened else None
    student = objective.open_own(config, mesh, first, tokenizer.vocab_size)
    paired = list(zip(config.teacher.path, opened, strict=True))
    named = {f"teacher {path!r}": model for path, model in paired}
    check_vocabulary(tokenizer, shared, {"student": student, **named})
    splits = splits_of(config, tokenizer)
    entries = [described(config, path, teacher) for path, teacher in paired]
    answers, sparse = None, None
    if config.teacher.store:
        answers, entries = _stored(config, tokenizer, shared, splits["train"], entries)
        sparse = answers[0]
    comparison, params, frozen = objective.compare(config, mesh, opened, student, shared, sparse)
    about = {}
    if frozen.student:
        about["base"] = {
            "path": config.student.path or str(config.teacher.path[0]),
            "fingerprint": _fingerprint(student.config, frozen.student),
            "parameters": models.parameter_count(frozen.student),
        }
        where = objective.where(config, mesh, frozen.student, "student")
        frozen = dataclasses.replace(frozen, student=parallel.put(frozen.student, where))
    measured = objective.measured(config, comparison, opened)
    adapters = comparison.adapters(objective.adapters_key(config))
    asked = questions.prepare(config, tokenizer, measured, frozen, mesh)
    if "validation" in asked and "validation" not in splits:
        raise UsageError(
            f"evaluation.prompts={config.evaluation.prompts!r}: data.validation="
            f"{config.data.validation} holds out no text beside them; expected more, or "
            "evaluation.test_prompts"
        )
    summaries = {name: text.summary(packed) for name, packed in splits.items()}
    rows = splits.pop("train")
    steps_per_epoch = len(rows) / config.training.batch_size
    rollout = objective.rollout_of(config, comparison, tokenizer.stop_ids, mesh)
    recipe = objective.recipe_of(config, comparison, steps_per_epoch, rollout)

    process, processes = parallel.process_share(mesh)

    def evaluator(name: str, held_out: text.Rows) -> Evaluate:
        size = config.evaluation.batch_size
        feed = text.evaluation_feed(held_out, size, process=process, processes=processes)
        evaluate = TextEvaluator(measured, frozen, mesh, lambda: feed)
        return prompts.beside(evaluate, asked[name]) if name in asked else evaluate

    return TextParts(
        config=config,
        mesh=mesh,
        recipes=(recipe,),
        initial=initial_state(config, mesh, recipe, (params, {}, adapters, {})),
        frozen=frozen,
        resident={},
        evaluators={name: evaluator(name, held_out) for name, held_out in splits.items()},
        steps_per_epoch=steps_per_epoch,
        description={
            "teachers": entries,
            "data": {
                "name": config.data.name,
                "fingerprint": text.fingerprint(rows),
                "tokenizer": {"path": tokenizer.path, "fingerprint": tokenizer.fingerprint},
                **summaries,
                "prompts": questions.described(asked),
                "class_names": None,
            },
            **about,
        },
        rows=rows,
        answers=answers,
    )


def check_vocabulary(
    tokenizer: text.Tokenizer, shared: int, named: Mapping[str, language.Decoder]
) -> None:
    """UsageError where a decoder has fewer ids than are shared."""
    for whose, model in named.items():
        if model.config.vocab_size < shared:
            raise UsageError(
                f"data.tokenizer={tokenizer.path!r}: has {shared} ids, the {whose} "
                f"{model.config.vocab_size}; expected the tokenizer that it was trained with"
            )


def described(
    config: ConfigDict, path: str | os.PathLike, teacher: language.Decoder
) -> dict[str, Any]:
    """What a manifest says of a teacher that was read."""
    return {
        "path": str(path),
        "fingerprint": _fingerprint(teacher.config, models.split(teacher)[1]),
        "parameters": models.parameter_count(models.split(language.abstract(teacher.config))[1]),
        "quantize": config.teacher.quantize,
    }


def _stored(
    config: ConfigDict,
    tokenizer: text.Tokenizer,
    vocab_size: int,
    rows: text.Rows,
    entries: list[dict[str, Any]],
) -> tuple[tuple[teachers.SparseFormat, teachers.AnswerStore], list[dict[str, Any]]]:
    """The answers of a store, and what a manifest says of them; `entries` of the teacher beside."""
    path = config.teacher.store
    sparse, files = teachers.open_text_store(
        path,
        rows=text.fingerprint(rows),
        tokenizer=tokenizer.fingerprint,
        vocab_size=vocab_size,
        temperature=schedules.parse(config.method.temperature).start,
        teacher=entries[0]["fingerprint"] if entries else None,
    )
    manifest = files.manifest
    entry = {
        "path": path,
        **manifest["teacher"],
        "quantize": manifest["quantize"],
        "answers": {**manifest["scheme"], "dtype": manifest["dtype"]},
    }
    return (sparse, files), [entry]


def tokenizer_of(config: ConfigDict) -> tuple[text.Tokenizer, int]:
    """The tokenizer of the data, and how many ids teachers and student share."""
    given = [("data.tokenizer", config.data.tokenizer), ("student.path", config.student.path)]
    given += [("teacher.path", str(objective.folder_of(p))) for p in config.teacher.path]
    found = [
        (key, text.load_tokenizer(path, key=key))
        for key, path in given
        if path and (key == "data.tokenizer" or _has_tokenizer(path))
    ]
    if not found:
        raise UsageError(
            "data.tokenizer='': neither teacher nor student comes with one; expected the folder or "
            "file of the tokenizer"
        )
    (key, chosen), *others = found
    shared = []
    for name, other in others:
        if name == "teacher.path" != key:
            shared.append(text.same_vocabulary(other, chosen, key=key))
        else:  # the other one is said to differ, be it a second teacher
            shared.append(text.same_vocabulary(chosen, other, key=name))
    return chosen, min([chosen.vocab_size, *shared])


def _has_tokenizer(folder: str) -> bool:
    return any(
        (storage.resolve_path(folder, "teacher.path") / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model")
    )


def _has_template(tokenizer: text.Tokenizer) -> bool:
    beside = storage.resolve_path(tokenizer.path, "data.tokenizer").with_name("chat_template.jinja")
    return "chat_template" in tokenizer.settings or beside.is_file()


def splits_of(config: ConfigDict, tokenizer: text.Tokenizer) -> dict[str, text.Rows]:
    """Packed rows of "train", "validation" (where held out) and "test"."""

    def documents_of(path: str) -> text.Documents:
        records = text.read(path, fields=config.data.fields, documents=config.data.documents)
        chat = text.load_chat_template(tokenizer) if _has_template(tokenizer) else None
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


def _fingerprint(config: language.DecoderConfig, params: models.Flat) -> str:
    """SHA-256, in hex, of what a decoder computes and of all its parameters."""
    return models.fingerprint_of(dataclasses.asdict(config), params)
