"""The architectures of llama.cpp that our decoder computes, and their metadata.

`config_of` is what llama.cpp computes for the metadata of a file; `metadata_of` writes them and
reads them back, so that a decoder that an architecture cannot express is refused.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from distill_jax.errors import UsageError
from distill_jax.models.language.config import MOST_LAYERS, DecoderConfig, RopeScaling

_RMS, _LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
# Divisors of the frequencies of a "llama3" scaling, of which the file has no parameters.
ROPE_FACTORS = "rope_freqs.weight"
_SCALINGS = ("none", "linear", "yarn")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
      family: the `model_type` of transformers as which a file is imported.
      families: those that are exported as this architecture.
      permuted: whether the rows of queries and keys of a head lie in pairs that are rotated
        together, first one half and then the other in transformers.
      activation: the field of the config.
      norm_eps: the key of the epsilon.
      fixed: fields of the config that no key sets.
      numbers: key -> the field of the config that it sets, or None where it is missing.
      layers: (number of layers, window) -> the fields that layers differ in.
      scaled: whether embeddings are multiplied by dim ** 0.5.
      per_model_width: of how many layers the attention is scaled by dim / heads, not by head_dim.
    """

    family: str
    families: tuple[str, ...]
    permuted: bool = False
    activation: str = "silu"
    norm_eps: str = _RMS
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layers: Callable[[int, int | None], dict[str, Any]] = lambda layers, window: {}
    scaled: bool = False
    per_model_width: int = 0


def _every(size: int) -> Callable[[int, int | None], dict[str, Any]]:
    """A window in all layers but each `size`-th one."""

    def fields(layers: int, window: int | None) -> dict[str, Any]:
        sliding = tuple((number + 1) % size != 0 for number in range(layers))
        if not window or not any(sliding):
            return {}
        return {"window": window, "sliding": sliding}

    return fields


def _no_rope(layers: int, window: int | None) -> dict[str, Any]:
    """Each fourth layer of SmolLM3 does not rotate."""
    return {"no_rope": tuple((number + 1) % 4 == 0 for number in range(layers))}


_GEMMA = dict(norm_offset=True, norm_placement="sandwich")
_GRANITE = {
    "attention.scale": "attention_scale",
    "embedding_scale": "embedding_scale",
    "residual_scale": "residual_scale",
    "logit_scale": "logit_scale",
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", ("llama", "mistral"), permuted=True),
    "qwen2": Architecture("qwen2", ("qwen2",)),
    "qwen3": Architecture("qwen3", ("qwen3",), fixed=dict(qk_norm="head")),
    "gemma2": Architecture(
        "gemma2",
        ("gemma2",),
        activation="gelu_tanh",
        fixed=_GEMMA,
        numbers={
            "attn_logit_softcapping": "attention_cap",
            "final_logit_softcapping": "logit_cap",
        },
        layers=_every(2),
        scaled=True,
        per_model_width=46,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        ("gemma3_text",),
        activation="gelu_tanh",
        fixed=_GEMMA | dict(qk_norm="head", rope_local_theta=10000.0),
        numbers={"final_logit_softcapping": "logit_cap"},
        layers=_every(6),
        scaled=True,
        per_model_width=62,
    ),
    "olmo2": Architecture("olmo2", ("olmo2",), fixed=dict(norm_placement="post", qk_norm="all")),
    "smollm3": Architecture("smollm3", ("smollm3",), permuted=True, layers=_no_rope),
    "granite": Architecture("granite", ("granite",), permuted=True, numbers=_GRANITE),
    "seed_oss": Architecture("seed_oss", ("seed_oss",)),
    "gpt2": Architecture(
        "gpt2",
        ("gpt2",),
        activation="gelu_tanh",
        norm_eps=_LAYER,
        fixed=dict(gated=False, norm="layer", positions="learned"),
    ),
}


def name_of(metadata: Mapping[str, Any]) -> str:
    """The architecture of a file.

    Raises:
      UsageError: it is not one of `ARCHITECTURES`.
    """
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise UsageError(
            f"general.architecture={name!r:.60}: not implemented; expected one of "
            + ", ".join(ARCHITECTURES)
        )
    return str(name)


