"""config.json of transformers, versions 4 and 5, to and from `DecoderConfig`.

A family is a row of `FAMILIES`: which key is which field, with the default of transformers, and
what the family fixes. A key that no row knows is refused unless it says nothing (null, false,
empty) or is known not to change what a model computes: a model that is quietly another one is worse
than a refusal. Dropout rates are such keys: nothing here drops out.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from distill_jax.errors import UsageError, unknown
from distill_jax.models.language import rope
from distill_jax.models.language.config import DecoderConfig

NEEDED = object()

#: Keys that do not change the hidden states of an evaluated model.
HARMLESS = frozenset(
    """_attn_implementation_autoset _name_or_path architectures attention_dropout attn_pdrop
    auto_map begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward
    do_sample dtype embd_pdrop embedding_dropout eos_token_id finetuning_task id2label
    initializer_range is_llama_config label2id max_length model_type n_ctx pad_token_id prefix
    pretraining_tp problem_type reorder_and_upcast_attn resid_pdrop return_dict sep_token_id
    summary_activation summary_first_dropout summary_proj_to_labels summary_type
    summary_use_proj task_specific_params temperature tokenizer_class top_k top_p torch_dtype
    transformers.js_config transformers_version unsloth_fixed unsloth_version use_cache""".split()
)

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}
_BIASES = ("qkv_bias", "output_bias")


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` says what a decoder is.

    Attributes:
      architecture: the class of transformers that has logits.
      keys: key -> (field, or several of one value; its default, or NEEDED).
      fixed: field -> value, which no key says.
      activation: the key of the activation, and its default.
      windows: "none"; "all", of `sliding_window` in every layer; "types", of `layer_types`; or
        "switched", the same behind `use_sliding_window` and `max_window_layers`.
      default_window: of `sliding_window`.
      pattern: layers with a window where `layer_types` is not there.
      equal: key -> the one value it may have, beside saying nothing.
    """

    architecture: str
    keys: Mapping[str, tuple[str | tuple[str, ...], Any]]
    fixed: Mapping[str, Any]
    activation: tuple[str, str] = ("hidden_act", "silu")
    windows: str = "none"
    default_window: int | None = None
    pattern: tuple[bool, ...] = (False,)
    equal: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_SIZES = {
    "vocab_size": ("vocab_size", NEEDED),
    "hidden_size": ("dim", NEEDED),
    "num_hidden_layers": ("layers", NEEDED),
    "num_attention_heads": ("heads", NEEDED),
    "num_key_value_heads": ("kv_heads", None),
    "head_dim": ("head_dim", None),
    "intermediate_size": ("mlp_dim", NEEDED),
}


def _keys(positions: int, epsilon: float = 1e-6, tied: bool = False, **more: Any) -> dict[str, Any]:
    return _SIZES | {
        "max_position_embeddings": ("max_positions", positions),
        "rms_norm_eps": ("norm_eps", epsilon),
        "tie_word_embeddings": ("tied", tied),
        **more,
    }


_GEMMA = dict(norm_offset=True, norm_placement="sandwich")
_ATTENTION_BIAS = dict(attention_bias=(_BIASES, False))

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM", _keys(2048, mlp_bias=("mlp_bias", False), **_ATTENTION_BIAS), {}
    ),
    "mistral": Family("MistralForCausalLM", _keys(131072), {}, windows="all", default_window=4096),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _keys(32768),
        dict(qkv_bias=True),
        windows="switched",
        default_window=4096,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _keys(32768, head_dim=("head_dim", 128), **_ATTENTION_BIAS),
        dict(qk_norm="head"),
        windows="switched",
        default_window=4096,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _keys(
            8192,
            tied=True,
            head_dim=("head_dim", 256),
            final_logit_softcapping=("logit_cap", 30.0),
            attn_logit_softcapping=("attention_cap", 50.0),
            query_pre_attn_scalar=("attention_scale", 256),
            **_ATTENTION_BIAS,
        ),
        _GEMMA,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        windows="types",
        default_window=4096,
        pattern=(True, False),
        equal=dict(hidden_act="gelu_pytorch_tanh"),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _keys(
            131072,
            tied=True,
            head_dim=("head_dim", 256),
            final_logit_softcapping=("logit_cap", None),
            query_pre_attn_scalar=("attention_scale", 256),
            **_ATTENTION_BIAS,
        ),
        _GEMMA | dict(qk_norm="head"),
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        windows="types",
        default_window=4096,
        pattern=(True, True, True, True, True, False),
        equal=dict(hidden_act="gelu_pytorch_tanh"),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        _keys(4096, 1e-5),
        {},
        windows="all",
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _keys(2048, 1e-5, **_ATTENTION_BIAS),
        dict(norm_placement="post", qk_norm="all"),
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {
            "vocab_size": ("vocab_size", NEEDED),
            "n_embd": ("dim", NEEDED),
            "n_layer": ("layers", NEEDED),
            "n_head": ("heads", NEEDED),
            "n_inner": ("mlp_dim", None),
            "n_positions": ("max_positions", 1024),
            "layer_norm_epsilon": ("norm_eps", 1e-5),
            "scale_attn_weights": ("attention_scale", True),
            "tie_word_embeddings": ("tied", True),
        },
        dict(
            gated=False,
            norm="layer",
            positions="learned",
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
        ),
        activation=("activation_function", "gelu_new"),
    ),
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
    known |= set(_WINDOW_KEYS[family.windows])
    if name != "gpt2":
        known |= rope.KEYS
    if name == "phi3":
        # Read by "longrope" alone, which is refused.
        known |= {"original_max_position_embeddings"}
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
    if family.fixed.items() >= _GEMMA.items():
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
    config: DecoderConfig, *, dtype: str = "float32", extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json that says this, for transformers 4 and 5.

    Args:
      config: its `family` names the architecture.
      dtype: of the parameters in the file.
      extra: more keys of `HARMLESS`, such as eos_token_id.

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
    content |= extra or {}
    _check_round_trip(content, config)
    return content


# These read `head_dim` where it is there, and have no such key of their own.
_IMPLIED = ("qwen2", "phi3", "olmo2")


def _written_window(config: DecoderConfig, family: Family) -> dict[str, Any]:
    kinds = config.kinds()
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
