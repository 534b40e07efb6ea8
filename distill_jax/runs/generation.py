"""From prompts to a teacher's responses on disk: what `distill-jax generate` does."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax import config as configs
from distill_jax import generation, models, parallel
from distill_jax.data import text
from distill_jax.errors import UsageError, unknown
from distill_jax.generation import decode
from distill_jax.generation.responses import Responses
from distill_jax.models import language
from distill_jax.models.language import int8
from distill_jax.runs.manifest import describe_run
from distill_jax.storage import local_path, resolve_path
from distill_jax.tasks.language.objective import folder_of

DTYPES = ("float32", "bfloat16")
# Where these lie is no part of what the responses are, their contents are; the fingerprint of the
# teacher tells its 8-bit weights from others; and a mesh changes no more than rounding does.
_TOLD_OTHERWISE = ("prompts", "tokenizer", "quantize", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is generated, and how.

    Attributes:
      prompts: a JSONL file, see `generation.read_prompts`.
      fields: a set whose fields make the prompt, of `text.FIELDS`; "" for prompt or messages.
      tokenizer: folder or file; "" for the teacher's own.
      temperature: 0 is greedy; it, top_k and top_p are those of `generation.Sampler`.
      top_k: 0 is off.
      top_p: 1 is off.
      max_new_tokens: the longest response.
      stops: ids that end a response, beside those of the tokenizer.
      samples: responses to each prompt.
      batch_size: prompts that are continued at a time.
      shard: prompts a file, at which a killed run goes on.
      seed: of the draws.
      compute_dtype: of parameters and computation, "float32" or "bfloat16".
      quantize: "int8" for the teacher's matrices, see `models.language.int8`; or "none".
      licence: of the teacher; "" for what the README.md in its folder says.
      fsdp: devices that share the batch and the teacher's shards.
      tensor: devices that share a layer of it.

    Raises:
      UsageError: a value that is refused.
    """

    prompts: str
    fields: str = ""
    tokenizer: str = ""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stops: tuple[int, ...] = ()
    samples: int = 1
    batch_size: int = 32
    shard: int = 1024
    seed: int = 0
    compute_dtype: str = "float32"
    quantize: str = "none"
    licence: str = ""
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        def require(condition: bool, field: str, expected: str) -> None:
            if not condition:
                key = _KEYS[field]
                raise UsageError(f"{key}={getattr(self, field)!r}: expected {expected}")

        def integer(value: object, low: int) -> bool:
            return type(value) is int and value >= low

        named = isinstance(self.prompts, str) and bool(self.prompts)
        require(named, "prompts", "the path of a JSONL file")
        local_path(str(self.prompts), "prompts")
        resolve_path(str(self.tokenizer), _KEYS["tokenizer"])
        for field in ("fields", "tokenizer", "licence"):
            require(isinstance(getattr(self, field), str), field, "text")
        for field in ("max_new_tokens", "samples", "batch_size", "shard", "fsdp", "tensor"):
            require(integer(getattr(self, field), 1), field, "a positive int")
        seeded = integer(self.seed, 0) and self.seed < 2**32
        require(seeded, "seed", "an int in [0, 2**32)")
        ids = isinstance(self.stops, tuple) and all(integer(stop, 0) for stop in self.stops)
        require(ids, "stops", "a tuple of ids")
        if self.compute_dtype not in DTYPES:
            raise unknown("generate.compute_dtype", self.compute_dtype, DTYPES, "dtype")
        if self.quantize not in int8.CHOICES:
            raise unknown("teacher.quantize", self.quantize, int8.CHOICES, "kind of weights")
        _ = self.sampler

    @property
    def sampler(self) -> generation.Sampler:
        """How a token is chosen."""
        return generation.Sampler(self.temperature, self.top_k, self.top_p, key="generate")