def name_for(family: str) -> str:
    """The architecture as which a family is written.

    Raises:
      UsageError: llama.cpp has none that is known here.
    """
    for name, row in ARCHITECTURES.items():
        if family in row.families:
            return name
    known = sorted(family for row in ARCHITECTURES.values() for family in row.families)
    raise UsageError(
        f"--format=gguf: the decoder is of the family {family!r}, which is not written for "
        f"llama.cpp; expected one of {', '.join(known)}"
    )


class _Metadata:
    """The keys of one architecture, with checks of their types.

    Args:
      values: of the whole file.
      prefix: the architecture.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str):
        self._values, self._prefix = values, prefix

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._values.get(f"{self._prefix}.{key}", default)
        if type(value) is not int or value < 1:
            self._refuse(key, value, "a positive int, the same for all layers")
        return value

    def real(self, key: str, default: float | None) -> float | None:
        value = self._values.get(f"{self._prefix}.{key}", default)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            self._refuse(key, value, "a number")
        # 1e-05 was 9.99999974e-06 in 32 bits.
        return float(str(np.float32(value)))

    def get(self, key: str) -> Any:
        return self._values.get(f"{self._prefix}.{key}")

    def _refuse(self, key: str, value: Any, expected: str) -> None:
        raise UsageError(f"{self._prefix}.{key}={value!r:.60}: expected {expected}")

    def require(self, key: str, accepted: Collection[Any]) -> Any:
        """A value that has to be one of a few; None, in `accepted`, stands for no such key."""
        value = self.get(key)
        if value not in accepted:
            listed = ", ".join(str(each) for each in accepted if each is not None)
            self._refuse(key, value, listed or "no such key")
        return value


def config_of(
    metadata: Mapping[str, Any],
    tensors: Collection[str],
    vocab_size: int,
    rope_factors: np.ndarray | None,
) -> DecoderConfig:
    """The decoder that llama.cpp computes for a file.

    Args:
      metadata: of the file.
      tensors: the names of its tensors; biases and an untied head are where they are.
      vocab_size: V, the rows of the embedding.
      rope_factors: the tensor ROPE_FACTORS [head_dim / 2]; None without one.

    Raises:
      UsageError: another architecture, a key that is missing or of a wrong type, or something that
        our decoder does not compute.
    """
    name = name_of(metadata)
    row, keys = ARCHITECTURES[name], _Metadata(metadata, name)
    for key, accepted in (
        ("expert_count", (None, 0)),
        ("attention.causal", (None, True)),
        ("rope.scale_linear", (None, 1.0)),
    ):
        keys.require(key, accepted)
    dim, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    layers = keys.integer("block_count")
    if layers > MOST_LAYERS:
        raise UsageError(f"{name}.block_count={layers}: expected at most {MOST_LAYERS}")
    head_dim = keys.integer("attention.key_length", max(1, dim // heads))
    keys.require("attention.value_length", (None, head_dim))
    window = keys.get("attention.sliding_window")
    fields: dict[str, Any] = dict(row.fixed)
    if fields.get("positions", "rope") == "rope":
        keys.require("rope.dimension_count", (None, head_dim))
        fields["rope_theta"] = keys.real("rope.freq_base", 10000.0)
        fields["rope_scaling"] = _scaling_of(keys, head_dim, fields["rope_theta"], rope_factors)
    for key, field in row.numbers.items():
        if (value := keys.real(key, None)) is not None:
            fields[field] = 1 / value if field == "logit_scale" else value
    if row.scaled:
        fields["embedding_scale"] = dim**0.5
    if layers == row.per_model_width:
        fields["attention_scale"] = (dim / heads) ** -0.5
    return DecoderConfig(
        vocab_size=vocab_size,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_dim=keys.integer("feed_forward_length"),
        activation=row.activation,
        norm_eps=keys.real(row.norm_eps, 1e-5),  # type: ignore[arg-type]
        max_positions=keys.integer("context_length"),
        tied="output.weight" not in tensors,
        qkv_bias=bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & set(tensors)),
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
        family=row.family,
        **fields,
        **row.layers(layers, window if type(window) is int and window > 0 else None),
    )


def _scaling_of(
    keys: _Metadata, head_dim: int, theta: float, factors: np.ndarray | None
) -> RopeScaling | None:
    kind = keys.require("rope.scaling.type", (None, *_SCALINGS)) or "none"
    if factors is not None:
        if kind != "none":
            raise UsageError(f"{ROPE_FACTORS}: expected none with rope.scaling.type={kind!r}")
        return _llama3(head_dim, theta, factors)
    factor = keys.real("rope.scaling.factor", None)
    if kind == "none" or factor in (None, 1.0):
        return None
    assert factor is not None
    if kind == "linear":
        return RopeScaling("linear", factor)
    for key in ("attn_factor", "yarn_attn_factor", "yarn_log_multiplier"):
        keys.require(f"rope.scaling.{key}", (None, 1.0))
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=keys.integer("rope.scaling.original_context_length"),
        beta_fast=keys.real("rope.scaling.yarn_beta_fast", 32.0) or 32.0,
        beta_slow=keys.real("rope.scaling.yarn_beta_slow", 1.0) or 1.0,
        attention_factor=0.1 * math.log(factor) + 1.0,
    )


def _llama3(head_dim: int, theta: float, factors: np.ndarray) -> RopeScaling:
    """The scaling whose divisors the file has.

    Raises:
      UsageError: no "llama3" scaling with the published bounds gives them.
    """
    factor = float(factors.max())
    if factors.shape == (head_dim // 2,) and factor >= 1:
        # What published models of Llama 3.1 and later have; only the factor differs.
        scaling = RopeScaling(
            "llama3",
            factor,
            low_frequency_factor=1.0,
            high_frequency_factor=4.0,
            original_max_positions=8192,
        )
        if np.allclose(rope_factors(head_dim, theta, scaling), factors, rtol=1e-3):
            return scaling
    raise UsageError(
        f"{ROPE_FACTORS}: not implemented; expected the divisors of Llama 3.1's scaling"
    )


def rope_factors(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """By how much a scaling divides the frequencies: float32 [head_dim / 2]."""
    from distill_jax.models.language.rope import frequencies

    plain, scaled = (np.asarray(frequencies(head_dim, theta, each)) for each in (None, scaling))
    return plain / scaled


def metadata_of(config: DecoderConfig) -> dict[str, Any]:
    """The keys of a decoder, without those of its tokenizer.

    Raises:
      UsageError: llama.cpp has no such architecture, or would compute something else.
    """
    name = name_for(config.family)
    row = ARCHITECTURES[name]
    values: dict[str, Any] = {
        "block_count": config.layers,
        "context_length": config.max_positions,
        "embedding_length": config.dim,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "vocab_size": config.vocab_size,
        row.norm_eps: config.norm_eps,
    }
    if config.positions == "rope":
        values |= {"rope.freq_base": config.rope_theta, "rope.dimension_count": config.head_dim}
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind in _SCALINGS:
        values |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling is not None and scaling.kind == "yarn":
        values["rope.scaling.original_context_length"] = scaling.original_max_positions
    for key, field in row.numbers.items():
        value = config.scale if field == "attention_scale" else getattr(config, field)
        if value is not None:
            values[key] = 1 / value if field == "logit_scale" else value
    if config.window is not None:
        values["attention.sliding_window"] = config.window
    named = {f"{name}.{key}": value for key, value in values.items()}
    return {"general.architecture": name, **named}


def check_round_trip(
    config: DecoderConfig, metadata: Mapping[str, Any], tensors: Collection[str]
) -> None:
    """Refuses a decoder whose metadata make llama.cpp compute another one."""
    factors = None
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        factors = rope_factors(config.head_dim, config.rope_theta, config.rope_scaling)
    back = config_of(metadata, tensors, config.vocab_size, factors)
    for field in dataclasses.fields(config):
        name = "scale" if field.name == "attention_scale" else field.name
        ours, theirs = getattr(config, name), getattr(back, name)
        if name != "family" and not _same(ours, theirs):
            raise UsageError(
                f"--format=gguf: decoder.{name}={ours!r:.120}: llama.cpp computes {theirs!r:.120} "
                f"for {metadata['general.architecture']}; expected the same"
            )


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, RopeScaling) and isinstance(theirs, RopeScaling):
        pairs = zip(dataclasses.astuple(ours), dataclasses.astuple(theirs), strict=True)
        return all(_same(*pair) for pair in pairs)
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)
