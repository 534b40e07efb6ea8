"""The families of decoders in transformers: which key of config.json is which field of ours.

A row has each key's default in transformers, and what the family fixes; `families` reads and writes
by it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

NEEDED = object()

#: Keys that do not change the hidden states of an evaluated model.
HARMLESS = frozenset(
    """_attn_implementation_autoset _name_or_path architectures attention_dropout attn_pdrop
    auto_map begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward
    do_sample dtype embd_pdrop embedding_dropout eos_token_id finetuning_task id2label
    initializer_range is_llama_config label2id max_length model_type n_ctx output_router_logits
    pad_token_id prefix pretraining_tp problem_type reorder_and_upcast_attn resid_pdrop return_dict
    router_aux_loss_coef router_jitter_noise sep_token_id summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj task_specific_params temperature
    tokenizer_class top_k top_p torch_dtype transformers.js_config transformers_version
    unsloth_fixed unsloth_version use_cache""".split()
)

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
      unread: keys that would mean something beside options that are refused.
      renamed: another name of a key -> the key; a file has one of them.
    """

    architecture: str
    keys: Mapping[str, tuple[str | tuple[str, ...], Any]]
    fixed: Mapping[str, Any]
    activation: tuple[str, str] = ("hidden_act", "silu")
    windows: str = "none"
    default_window: int | None = None
    pattern: tuple[bool, ...] = (False,)
    equal: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unread: tuple[str, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)


_SIZES = {
    "vocab_size": ("vocab_size", NEEDED),
    "hidden_size": ("dim", NEEDED),
    "num_hidden_layers": ("layers", NEEDED),
    "num_attention_heads": ("heads", NEEDED),
    "num_key_value_heads": ("kv_heads", None),
    "head_dim": ("head_dim", None),
}


def _keys(
    positions: int,
    epsilon: float = 1e-6,
    tied: bool = False,
    width: str = "intermediate_size",
    **more: Any,
) -> dict[str, Any]:
    return _SIZES | {
        width: ("mlp_dim", NEEDED),
        "max_position_embeddings": ("max_positions", positions),
        "rms_norm_eps": ("norm_eps", epsilon),
        "tie_word_embeddings": ("tied", tied),
        **more,
    }


#: What is fixed in every Gemma.
GEMMA = dict(norm_offset=True, norm_placement="sandwich")
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
    "mixtral": Family(
        "MixtralForCausalLM",
        _keys(
            131072,
            1e-5,
            num_key_value_heads=("kv_heads", 8),
            num_local_experts=("experts", 8),
            num_experts_per_tok=("experts_per_token", 2),
        ),
        {},
        windows="all",
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _keys(
            32768,
            width="moe_intermediate_size",
            num_key_value_heads=("kv_heads", 4),
            num_experts=("experts", 128),
            num_experts_per_tok=("experts_per_token", 8),
            norm_topk_prob=("gates_normalised", False),
            **_ATTENTION_BIAS,
        ),
        dict(qk_norm="head"),
        equal=dict(decoder_sparse_step=1),
        # Of dense layers, and of `use_sliding_window`, which no published model has.
        unread=("intermediate_size", "sliding_window", "max_window_layers"),
        renamed=dict(num_local_experts="num_experts"),  # by transformers 5
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
        GEMMA,
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
        GEMMA | dict(qk_norm="head"),
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
        unread=("original_max_position_embeddings",),  # of "longrope"
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
