"""config.json of transformers, versions 4 and 5, to and from `DecoderConfig`.

Both directions follow the rows of `family_table.FAMILIES`. A key that a row does not know is
refused, unless its value turns nothing on or the key never changes what a model computes, see
`harmless_keys`: an error is better than silently computing another model.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from distill_jax.errors import UsageError, unknown
from distill_jax.models.language.config import MOST_LAYERS, DecoderConfig
from distill_jax.models.language.huggingface import not_implemented, rope_config
from distill_jax.models.language.huggingface.family_table import (
    FAMILIES,
    MULTIMODAL,
    NEEDED,
    Family,
)
from distill_jax.models.language.huggingface.harmless_keys import is_harmless, says_nothing

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}
# The keys of a window that each value of `Family.windows` reads.
_WINDOW_KEYS: dict[str, tuple[str, ...]] = {
    "none": (),
    "all": ("sliding_window",),
    "types": ("sliding_window", "layer_types", "sliding_window_pattern", "_sliding_window_pattern"),
    "switched": ("sliding_window", "layer_types", "use_sliding_window", "max_window_layers"),
}
# The keys that say which layers of a mixture have one MLP in place of experts, and its width.
_DENSE_KEYS = ("mlp_only_layers", "decoder_sparse_step", "intermediate_size")
_LAYER_TYPES = {"sliding_attention": True, "full_attention": False}


def from_huggingface(content: Mapping[str, Any], *, key: str = "config.json") -> DecoderConfig:
    """Reads a config.json of transformers 4 or 5.

    Args:
      content: the parsed file.
      key: the name of the file in errors.

    Returns:
      The config; its `family` is the file's `model_type`.

    Raises:
      UsageError: an unknown architecture; a key that is missing, of a wrong type or out of range;
        or a key that asks for something that is not implemented.
    """
    if not isinstance(content, Mapping):
        raise UsageError(f"{key}={content!r:.40}: expected a JSON object")
    content = _text_part(content, key)
    name = content.get("model_type")
    if isinstance(name, str) and name in not_implemented.REASONS:
        raise UsageError(
            f"{key}: model_type={name!r}: not implemented, for it has "
            f"{not_implemented.REASONS[name]}; known: {', '.join(sorted(FAMILIES))}"
        )
    if not isinstance(name, str) or name not in FAMILIES:
        # Families of similar names (smollm3, olmo2) are no spellings of each other.
        raise UsageError(
            f"{key}: model_type={name!r:.80}: unknown architecture; known: "
            + ", ".join(sorted(FAMILIES))
        )
    family = FAMILIES[name]
    classes = content.get("architectures") or [family.architecture]
    if classes not in ([family.architecture], [family.base_architecture]):
        raise UsageError(
            f"{key}: architectures={classes!r}: not implemented; expected {[family.architecture]!r}"
        )
    for other, option in family.renamed.items():
        if other in content and option in content:
            raise UsageError(f"{key}: {other}={content[other]!r:.60}: expected {option} alone")
    content = {family.renamed.get(option, option): value for option, value in content.items()}
    _refuse_unknown_keys(content, name, key)
    values = {option: content.get(option, row.default) for option, row in family.keys.items()}
    for option, row in family.keys.items():
        value = values[option]
        if value is NEEDED or (value is None and row.default is not None):
            raise UsageError(f"{key}: {option} is missing; expected it for {name}")
    try:
        return DecoderConfig(**_read_fields(values, family, content), family=name)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error
    except (TypeError, ZeroDivisionError) as error:
        raise UsageError(f"{key}: a value has a wrong type: {error}") from error


def _text_part(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The config of the decoder: of a multimodal model its text_config, else the whole file."""
    name = content.get("model_type")
    if not isinstance(name, str) or name not in MULTIMODAL:
        return content
    part = content.get("text_config")
    if not isinstance(part, Mapping):
        raise UsageError(f"{key}: text_config is missing; expected it for {name}")
    inherited = {
        option: content[option] for option in ("tie_word_embeddings",) if option in content
    }
    own = {"model_type": MULTIMODAL[name], **part}
    own.pop("architectures", None)
    return {**inherited, **own}


def _refuse_unknown_keys(content: Mapping[str, Any], name: str, key: str) -> None:
    family = FAMILIES[name]
    known = family.keys.keys() | {family.activation[0]}
    known |= set(_WINDOW_KEYS[family.windows]) | set(family.unread)
    if family.rotary:
        known |= rope_config.KEYS
    if family.no_rope:
        known |= rope_config.NO_ROPE
    if family.dense_width:
        known |= set(_DENSE_KEYS)
    refused = {
        option: value
        for option, value in content.items()
        if option not in known
        and not is_harmless(option)
        and not says_nothing(option, value)
        and value != family.equal.get(option, NEEDED)
    }
    if refused:
        listed = ", ".join(f"{option}={value!r:.60}" for option, value in refused.items())
        raise UsageError(
            f"{key}: {listed}: not implemented for {name}; expected a file without "
            f"{'it' if len(refused) == 1 else 'them'} (take out what does not change what the "
            "model computes)"
        )


