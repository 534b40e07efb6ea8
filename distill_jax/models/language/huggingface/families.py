"""config.json of transformers, versions 4 and 5, to and from `DecoderConfig`.

A family is a row of `family_table.FAMILIES`. A key that no row knows is refused unless it says
nothing (null, false, empty) or is known not to change what a model computes: a model that is
quietly another one is worse than a refusal. Dropout rates are such keys: nothing here drops out.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from distill_jax.errors import UsageError, unknown
from distill_jax.models.language import rope
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.huggingface.family_table import (
    FAMILIES,
    GEMMA,
    HARMLESS,
    NEEDED,
    Family,
)

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}
# Each knows which keys of a window there are beside `sliding_window`.
_WINDOW_KEYS = {
    "none": (),
    "all": ("sliding_window",),
    "types": ("sliding_window", "layer_types", "sliding_window_pattern", "_sliding_window_pattern"),
    "switched": ("sliding_window", "layer_types", "use_sliding_window", "max_window_layers"),
}
_LAYER_TYPES = {"sliding_attention": True, "full_attention": False}


def from_huggingface(content: Mapping[str, Any], *, key: str = "config.json") -> DecoderConfig:
    """What a config.json says, of transformers 4 or 5.

    Args:
      content: the parsed file.
      key: what an error calls it.

    Returns:
      The config; its `family` is the file's `model_type`.

    Raises:
      UsageError: an unknown architecture, a key that is missing, of a wrong type or out of range,
        or one that asks for what is not implemented here.
    """
    if not isinstance(content, Mapping):
        raise UsageError(f"{key}={content!r:.40}: expected a JSON object")
    name = content.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise unknown(f"{key}: model_type", name, FAMILIES, kind="architecture")
    family = FAMILIES[name]
    classes = content.get("architectures") or [family.architecture]
    if classes != [family.architecture]:
        raise UsageError(
            f"{key}: architectures={classes!r}: not implemented; expected {[family.architecture]!r}"
        )
    for other, option in family.renamed.items():
        if other in content and option in content:
            raise UsageError(f"{key}: {other}={content[other]!r:.60}: expected {option} alone")
    content = {family.renamed.get(option, option): value for option, value in content.items()}
    _refuse_others(content, name, key)
    fields: dict[str, Any] = {"family": name, **family.fixed}
    for source, (targets, default) in family.keys.items():
        value = content.get(source, default)
        if value is NEEDED or (value is None and default is not None):
            raise UsageError(f"{key}: {source} is missing; expected it for {name}")
        for target in (targets,) if isinstance(targets, str) else targets:
            fields[target] = value
    try:
        fields |= _derived(fields, family, content)
        return DecoderConfig(**fields)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error
    except (TypeError, ZeroDivisionError) as error:
        raise UsageError(f"{key}: a value has a wrong type: {error}") from error


def _refuse_others(content: Mapping[str, Any], name: str, key: str) -> None:
    family = FAMILIES[name]
    known = HARMLESS | family.keys.keys() | {family.activation[0]}
    known |= set(_WINDOW_KEYS[family.windows]) | set(family.unread)
    if name != "gpt2":
        known |= rope.KEYS
    for option, value in content.items():
        says_nothing = value is None or value is False or value in ("", [], {})
        if option in known or says_nothing or value == family.equal.get(option, NEEDED):
            continue
        raise UsageError(
            f"{key}: {option}={value!r:.60}: not implemented for {name}; expected a file without "
            "it (take it out if it does not change what the model computes)"
        )


def _derived(
    fields: Mapping[str, Any], family: Family, content: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that depend on others, or on several keys."""
    dim, heads = fields["dim"], fields["heads"]
    made: dict[str, Any] = {"kv_heads": fields.get("kv_heads") or heads}
    made["head_dim"] = fields.get("head_dim") or dim // heads
    made["mlp_dim"] = fields["mlp_dim"] or 4 * dim
    option, default = family.activation
    activation = content.get(option, default)
    if activation not in _ACTIVATIONS:
        raise unknown(option, activation, _ACTIVATIONS, kind="activation")
    made["activation"] = _ACTIVATIONS[activation]
    if family.architecture == "GPT2LMHeadModel":
        made["attention_scale"] = None if fields["attention_scale"] else 1.0
        if dim % heads:
            raise UsageError(f"n_embd={dim}: expected a multiple of n_head={heads}")
    else:
        made |= rope.read(content)
    if family.fixed.items() >= GEMMA.items():
        made["attention_scale"] = fields["attention_scale"] ** -0.5
        made["embedding_scale"] = dim**0.5
    return made | _read_window(fields["layers"], family, content)


