"""Opens, checks and places on the mesh all that a run on text is made of; writes no file."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import data, models, parallel, storage, teachers
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import lora
from distill_jax.models.language import quantized as quantized_decoder
from distill_jax.optim import schedules
from distill_jax.processes import coordination
from distill_jax.quantization.aware import Quantizer
from distill_jax.tasks import notes, quantized
from distill_jax.tasks.base import Evaluate, MakeRecord, Parts
from distill_jax.tasks.language import build, networks
from distill_jax.tasks.language.comparison import Comparison
from distill_jax.tasks.language.data import check_vocabulary, load_splits, notes_on, open_tokenizer
from distill_jax.tasks.language.evaluation import TextEvaluator
from distill_jax.tasks.language.open_prompts import describe, open_prompts
from distill_jax.tasks.language.prompts import PromptEvaluator, with_answers
from distill_jax.tasks.language.record import record_of
from distill_jax.tasks.licences import start_of_student, with_licences, written_by
from distill_jax.tasks.setup import frozen_shardings, initial_state, make_mesh
from distill_jax.training.state import Frozen, InitialArrays


@dataclasses.dataclass(frozen=True)
class StoredAnswers:
    """What a store has of the training rows.

    Attributes:
      format: what it keeps of each token.
      store: its files.
      entry: what the manifest records of it.
    """

    format: teachers.SparseFormat
    store: teachers.AnswerStore
    entry: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StoredAnswersFeed:
    """Batches of rows with the stored answers to their tokens."""

    feed: text.TrainingFeed
    answers: StoredAnswers

    def at(self, position: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches without end, from the row at `position` of the training order on."""
        names = tuple(self.answers.format.arrays)
        for batch in self.feed.at(position):
            found = teachers.gather_answers(self.answers.store, names, batch["id"])
            yield {**batch, **found}


@dataclasses.dataclass(frozen=True)
class DecoderFiles:
    """Students as Hugging Face folders; those with low-rank adapters are merged, in float32, and of
    quantized ones the codes and scales are written.

    Attributes:
      config: resolved.
      mesh: the devices.
      decoder: the student's.
      base: the frozen part of an adapted student, else {}.
      trained: the shapes and shardings of the student's parameters that are trained.
      quantizer: of a student that was trained with quantized matrices.
    """

    config: ConfigDict
    mesh: Mesh
    decoder: language.DecoderConfig
    base: models.Flat
    trained: dict[str, jax.ShapeDtypeStruct]
    quantizer: Quantizer | None = None

    def save(self, folder: str | os.PathLike, params: models.Flat, stats: models.Flat) -> str:
        del stats  # a decoder has none
        options = self.config.student
        whole: Mapping[str, Any] = params
        chosen = self.quantizer.grids if self.quantizer else {}
        if self.quantizer:
            whole = quantized_decoder.with_codes(params, self.quantizer.encode(params), chosen)
        if self.base:
            scale = options.lora_alpha / options.lora_rank
            whole = lora.merge_adapters(params, self.base, scale)
        definition = self.decoder.definition()
        of_first = models.fingerprint_of(definition, whole, parallel.fetch_to_first)
        fingerprint = coordination.broadcast_from_first(lambda: of_first)
        with storage.staging_folder(folder, "config.json") as staging:
            language.save_params(staging, self.decoder, whole, identity=fingerprint, chosen=chosen)
        return fingerprint

    def load(self, folder: str | os.PathLike) -> tuple[models.Flat, models.Flat]:
        """For an adapted student: the merged kernels, and adapters that add nothing to them; for a
        quantized one the values of its codes, as the run evaluated them.
        """
        params = models.split(networks.load_saved(self.config, self.mesh, folder))[1]
        if self.quantizer:
            params = quantized_decoder.decode(params, self.quantizer.grids, jnp.float32)
        zeros = {
            name: parallel.put(jnp.zeros(shape.shape, shape.dtype), shape.sharding)
            for name, shape in self.trained.items()
            if name not in params
        }
        return params | zeros, {}


@dataclasses.dataclass(frozen=True)
class _Opened:
    """The networks and the text of a run.

    Attributes:
      teachers: the decoders that the config names.
      student: the student's decoder.
      tokenizer: of the text.
      shared: how many ids teachers and student share.
      splits: packed rows of "train", "validation" (where held out) and "test".
      answers: those of a store; None without one.
      entries: what the manifest records of each teacher.
    """

    teachers: tuple[language.Decoder, ...]
    student: language.Decoder
    tokenizer: text.Tokenizer
    shared: int
    splits: dict[str, text.Rows]
    answers: StoredAnswers | None
    entries: list[dict[str, Any]]