def _read_fields(
    values: Mapping[str, Any], family: Family, content: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of `DecoderConfig`, but for the family.

    Args:
      values: of the family's keys, with defaults.
      family: a row.
      content: the whole file.
    """
    fields: dict[str, Any] = dict(family.fixed)
    for option, row in family.keys.items():
        value = values[option] if row.read is None else row.read(values[option])
        fields |= dict.fromkeys(row.targets, value)
    if not 0 < fields["layers"] <= MOST_LAYERS:
        raise UsageError(
            f"{_key_of('layers', family)}={fields['layers']!r:.60}: expected 1 to {MOST_LAYERS}"
        )
    dim, heads = fields["dim"], fields["heads"]
    has_head_dim = "head_dim" in fields
    fields["kv_heads"] = fields.get("kv_heads") or heads
    fields["head_dim"] = fields.get("head_dim") or dim // heads
    fields["mlp_dim"] = fields["mlp_dim"] or 4 * dim
    option, default = family.activation
    activation = content.get(option, default)
    if activation not in _ACTIVATIONS:
        raise unknown(option, activation, _ACTIVATIONS, kind="activation")
    fields["activation"] = _ACTIVATIONS[activation]
    if not has_head_dim and dim % heads:
        of_dim, of_heads = _key_of("dim", family), _key_of("heads", family)
        raise UsageError(f"{of_dim}={dim}: expected a multiple of {of_heads}={heads}")
    if family.rotary:
        fields |= rope_config.read(content, family)
    if family.scaled_embedding:
        fields["embedding_scale"] = dim**0.5
    if family.dense_width:
        fields |= _read_dense(fields["layers"], family.dense_width, content)
    return fields | _read_window(fields, family, content)


def _key_of(field: str, family: Family) -> str:
    return next(option for option, row in family.keys.items() if field in row.targets)


def _read_window(
    fields: Mapping[str, Any], family: Family, content: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields window and sliding; `fields` has the others."""
    layers = fields["layers"]
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
    sliding = [pattern[i % len(pattern)] for i in range(layers)]
    if window is None:
        sliding = [False] * layers
    if family.windows == "switched":
        first = content.get("max_window_layers", 28)
        on = content.get("use_sliding_window", False) and window is not None
        window = window if on else None
        sliding = [on and i >= first for i in range(layers)]
        if family.no_rope:  # the window is where no position is
            sliding = [on and flag for flag in fields["no_rope"]]
    types = content.get("layer_types")
    if types is not None:
        if len(types) != layers or not all(kind in _LAYER_TYPES for kind in types):
            raise UsageError(
                f"layer_types={types!r:.80}: expected {layers} of {', '.join(_LAYER_TYPES)}"
            )
        sliding = [_LAYER_TYPES[kind] for kind in types]
    if any(sliding) and window is None:
        raise UsageError(
            "layer_types: expected full_attention alone where use_sliding_window or "
            "sliding_window says that there is no window"
        )
    return {"window": window if any(sliding) else None, "sliding": tuple(sliding)}


def _read_dense(layers: int, width: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields dense and dense_mlp_dim, of a mixture with `layers` layers."""
    alone, every = content.get("mlp_only_layers") or [], content.get("decoder_sparse_step", 1)
    if not isinstance(alone, list) or not all(type(i) is int for i in alone):
        raise UsageError(f"mlp_only_layers={alone!r:.80}: expected a list of numbers of layers")
    if type(every) is not int or every < 1:
        raise UsageError(f"decoder_sparse_step={every!r:.80}: expected a positive int")
    dense = tuple(i in alone or (i + 1) % every != 0 for i in range(layers))
    if not any(dense):
        return {}
    return {"dense": dense, "dense_mlp_dim": content.get("intermediate_size", width)}


def to_huggingface(
    config: DecoderConfig, *, dtype: str = "float32", extra_config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json of a decoder, which transformers 4 and 5 read.

    Args:
      config: its `family` names the architecture.
      dtype: of the parameters in the file.
      extra_config: more keys that are harmless, such as eos_token_id.

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
        # Transformers' own defaults may lie outside a small vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    for option, row in family.keys.items():
        content[option] = (
            getattr(config, row.targets[0]) if row.write is None else row.write(config)
        )
    content[family.activation[0]] = _write_activation(config, family)
    if family.rotary:
        content |= rope_config.write(config, family)
    if family.implied_head_dim and config.head_dim == config.dim // config.heads:
        del content["head_dim"]
    content |= _write_window(config, family)
    if family.dense_width and any(config.dense):
        numbers = [i for i, kind in enumerate(config.layer_kinds()) if kind.dense]
        content |= {"mlp_only_layers": numbers, "intermediate_size": config.dense_mlp_dim}
    content |= extra_config or {}
    _check_round_trip(content, config)
    return content


def _write_activation(config: DecoderConfig, family: Family) -> str:
    """The family's own name of the activation, if it has one, else the usual name."""
    default = family.activation[1]
    if _ACTIVATIONS[default] == config.activation:
        return default
    return {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}[config.activation]


def _write_window(config: DecoderConfig, family: Family) -> dict[str, Any]:
    sliding = config.sliding_layers()
    known = _WINDOW_KEYS[family.windows]
    window: dict[str, Any] = {"sliding_window": config.window} if known else {}
    if "layer_types" in known:
        names = {value: name for name, value in _LAYER_TYPES.items()}
        window["layer_types"] = [names[value] for value in sliding]
    if family.windows == "types" and config.window is None:
        window["sliding_window"] = family.default_window
    if family.windows == "switched":
        window["use_sliding_window"] = config.window is not None
        window["max_window_layers"] = sliding.index(True) if any(sliding) else config.layers
    return window


def _check_round_trip(content: Mapping[str, Any], config: DecoderConfig) -> None:
    """Refuses a config that reads back differently: the family cannot express it."""
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