def _read_window(layers: int, family: Family, content: Mapping[str, Any]) -> dict[str, Any]:
    window = content.get("sliding_window", family.default_window)
    if family.windows == "none":
        return {}
    if family.windows == "all":
        return {"window": window, "sliding": (window is not None,)}
    pattern = family.pattern
    stated = content.get("sliding_window_pattern", content.get("_sliding_window_pattern"))
    if stated is not None and len(pattern) > 1:
        if type(stated) is not int or stated < 1:
            raise UsageError(f"sliding_window_pattern={stated!r}: expected a positive int")
        pattern = (True,) * (stated - 1) + (False,)
    kinds = [pattern[i % len(pattern)] for i in range(layers)]
    if family.windows == "switched":
        first = content.get("max_window_layers", 28)
        on = content.get("use_sliding_window", False) and window is not None
        window = window if on else None
        kinds = [on and i >= first for i in range(layers)]
    types = content.get("layer_types")
    if types is not None:
        if len(types) != layers or not all(kind in _LAYER_TYPES for kind in types):
            raise UsageError(
                f"layer_types={types!r:.80}: expected {layers} of {', '.join(_LAYER_TYPES)}"
            )
        kinds = [_LAYER_TYPES[kind] for kind in types]
    if any(kinds) and window is None:
        raise UsageError(
            "layer_types: expected full_attention alone where use_sliding_window or "
            "sliding_window says that there is no window"
        )
    return {"window": window if any(kinds) else None, "sliding": tuple(kinds)}


def to_huggingface(
    config: DecoderConfig, *, dtype: str = "float32", extra_config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json that says this, for transformers 4 and 5.

    Args:
      config: its `family` names the architecture.
      dtype: of the parameters in the file.
      extra_config: more keys of `HARMLESS`, such as eos_token_id.

    Raises:
      UsageError: the family is unknown, or has no such option as the config asks for.
    """
    if config.family not in FAMILIES:
        raise unknown("decoder.family", config.family, FAMILIES, kind="architecture")
    family = FAMILIES[config.family]
    content: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "torch_dtype": dtype,
        # Defaults of transformers may lie outside a small vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    for source, (targets, _) in family.keys.items():
        content[source] = getattr(config, targets if isinstance(targets, str) else targets[0])
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    if config.activation == "gelu_tanh":
        names["gelu_tanh"] = family.activation[1] if family.activation[1] != "silu" else "gelu_new"
    content[family.activation[0]] = names[config.activation]
    if config.family == "gpt2":
        content["scale_attn_weights"] = config.attention_scale is None
    else:
        content |= rope.written(config)
    if "query_pre_attn_scalar" in content:
        content["query_pre_attn_scalar"] = round(config.scale**-2)
    if content.get("head_dim") == config.dim // config.heads and config.family in _IMPLIED:
        del content["head_dim"]
    content |= _written_window(config, family)
    content |= extra_config or {}
    _check_round_trip(content, config)
    return content


# These read `head_dim` where it is there, and have no such key of their own.
_IMPLIED = ("qwen2", "phi3", "olmo2")


def _written_window(config: DecoderConfig, family: Family) -> dict[str, Any]:
    kinds = config.sliding_layers()
    known = _WINDOW_KEYS[family.windows]
    window: dict[str, Any] = {"sliding_window": config.window} if known else {}
    if "layer_types" in known:
        names = {kind: name for name, kind in _LAYER_TYPES.items()}
        window["layer_types"] = [names[kind] for kind in kinds]
    if family.windows == "types" and config.window is None:
        window["sliding_window"] = family.default_window
    if family.windows == "switched":
        window["use_sliding_window"] = config.window is not None
        window["max_window_layers"] = kinds.index(True) if any(kinds) else config.layers
    return window


def _check_round_trip(content: Mapping[str, Any], config: DecoderConfig) -> None:
    """Refuses a config of which the family says less, or something else."""
    back = from_huggingface(json.loads(json.dumps(content)), key="to_huggingface")
    for field in dataclasses.fields(config):
        ours, theirs = getattr(config, field.name), getattr(back, field.name)
        if field.name == "attention_scale":
            ours, theirs = config.scale, back.scale
        if ours != theirs:
            raise UsageError(
                f"decoder.{field.name}={ours!r}: cannot be written as {config.family}; "
                f"expected {theirs!r}, or another family"
            )