def _open(config: ConfigDict, mesh: Mesh) -> _Opened:
    decoders = networks.open_teachers(config, mesh)
    tokenizer, shared = open_tokenizer(config)
    student = networks.open_student(config, mesh, decoders, tokenizer.vocab_size)
    named = list(zip(config.teacher.path, decoders, strict=True))
    check_vocabulary(
        tokenizer,
        shared,
        {"student": student, **{f"teacher {path!r}": decoder for path, decoder in named}},
    )
    splits = load_splits(config, tokenizer, shared)
    entries = [describe_teacher(config, path, decoder) for path, decoder in named]
    answers = None
    if config.teacher.store:
        answers = _open_answers(config, tokenizer, shared, splits["train"], entries)
        entries = [answers.entry]
    return _Opened(decoders, student, tokenizer, shared, splits, answers, entries)


def prepare(config: ConfigDict) -> Parts:
    """Opens and checks all that a resolved config of text names; writes nothing.

    Raises:
      UsageError: when the text, the tokenizer, the teacher, the mesh or the method do not fit.
    """
    mesh = make_mesh(config)
    opened = _open(config, mesh)
    rows, answers = opened.splits["train"], opened.answers
    quantizer = build.student_quantizer(config, opened.student)
    comparison, params, frozen = build.build_comparison(
        config,
        mesh,
        opened.teachers,
        opened.student,
        vocab_size=opened.shared,
        stored=answers.format if answers else None,
    )
    base = _describe_base(config, opened.student, frozen)
    frozen = _on_devices(config, mesh, frozen)
    compared = build.for_evaluation(config, comparison, opened.teachers)
    adapters = comparison.adapters(build.adapters_key(config))
    prompts = open_prompts(config, opened.tokenizer, compared, frozen, mesh)
    if "validation" in prompts and "validation" not in opened.splits:
        raise UsageError(
            f"evaluation.prompts={config.evaluation.prompts!r}: data.validation="
            f"{config.data.validation} holds out no text for them; expected more, or "
            "evaluation.test_prompts"
        )
    steps_per_epoch = len(rows) / config.training.batch_size
    rollout = build.build_rollout(config, comparison, opened.tokenizer.stop_ids, mesh)
    recipe = build.build_recipe(config, comparison, steps_per_epoch, rollout, quantizer)
    initial = initial_state(config, mesh, recipe, InitialArrays(params, {}, adapters, {}))
    feed = _training_feed(config, mesh, rows)
    return Parts(
        config=config,
        mesh=mesh,
        recipes=(recipe,),
        initial=initial,
        frozen=frozen,
        resident={},
        order=feed.order,
        feed=StoredAnswersFeed(feed, answers) if answers else feed,
        evaluators=_evaluators(config, mesh, opened, compared, frozen, prompts),
        files=DecoderFiles(
            config, mesh, opened.student.config, frozen.student, _shapes(initial.params), quantizer
        ),
        steps_per_epoch=steps_per_epoch,
        description={
            **_description(config, opened, prompts),
            **base,
            **quantized.description(quantizer, params),
        },
        notes=(
            *notes_on(opened.splits),
            *_notes_on_validation(config, opened.splits),
            *(found.prompts.note for found in prompts.values() if found.prompts.note),
        ),
        record=_record(config, mesh, opened, compared, frozen),
    )


def _record(
    config: ConfigDict, mesh: Mesh, opened: _Opened, comparison: Comparison, frozen: Frozen
) -> MakeRecord | None:
    """What makes the record of the test split; None without one."""
    if "test" not in opened.splits:
        return None
    process, processes = parallel.process_share(mesh)
    size = config.evaluation.batch_size
    batches = text.evaluation_feed(
        opened.splits["test"], size, process=process, processes=processes
    )
    return functools.partial(record_of, comparison, frozen, mesh, batches, opened.tokenizer)


def _notes_on_validation(config: ConfigDict, splits: dict[str, text.Rows]) -> tuple[str, ...]:
    """A line for each teacher that was, or may have been, trained on the validation documents."""
    answer = config.teacher.saw_validation
    if "validation" not in splits or answer == "no":
        return ()
    held_out = len(splits["validation"].documents)
    rows = text.fingerprint(splits["train"])
    lines = []
    for path in config.teacher.path:
        seen = held_out if answer == "yes" else None
        if seen is None and _rows_of(path) == rows:
            seen = 0  # the very rows of this run, which leave out its validation documents
        lines.append(notes.on_validation(path, seen, held_out, "documents"))
    return tuple(filter(None, lines))


def _rows_of(path: str) -> str | None:
    """The fingerprint of the rows that a teacher of ours was trained on; None for unknown."""
    try:
        manifest = json.loads(
            (storage.resolve_path(path, "teacher.path") / "manifest.json").read_bytes()
        )
        return manifest["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shapes(arrays: models.Flat) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
        for name, a in arrays.items()
    }


