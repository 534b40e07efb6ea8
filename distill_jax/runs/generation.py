"""Responses of a teacher to prompts, on disk: what `distill-jax generate` does."""

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax import generation, models, parallel, provenance, storage
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.generation.responses import Responses
from distill_jax.models import language
from distill_jax.runs.generation_settings import CONFIG_KEYS, Settings
from distill_jax.runs.manifest import describe_run
from distill_jax.tasks.language.networks import decoder_folder

# Settings that do not decide what the responses are: for files their content counts, the teacher's
# fingerprint covers its 8-bit weights, a permission is named with the teacher, prompts that are
# left out change no other line, and a mesh changes no more than the rounding.
_NOT_IDENTIFYING = ("prompts", "long", "tokenizer", "quantize", "permission", "fsdp", "tensor")


def write(
    settings: Settings,
    teacher_path: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    note: Callable[[str], None] = print,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Writes a teacher's responses to prompts, or resumes where that stopped.

    Each line of responses.jsonl has number (of the prompt, from 0), sample, prompt, response,
    tokens (the ids drawn, the stop id included), finish ("stop" or "length"), sampler, seed and
    teacher (fingerprint and license); for a conversation also messages, which end with the
    response. `text.read` reads it. The same command writes the same bytes on the same kind of
    devices. Left out on purpose: writing from several processes.

    Args:
      settings: what is generated, and how.
      teacher_path: a Hugging Face folder, or the workdir of a finished run.
      workdir: the folder to write; a new one, or one with the very same responses.
      note: called with a line for each shard that is written.
      mesh: the devices that share a batch; all by default.

    Returns:
      {"path", "responses", "tokens", "stopped", "skipped"}: the joined file, how many responses and
      ids it has, how many responses ended with a stop id, and how many prompts were left out.

    Raises:
      UsageError: before anything is written, when prompts, tokenizer, teacher or workdir do not
        fit; later, when the disk is full.
    """
    if mesh is None:
        mesh = parallel.make_mesh(fsdp=settings.fsdp, tensor=settings.tensor)
    with storage.holding(workdir, "--workdir"):
        return _write(settings, teacher_path, workdir, note, mesh)


def _write(
    settings: Settings,
    teacher_path: str | os.PathLike,
    workdir: str | os.PathLike,
    note: Callable[[str], None],
    mesh: Mesh,
) -> dict[str, Any]:
    """As `write`, in a folder that this process holds."""
    job = _open_job(settings, teacher_path, mesh)
    if line := provenance.note_on(teacher_path, job.licence):
        note(line)
    if not job.decoding.stop_ids:
        note("no stop id is known: every response has max_new_tokens; see generate.stops")
    if _are_raw(job):
        note(
            "the prompts are given raw to a model with a chat template, which may answer them with "
            "nothing; generate.chat=True writes them by its template"
        )
    if job.fitting.note:
        note(job.fitting.note)
    responses = _open_responses(job, teacher_path, workdir)
    for name in responses.repair():
        note(f"{workdir}: {name} is damaged or missing and is generated again")
    responses.begin()
    for shard in responses.missing_numbers():
        began = time.perf_counter()
        lines = job.generate(shard)
        responses.add_lines(shard, lines)
        tokens = sum(len(line["tokens"]) for line in lines)
        speed = tokens / (time.perf_counter() - began)
        note(
            f"{workdir}: shard {shard + 1} of {responses.count}: {len(lines)} responses, "
            f"{tokens} tokens, {speed:.0f} a second"
        )
    return _summary(responses.join()) | {"skipped": len(job.fitting.left_out)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What the generation of a shard needs.

    Attributes:
      settings: what is generated, and how.
      model: the teacher.
      teacher: its fingerprint and license, and a permission that the user stated, for every line.
      licence: of the teacher, as `provenance.licences` records it.
      tokenizer: of the prompts and the responses.
      prompts: all of them.
      prompt_ids: their ids.
      fitting: which of them leave room for a response.
      decoding: how the responses are decoded.
    """

    settings: Settings
    model: language.Decoder
    teacher: dict[str, Any]
    licence: dict[str, Any]
    tokenizer: text.Tokenizer
    prompts: list[generation.Prompt]
    prompt_ids: list[list[int]]
    fitting: generation.Fitting
    decoding: generation.Decoding

    def generate(self, shard: int) -> list[dict[str, Any]]:
        """The lines of a shard, prompt by prompt and sample by sample."""
        settings = self.settings
        first = shard * settings.shard
        numbers = [n for n in self.fitting.kept if first <= n < first + settings.shard]
        rows = [(number, sample) for number in numbers for sample in range(settings.samples)]
        if not rows:
            return []
        found = generation.generate(
            self.model,
            [self.prompt_ids[number] for number, _ in rows],
            self.decoding,
            keys=generation.row_keys(settings.seed, *np.array(rows).T),
            batch_size=settings.batch_size,
        )
        sampler = dataclasses.asdict(settings.sampler)
        provenance = {
            "sampler": {**sampler, "max_new_tokens": settings.max_new_tokens},
            "seed": settings.seed,
            "teacher": self.teacher,
        }
        return [
            {"number": number, "sample": sample, **self._describe(number, response), **provenance}
            for (number, sample), response in zip(rows, found, strict=True)
        ]

    def _describe(self, number: int, response: generation.Response) -> dict[str, Any]:
        """Prompt and response as a line has them."""
        prompt = self.prompts[number]
        content = generation.response_text(self.tokenizer, self.prompt_ids[number], response)
        line: dict[str, Any] = {
            "prompt": prompt.text,
            "response": content,
            "tokens": response.ids.tolist(),
            "finish": response.finish,
        }
        if prompt.messages is not None:
            line["messages"] = [*prompt.messages, {"role": "assistant", "content": content}]
        return line


def _open_job(settings: Settings, teacher_path: str | os.PathLike, mesh: Mesh) -> _Job:
    """Opens and checks prompts, tokenizer and teacher."""
    licence = _checked_licence(settings, teacher_path)
    permitted = licence.get("permission_stated")
    stated = {} if permitted is None else {provenance.ANSWER: permitted}
    parallel.check_divides(mesh, "generate.batch_size", settings.batch_size)
    folder = decoder_folder(teacher_path)
    tokenizer = _load_tokenizer(settings, folder)
    prompts, ids = generation.encode_prompts(
        generation.read_prompts(settings.prompts, fields=settings.fields),
        tokenizer,
        as_chat=settings.chat,
    )
    dtype = jnp.dtype(settings.compute_dtype)
    model = language.load(
        folder,
        key="teacher.path",
        param_dtype=dtype,
        dtype=dtype,
        quantize=settings.quantize,
        sharding_fn=lambda name, shape: parallel.sharding(name, shape, mesh),
        mesh=mesh,
    )
    _check_ids(settings, tokenizer, model.config)
    fitting = generation.choose_fitting(
        prompts,
        ids,
        [model.config],
        settings.max_new_tokens,
        long=settings.long,
        location=f"prompts={settings.prompts!r}",
    )
    _, params, _ = models.split(model)
    fingerprint = models.fingerprint_of(model.config.definition(), params)
    return _Job(
        settings=settings,
        model=model,
        teacher={"fingerprint": fingerprint, "license": licence["name"], **stated},
        licence=licence,
        tokenizer=tokenizer,
        prompts=prompts,
        prompt_ids=ids,
        fitting=fitting,
        decoding=generation.Decoding(
            settings.sampler,
            max_new_tokens=settings.max_new_tokens,
            vocab_size=tokenizer.vocab_size,
            stop_ids=tuple(dict.fromkeys((*tokenizer.stop_ids, *settings.stops))),
            mesh=mesh,
        ),
    )


def _checked_licence(settings: Settings, path: str | os.PathLike) -> dict[str, Any]:
    """The licence of the teacher; UsageError where its text may not train other models."""
    record = provenance.read_licence(path)
    if settings.licence:
        record = provenance.record_of(settings.licence, CONFIG_KEYS["licence"])
    record = provenance.stated_record(record, settings.permission)
    provenance.check_permitted(path, record)
    return record


def _are_raw(job: _Job) -> bool:
    """Whether a model that was trained on conversations gets prompts that are none."""
    return text.has_chat_template(job.tokenizer) and any(
        prompt.messages is None for prompt in job.prompts
    )


def _open_responses(
    job: _Job, teacher_path: str | os.PathLike, workdir: str | os.PathLike
) -> Responses:
    """The folder of responses, new or begun by the same command; writes nothing."""
    settings, tokenizer = job.settings, job.tokenizer
    fingerprint = hashlib.sha256(json.dumps(job.prompt_ids).encode()).hexdigest()
    about = describe_run(
        [
            {
                "path": str(teacher_path),
                **job.teacher,
                "licence": job.licence,
                "quantize": settings.quantize,
            }
        ],
        {
            "name": "prompts",
            "path": settings.prompts,
            "fingerprint": fingerprint,
            "prompts": len(job.prompts),
            **({"left_out": job.fitting.left_out} if job.fitting.left_out else {}),
            "tokenizer": {"path": tokenizer.path, "fingerprint": tokenizer.fingerprint},
        },
    )
    values = dataclasses.asdict(settings)
    identity = {CONFIG_KEYS[name]: v for name, v in values.items() if name not in _NOT_IDENTIFYING}
    if not settings.chat:  # as before there was such a setting
        del identity[CONFIG_KEYS["chat"]]
    identity |= {
        "teacher": job.teacher,
        "prompts": fingerprint,
        "tokenizer": tokenizer.fingerprint,
    }
    count = -(-len(job.prompts) // settings.shard)
    responses = Responses(workdir, made_from=identity, count=count, about=about)
    if responses.began:
        again = {key: about[key] for key in ("started", "command", "devices")}
        responses.manifest["resumed"].append(again)
    return responses


def _load_tokenizer(settings: Settings, folder: pathlib.Path) -> text.Tokenizer:
    if settings.tokenizer:
        return text.load_tokenizer(settings.tokenizer, key="generate.tokenizer")
    return text.load_tokenizer(folder, key="teacher.path")


def _check_ids(
    settings: Settings, tokenizer: text.Tokenizer, config: language.DecoderConfig
) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"generate.tokenizer={tokenizer.path!r}: has {tokenizer.vocab_size} ids, the teacher "
            f"{config.vocab_size}; expected the tokenizer that it was trained with"
        )
    if any(stop >= tokenizer.vocab_size for stop in settings.stops):
        raise UsageError(
            f"generate.stops={settings.stops!r}: expected ids in [0, {tokenizer.vocab_size})"
        )


def _summary(path: pathlib.Path) -> dict[str, Any]:
    responses = tokens = stopped = 0
    with path.open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            responses += 1
            tokens += len(line["tokens"])
            stopped += line["finish"] == "stop"
    return {"path": str(path), "responses": responses, "tokens": tokens, "stopped": stopped}
