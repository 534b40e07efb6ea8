"""The settings of `distill-jax generate`, and how they are read from a config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from distill_jax import config as configs
from distill_jax import generation, provenance
from distill_jax.errors import UsageError, unknown
from distill_jax.generation import long_prompts
from distill_jax.models.language import quantized
from distill_jax.storage import local_path, resolve_path

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is generated, and how.

    Attributes:
      prompts: a JSONL file, see `generation.read_prompts`.
      fields: which fields make the prompt, see `text.parse_fields`; "" for the fields prompt or
        messages.
      long: "refuse" a prompt that with its response exceeds the model's context, or "skip" it.
      chat: whether a plain prompt is the user's message, which the chat template writes.
      tokenizer: folder or file; "" for the teacher's own.
      temperature: of the draws, see `generation.Sampler`; 0 for greedy.
      top_k: draw among the k most likely tokens; 0 for all.
      top_p: draw among the most likely tokens of this mass; 1 for all.
      max_new_tokens: the length of the longest response.
      stops: ids that end a response, in addition to those of the tokenizer.
      samples: responses to each prompt.
      batch_size: prompts decoded at a time.
      shard: prompts in a shard; a killed run resumes at a shard.
      seed: of the draws.
      compute_dtype: of parameters and computation, "float32" or "bfloat16".
      quantize: "int8" for the teacher's matrices, see `models.language.quantized`; or "none".
      licence: of the teacher, its name; "" for the one that its folder names.
      permission: whether the user states that the teacher's owner permits to train other models on
        its outputs; None for what its licence has on it.
      fsdp: devices that share the batch and the teacher's shards.
      tensor: devices that share each layer.

    Raises:
      UsageError: a value of the wrong type or out of range.
    """

    prompts: str
    fields: str = ""
    long: str = "refuse"
    chat: bool = False
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
    permission: bool | None = None
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        named = isinstance(self.prompts, str) and bool(self.prompts)
        self._require(named, "prompts", "the path of a JSONL file")
        local_path(str(self.prompts), "prompts")
        resolve_path(str(self.tokenizer), CONFIG_KEYS["tokenizer"])
        for field in ("fields", "tokenizer", "licence"):
            self._require(isinstance(getattr(self, field), str), field, "text")
        self._require(isinstance(self.chat, bool), "chat", "True or False")
        known = self.permission is None or isinstance(self.permission, bool)
        self._require(known, "permission", "True or False")
        for field in ("max_new_tokens", "samples", "batch_size", "shard", "fsdp", "tensor"):
            self._require(_is_integer(getattr(self, field), 1), field, "a positive int")
        seeded = _is_integer(self.seed, 0) and self.seed < 2**32
        self._require(seeded, "seed", "an int in [0, 2**32)")
        ids = isinstance(self.stops, tuple) and all(_is_integer(stop, 0) for stop in self.stops)
        self._require(ids, "stops", "a tuple of ids")
        if self.long not in long_prompts.CHOICES:
            raise unknown("generate.long", self.long, long_prompts.CHOICES)
        if self.compute_dtype not in DTYPES:
            raise unknown("generate.compute_dtype", self.compute_dtype, DTYPES, "dtype")
        if self.quantize not in quantized.CHOICES:
            raise unknown("teacher.quantize", self.quantize, quantized.CHOICES, "kind of weights")
        _ = self.sampler  # checks its own values

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            raise UsageError(f"{CONFIG_KEYS[field]}={getattr(self, field)!r}: expected {expected}")

    @property
    def sampler(self) -> generation.Sampler:
        """How a token is chosen."""
        return generation.Sampler(self.temperature, self.top_k, self.top_p, key="generate")


def _is_integer(value: object, low: int) -> bool:
    return type(value) is int and value >= low


#: The config key of each setting.
CONFIG_KEYS = {field.name: f"generate.{field.name}" for field in dataclasses.fields(Settings)}
CONFIG_KEYS |= {"prompts": "prompts", "quantize": "teacher.quantize"}
CONFIG_KEYS |= {"permission": f"teacher.{provenance.ANSWER}"}
CONFIG_KEYS |= {field: f"mesh.{field}" for field in ("fsdp", "tensor")}


def parse(config: Mapping[str, Any]) -> tuple[str, Settings]:
    """The path of the teacher, and the settings.

    Args:
      config: nested; teacher.path, teacher.quantize, teacher.licence (or generate.licence),
        teacher.outputs_may_train_other_models, prompts, mesh.fsdp, mesh.tensor, and in the
        section generate the other settings.

    Raises:
      UsageError: an unknown key, no teacher or several, or a value that `Settings` refuses.
    """
    flat = _by_one_name(configs.flatten(config))
    fields = {key: field for field, key in CONFIG_KEYS.items()}
    for key in flat:
        if key not in fields and key != "teacher.path":
            raise unknown("config", key, [*fields, "teacher.path"], "key")
    path = flat.pop("teacher.path", "")
    paths = list(path) if isinstance(path, list | tuple) else [path]
    if len(paths) != 1 or not isinstance(paths[0], str) or not paths[0]:
        raise UsageError(
            f"teacher.path={path!r}: expected one teacher, a Hugging Face folder or a workdir"
        )
    resolve_path(paths[0], "teacher.path")
    values: dict[str, Any] = {"prompts": ""}
    for key, value in flat.items():
        values[fields[key]] = tuple(value) if isinstance(value, list) else value
    return paths[0], Settings(**values)


def _by_one_name(flat: dict[str, Any]) -> dict[str, Any]:
    """The keys of the one teacher, which a run on several has as lists, as `Settings` has them."""
    flat = dict(flat)
    for key in ("teacher.licence", CONFIG_KEYS["permission"]):
        if isinstance(value := flat.get(key), list | tuple) and len(value) < 2:
            flat.pop(key)
            flat |= {key: value[0]} if value else {}
    if "teacher.licence" in flat:
        named = flat.pop("teacher.licence")
        if flat.get("generate.licence", named) != named:
            raise UsageError(
                f"teacher.licence={named!r}: generate.licence={flat['generate.licence']!r}; "
                "expected one of them"
            )
        flat["generate.licence"] = named
    return flat