#: What a config calls each of the settings.
_KEYS = {field.name: f"generate.{field.name}" for field in dataclasses.fields(Settings)}
_KEYS |= {"prompts": "prompts", "quantize": "teacher.quantize"}
_KEYS |= {field: f"mesh.{field}" for field in ("fsdp", "tensor")}


def settings_of(config: Mapping[str, Any]) -> tuple[str, Settings]:
    """The path of the teacher, and the settings.

    Args:
      config: nested; teacher.path, teacher.quantize, prompts, mesh.fsdp, mesh.tensor, and in the
        section generate the other settings.

    Raises:
      UsageError: an unknown key, no teacher or several, or a value that `Settings` refuses.
    """
    flat = configs.flatten(config)
    known = {key: field for field, key in _KEYS.items()} | {"teacher.path": ""}
    for key in flat:
        if key not in known:
            raise unknown("config", key, known, "key")
    path = flat.pop("teacher.path", "")
    paths = list(path) if isinstance(path, list | tuple) else [path]
    if len(paths) != 1 or not isinstance(paths[0], str) or not paths[0]:
        raise UsageError(
            f"teacher.path={path!r}: expected one teacher, a Hugging Face folder or a workdir"
        )
    resolve_path(paths[0], "teacher.path")
    values = {known[key]: tuple(v) if isinstance(v, list) else v for key, v in flat.items()}
    return paths[0], Settings(**{"prompts": "", **values})