def _description(
    config: ConfigDict, opened: _Opened, prompts: dict[str, PromptEvaluator]
) -> dict[str, Any]:
    """What the manifest records of the teachers and the data."""
    tokenizer = opened.tokenizer
    return {
        "teachers": with_licences(config, opened.entries),
        **({"started_from": start} if (start := start_of_student(config)) else {}),
        "data": {
            "name": config.data.name,
            "fingerprint": text.fingerprint(opened.splits["train"]),
            "tokenizer": {"path": tokenizer.path, "fingerprint": tokenizer.fingerprint},
            **{name: text.summary(rows) for name, rows in opened.splits.items()},
            "prompts": describe(prompts),
            **({"written_by": writers} if (writers := written_by(config.data.path)) else {}),
            "class_names": None,
        },
    }


def _training_feed(config: ConfigDict, mesh: Mesh, rows: text.Rows) -> text.TrainingFeed:
    process, processes = parallel.process_share(mesh)
    order = data.Order(np.arange(len(rows), dtype=np.int32), config.seed)
    size = config.training.batch_size
    return text.training_feed(rows, order, size, process=process, processes=processes)


def _on_devices(config: ConfigDict, mesh: Mesh, frozen: Frozen) -> Frozen:
    """The student's base in its shardings; the teachers were loaded into theirs."""
    if not frozen.student:
        return frozen
    shardings = frozen_shardings(config, mesh, frozen.student, "student")
    return dataclasses.replace(frozen, student=parallel.put(frozen.student, shardings))


def _evaluators(
    config: ConfigDict,
    mesh: Mesh,
    opened: _Opened,
    comparison: Comparison,
    frozen: Frozen,
    prompts: dict[str, PromptEvaluator],
) -> dict[str, Evaluate]:
    process, processes = parallel.process_share(mesh)
    size = config.evaluation.batch_size
    found: dict[str, Evaluate] = {}
    for name, rows in opened.splits.items():
        if name == "train":
            continue
        batches = text.evaluation_feed(rows, size, process=process, processes=processes)
        evaluate: Evaluate = TextEvaluator(comparison, frozen, mesh, batches)
        if opened.answers is not None and not opened.teachers:
            evaluate = _with_stored_figures(evaluate, opened.answers.store.manifest, rows)
        found[name] = with_answers(evaluate, prompts[name]) if name in prompts else evaluate
    return found


def _with_stored_figures(
    evaluate: Evaluate, manifest: Mapping[str, Any], rows: text.Rows
) -> Evaluate:
    """An evaluation with the teacher's own figures, where a store has those of the same rows."""
    stored = manifest.get("figures", {}).values()
    found = next((one for one in stored if one["fingerprint"] == text.fingerprint(rows)), None)
    if found is None:
        return evaluate
    own = {f"teacher_{name}": found[name] for name in ("nll", "perplexity", "accuracy", "entropy")}
    return lambda params, stats: {**evaluate(params, stats), **own}


def describe_teacher(
    config: ConfigDict, path: str | os.PathLike, decoder: language.Decoder
) -> dict[str, Any]:
    """What a manifest records of a teacher that was loaded."""
    counted = models.split(language.abstract(decoder.config))[1]
    return {
        "path": str(path),
        "fingerprint": _fingerprint(decoder.config, models.split(decoder)[1]),
        "parameters": models.parameter_count(counted),
        "quantize": config.teacher.quantize,
    }


def _describe_base(config: ConfigDict, student: language.Decoder, frozen: Frozen) -> dict[str, Any]:
    """What a manifest records of the base under a student's adapters; {} without adapters."""
    if not frozen.student:
        return {}
    return {
        "base": {
            "path": config.student.path or str(config.teacher.path[0]),
            "fingerprint": _fingerprint(student.config, frozen.student),
            "parameters": models.parameter_count(frozen.student),
        }
    }


def _open_answers(
    config: ConfigDict,
    tokenizer: text.Tokenizer,
    vocab_size: int,
    rows: text.Rows,
    entries: list[dict[str, Any]],
) -> StoredAnswers:
    """Opens `teacher.store`; `entries` describe the teachers that the config also names."""
    path = config.teacher.store
    sparse, store = teachers.open_text_store(
        path,
        rows=text.fingerprint(rows),
        tokenizer=tokenizer.fingerprint,
        vocab_size=vocab_size,
        temperature=schedules.parse(config.method.temperature).start,
        teacher=entries[0]["fingerprint"] if entries else None,
    )
    manifest = store.manifest
    entry = {
        "path": path,
        **manifest["teacher"],
        "quantize": manifest["quantize"],
        "answers": {**manifest["scheme"], "dtype": manifest["dtype"]},
    }
    return StoredAnswers(sparse, store, entry)


def _fingerprint(config: language.DecoderConfig, params: models.Flat) -> str:
    """SHA-256, in hex, of what a decoder computes and of all its parameters."""
    return models.fingerprint_of(config.definition(), params)
