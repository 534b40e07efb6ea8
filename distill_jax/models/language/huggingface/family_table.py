"""The families of decoders in transformers: which key of config.json is which field of ours.

A row of FAMILIES has each key with its default in transformers, what the family fixes, and the
names of its tensors. `families`, `rope_config` and `tensor_map` read and write by it, and no other
code compares a family's name. How to add one stands in the docstring of this package.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.huggingface import names

#: The default of a key that every config.json must have.
NEEDED = object()


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of config.json.

    Attributes:
      fields: the field of `DecoderConfig` that it sets, or several of the same value.
      default: of transformers, where a file omits the key; or NEEDED.
      read: value of the key -> value of the fields; None for the same.
      write: config -> value of the key; None for that of the (first) field.
    """

    fields: str | tuple[str, ...]
    default: Any
    read: Callable[[Any], Any] | None = None
    write: Callable[[DecoderConfig], Any] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """`fields` as a tuple."""
        return (self.fields,) if isinstance(self.fields, str) else self.fields


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` describes a decoder.

    Attributes:
      architecture: the class of transformers that has logits.
      tensors: the names of the tensors.
      keys: key of config.json -> the fields that it sets.
      fixed: field -> value of fields that no key sets.
      activation: the key of the activation, and its default.
      windows: which keys say where a sliding window is. "none": no layer has one. "all": every
        layer, if `sliding_window` is set. "types": `layer_types` or a pattern. "switched": as
        "types", but only if `use_sliding_window` is set, and by default from the layer
        `max_window_layers` on.
      default_window: of `sliding_window`.
      pattern: which layers have a window where `layer_types` is missing.
      rope_theta: the default of `rope_theta`.
      local_rope: whether layers with a window have a base of their own (Gemma 3), or "unscaled":
        the same base without the scaling (OLMo 3).
      partial_rotary: the default part of a head that is rotated, where the family has the key
        `partial_rotary_factor`; None where it has not.
      no_rope: whether `no_rope_layers` or `no_rope_layer_interval` names layers without rotary
        positions.
      scaled_embedding: whether embeddings are multiplied by dim ** 0.5 (Gemma).
      dense_width: the default inner width of layers without experts, where `mlp_only_layers` and
        `decoder_sparse_step` may name some; None where no key does.
      implied_head_dim: the family reads `head_dim` but its configs have no such key, so that it is
        written only where it differs from dim / heads.
      equal: key -> the only value, apart from an empty one, that is implemented.
      unread: keys that matter only together with options that are refused.
      renamed: another name of a key -> the key; a file has one of them.
    """

    architecture: str
    tensors: names.TensorNames
    keys: Mapping[str, Key]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activation: tuple[str, str] = ("hidden_act", "silu")
    windows: Literal["none", "all", "types", "switched"] = "none"
    default_window: int | None = None
    pattern: tuple[bool, ...] = (False,)
    rope_theta: float = 10000.0
    local_rope: bool | Literal["unscaled"] = False
    partial_rotary: float | None = None
    no_rope: bool = False
    scaled_embedding: bool = False
    dense_width: int | None = None
    implied_head_dim: bool = False
    equal: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unread: tuple[str, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        fields = [name for key in self.keys.values() for name in key.targets]
        twice = sorted({name for name in fields if fields.count(name) > 1})
        if twice:
            raise ValueError(f"{self.architecture}: two keys set {twice[0]}; a file would lose one")

    @property
    def base_architecture(self) -> str:
        """The class of transformers that has no head; a file of it needs tied embeddings."""
        return re.sub("(ForCausalLM|LMHeadModel)$", "Model", self.architecture)

    @property
    def rotary(self) -> bool:
        """Whether the family has rotary positions."""
        return self.fixed.get("positions") != "learned"


def _keys(
    max_positions: int,
    *more: Mapping[str, Key],
    norm_eps: float = 1e-6,
    tied: bool = False,
    mlp_dim: str = "intermediate_size",
    norm_eps_key: str = "rms_norm_eps",
) -> dict[str, Key]:
    """Keys that most families share, with their defaults or names, and those of one family."""
    keys = {
        "vocab_size": Key("vocab_size", NEEDED),
        "hidden_size": Key("dim", NEEDED),
        "num_hidden_layers": Key("layers", NEEDED),
        "num_attention_heads": Key("heads", NEEDED),
        "num_key_value_heads": Key("kv_heads", None),
        "head_dim": Key("head_dim", None),
        mlp_dim: Key("mlp_dim", NEEDED),
        "max_position_embeddings": Key("max_positions", max_positions),
        norm_eps_key: Key("norm_eps", norm_eps),
        "tie_word_embeddings": Key("tied", tied),
    }
    for own in more:
        keys |= own
    return keys


_ATTENTION_BIAS = {"attention_bias": Key(("qkv_bias", "output_bias"), False)}
_GEMMA_FIXED = dict(norm_offset=True, norm_placement="sandwich")
_GEMMA_KEYS = {
    "head_dim": Key("head_dim", 256),
    "query_pre_attn_scalar": Key(
        "attention_scale",
        256,
        read=lambda scalar: scalar**-0.5,
        write=lambda config: round(config.scale**-2),
    ),
    **_ATTENTION_BIAS,
}
_GLM_KEYS = _keys(
    131072,
    {
        "num_key_value_heads": Key("kv_heads", 2),
        "head_dim": Key("head_dim", 128),
        "attention_bias": Key("qkv_bias", True),
    },
    norm_eps=1.5625e-07,
)
_GLM_FIXED = dict(rope_interleaved=True)

#: Models of images and text, of which the decoder in `text_config` is read: model_type -> that of
#: the decoder where a file does not name it.
MULTIMODAL = {"gemma3": "gemma3_text", "mistral3": "mistral"}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        names.LLAMA,
        _keys(2048, {"mlp_bias": Key("mlp_bias", False)}, _ATTENTION_BIAS),
    ),
    "mistral": Family(
        "MistralForCausalLM", names.LLAMA, _keys(131072), windows="all", default_window=4096
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        names.LLAMA,
        _keys(32768),
        dict(qkv_bias=True),
        windows="switched",
        default_window=4096,
        implied_head_dim=True,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        names.LLAMA,
        _keys(32768, {"head_dim": Key("head_dim", 128)}, _ATTENTION_BIAS),
        dict(qk_norm="head"),
        windows="switched",
        default_window=4096,
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        names.MIXTRAL,
        _keys(
            131072,
            {
                "num_key_value_heads": Key("kv_heads", 8),
                "num_local_experts": Key("experts", 8),
                "num_experts_per_tok": Key("experts_per_token", 2),
            },
            norm_eps=1e-5,
        ),
        windows="all",
        rope_theta=1_000_000.0,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        names.QWEN3_MOE,
        _keys(
            32768,
            {
                "num_key_value_heads": Key("kv_heads", 4),
                "num_experts": Key("experts", 128),
                "num_experts_per_tok": Key("experts_per_token", 8),
                "norm_topk_prob": Key("gates_normalised", False),
            },
            _ATTENTION_BIAS,
            mlp_dim="moe_intermediate_size",
        ),
        dict(qk_norm="head"),
        dense_width=6144,
        # Of `use_sliding_window`, which no published model sets.
        unread=("sliding_window", "max_window_layers"),
        renamed=dict(num_local_experts="num_experts"),  # by transformers 5
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        names.GEMMA2,
        _keys(
            8192,
            {
                "final_logit_softcapping": Key("logit_cap", 30.0),
                "attn_logit_softcapping": Key("attention_cap", 50.0),
            },
            _GEMMA_KEYS,
            tied=True,
        ),
        _GEMMA_FIXED,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        windows="types",
        default_window=4096,
        pattern=(True, False),
        scaled_embedding=True,
        equal=dict(hidden_act="gelu_pytorch_tanh"),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        names.GEMMA2,
        _keys(
            131072,
            # The files of the multimodal models leave out what is the default.
            {
                "vocab_size": Key("vocab_size", 262208),
                "hidden_size": Key("dim", 2304),
                "intermediate_size": Key("mlp_dim", 9216),
                "num_hidden_layers": Key("layers", 26),
                "num_attention_heads": Key("heads", 8),
                "num_key_value_heads": Key("kv_heads", 4),
                "final_logit_softcapping": Key("logit_cap", None),
            },
            _GEMMA_KEYS,
            tied=True,
        ),
        _GEMMA_FIXED | dict(qk_norm="head"),
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        windows="types",
        default_window=4096,
        pattern=(True, True, True, True, True, False),
        rope_theta=1_000_000.0,
        local_rope=True,
        scaled_embedding=True,
        equal=dict(hidden_act="gelu_pytorch_tanh"),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        names.PHI3,
        _keys(4096, norm_eps=1e-5),
        windows="all",
        partial_rotary=1.0,
        implied_head_dim=True,
        unread=("original_max_position_embeddings",),  # of "longrope", which reads it
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        names.OLMO2,
        _keys(2048, _ATTENTION_BIAS, norm_eps=1e-5),
        dict(norm_placement="post", qk_norm="all"),
        implied_head_dim=True,
    ),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        names.OLMO2,
        _keys(2048, _ATTENTION_BIAS, norm_eps=1e-5),
        dict(norm_placement="post", qk_norm="all"),
        windows="types",
        default_window=4096,
        pattern=(True, True, True, False),
        rope_theta=500_000.0,
        local_rope="unscaled",
        implied_head_dim=True,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        names.LLAMA,
        _keys(
            32768,
            {"num_key_value_heads": Key("kv_heads", 4), "mlp_bias": Key("mlp_bias", False)},
            _ATTENTION_BIAS,
            tied=True,
        ),
        windows="switched",
        rope_theta=2_000_000.0,
        no_rope=True,
        implied_head_dim=True,
    ),
    "ministral": Family(
        "MinistralForCausalLM",
        names.LLAMA,
        _keys(131072, {"num_key_value_heads": Key("kv_heads", 8)}),
        windows="types",
        default_window=4096,
        pattern=(True,),
    ),
    "granite": Family(
        "GraniteForCausalLM",
        names.LLAMA,
        _keys(
            2048,
            {
                "mlp_bias": Key("mlp_bias", False),
                "embedding_multiplier": Key("embedding_scale", 1.0),
                "residual_multiplier": Key("residual_scale", 1.0),
                "attention_multiplier": Key("attention_scale", 1.0, write=lambda c: c.scale),
                "logits_scaling": Key(
                    "logit_scale",
                    1.0,
                    read=lambda divisor: 1 / divisor,
                    write=lambda config: 1 / config.logit_scale,
                ),
            },
            _ATTENTION_BIAS,
        ),
        implied_head_dim=True,
    ),
    "seed_oss": Family(
        "SeedOssForCausalLM",
        names.LLAMA,
        _keys(
            524288,
            {
                "num_key_value_heads": Key("kv_heads", 8),
                "head_dim": Key("head_dim", 128),
                "attention_bias": Key("qkv_bias", True),
                "attention_out_bias": Key("output_bias", False),
                "mlp_bias": Key("mlp_bias", False),
            },
        ),
    ),
    "glm": Family("GlmForCausalLM", names.GLM, _GLM_KEYS, _GLM_FIXED, partial_rotary=0.5),
    "glm4": Family(
        "Glm4ForCausalLM",
        names.GLM4,
        _GLM_KEYS,
        _GLM_FIXED | dict(norm_placement="sandwich"),
        partial_rotary=0.5,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        names.GPT2,
        {
            "vocab_size": Key("vocab_size", NEEDED),
            "n_embd": Key("dim", NEEDED),
            "n_layer": Key("layers", NEEDED),
            "n_head": Key("heads", NEEDED),
            "n_inner": Key("mlp_dim", None),
            "n_positions": Key("max_positions", 1024),
            "layer_norm_epsilon": Key("norm_eps", 1e-5),
            "scale_attn_weights": Key(
                "attention_scale",
                True,
                read=lambda scaled: None if scaled else 1.0,
                write=lambda config: config.attention_scale is None,
            ),
            "tie_word_embeddings": Key("tied", True),
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