def write(
    settings: Settings,
    teacher_path: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    note: Callable[[str], None] = print,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Writes a teacher's responses to prompts, or goes on where that stopped.

    Each line of responses.jsonl has number (of the prompt, from 0), sample, prompt, response,
    tokens (the ids drawn, the stop id included), finish ("stop" or "length"), sampler, seed and
    teacher (fingerprint and license); of a conversation also messages, the response with them.
    `text.read` reads it. The same command makes the same bytes on the same kind of devices. One
    process writes; many hosts are left out on purpose.

    Args:
      settings: what and how.
      teacher_path: a Hugging Face folder, or the workdir of a finished run.
      workdir: the folder that is written; a new one, or one of the very same responses.
      note: called with a line for each shard that is written.
      mesh: the devices that share a batch; all by default.

    Returns:
      {"path", "responses", "tokens", "stopped"}: the joined file, how many responses and ids it
      has, and how many ended by a stop id.

    Raises:
      UsageError: before anything is written, when prompts, tokenizer, teacher or workdir do not
        fit; later, when the disk is full.
    """
    if mesh is None:
        mesh = parallel.make_mesh(fsdp=settings.fsdp, tensor=settings.tensor)
    parallel.check_divides(mesh, "generate.batch_size", settings.batch_size)
    folder = folder_of(teacher_path)
    tokenizer = _tokenizer(settings, folder)
    prompts, ids = generation.encode_prompts(
        generation.read_prompts(settings.prompts, fields=settings.fields), tokenizer
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
    for prompt, own in zip(prompts, ids, strict=True):
        decode.check_length(model.config, own, settings.max_new_tokens, prompt.location)
    stops = tuple(dict.fromkeys((*tokenizer.stop_ids, *settings.stops)))
    if not stops:
        note("no stop id is known: every response has max_new_tokens; see generate.stops")
    _, params, _ = models.split(model)
    fingerprint = models.fingerprint_of(dataclasses.asdict(model.config), params)
    teacher = {"fingerprint": fingerprint, "license": settings.licence or licence_of(folder)}
    responses = _open(settings, workdir, teacher, teacher_path, tokenizer, ids)
    for name in responses.repair():
        note(f"{workdir}: {name} is damaged or gone, and is made again")
    responses.begin()

    shared = {
        "sampler": {
            **dataclasses.asdict(settings.sampler),
            "max_new_tokens": settings.max_new_tokens,
        },
        "seed": settings.seed,
        "teacher": teacher,
    }
    decoding = generation.Decoding(
        settings.sampler,
        max_new_tokens=settings.max_new_tokens,
        vocab_size=tokenizer.vocab_size,
        stop_ids=stops,
        mesh=mesh,
    )
    for shard in responses.missing_numbers():
        began = time.perf_counter()
        first = shard * settings.shard
        numbers = range(first, min(first + settings.shard, len(prompts)))
        rows = [(number, sample) for number in numbers for sample in range(settings.samples)]
        found = generation.generate(
            model,
            [ids[number] for number, _ in rows],
            decoding,
            keys=generation.row_keys(settings.seed, *np.array(rows).T),
            batch_size=settings.batch_size,
        )
        responses.add_lines(
            shard,
            [
                {
                    "number": number,
                    "sample": sample,
                    **_line(prompts[number], ids[number], response, tokenizer),
                    **shared,
                }
                for (number, sample), response in zip(rows, found, strict=True)
            ],
        )
        drawn = sum(len(response.ids) for response in found)
        speed = drawn / (time.perf_counter() - began)
        note(
            f"{workdir}: shard {shard + 1} of {responses.count}: {len(found)} responses, "
            f"{drawn} tokens, {speed:.0f} a second"
        )
    return _summary(responses.join())


def _line(
    prompt: generation.Prompt,
    ids: list[int],
    response: generation.Response,
    tokenizer: text.Tokenizer,
) -> dict[str, Any]:
    said = generation.response_text(tokenizer, ids, response)
    drawn = response.ids.tolist()
    line = {"prompt": prompt.text, "response": said, "tokens": drawn, "finish": response.finish}
    if prompt.messages is not None:
        line["messages"] = [*prompt.messages, {"role": "assistant", "content": said}]
    return line


def _open(
    settings: Settings,
    workdir: str | os.PathLike,
    teacher: dict[str, Any],
    teacher_path: str | os.PathLike,
    tokenizer: text.Tokenizer,
    ids: list[list[int]],
) -> Responses:
    data = {
        "name": "prompts",
        "path": settings.prompts,
        "fingerprint": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "prompts": len(ids),
        "tokenizer": {"path": tokenizer.path, "fingerprint": tokenizer.fingerprint},
    }
    values = dataclasses.asdict(settings)
    made_from = {_KEYS[field]: v for field, v in values.items() if field not in _TOLD_OTHERWISE}
    about = describe_run(
        [{"path": str(teacher_path), **teacher, "quantize": settings.quantize}], data
    )
    responses = Responses(
        workdir,
        made_from=made_from
        | {
            "teacher": teacher,
            "prompts": data["fingerprint"],
            "tokenizer": tokenizer.fingerprint,
        },
        count=-(-len(ids) // settings.shard),
        about=about,
    )
    if responses.began:
        again = {key: about[key] for key in ("started", "command", "devices")}
        responses.manifest["resumed"].append(again)
    return responses


def _tokenizer(settings: Settings, folder: pathlib.Path) -> text.Tokenizer:
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


def licence_of(folder: pathlib.Path) -> str | None:
    """The `license:` in the front matter of a model folder's README.md; None where it says none.

    Only one line is looked for; YAML beyond a plain or quoted word counts as saying none.
    """
    try:
        head = (folder / "README.md").read_bytes().decode(errors="replace")
    except OSError:
        return None
    matter = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", head, re.DOTALL | re.MULTILINE)
    said = matter and re.search(
        r"""^license:[ \t]*(["']?)([\w.+-]+)\1[ \t]*(#.*)?\r?$""", matter[1], re.MULTILINE
    )
    return said[2] if said else None


def _summary(path: pathlib.Path) -> dict[str, Any]:
    responses = tokens = stopped = 0
    with path.open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            responses += 1
            tokens += len(line["tokens"])
            stopped += line["finish"] == "stop"
    return {"path": str(path), "responses": responses, "tokens": tokens, "stopped": stopped}
