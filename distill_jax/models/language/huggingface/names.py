"""The names of the tensors in the checkpoints of transformers, one table for each naming scheme.

`TensorNames.layer` maps the name of a tensor of one layer to the parameters that it holds, in order
along their last axis (queries, keys and values are one tensor in GPT-2 and Phi-3). A checkpoint has
a tensor of the table if the decoder has its parameters, so that a table may name biases and norms
that only some models have. A name with "{}" stands for one tensor for each expert.
"""

import dataclasses
from collections.abc import Mapping

#: The tensor that a file with tied embeddings may hold once more.
HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """The naming scheme of a family's checkpoints.

    Attributes:
      layer: a tensor of one layer -> the parameters of a `Block` that it holds.
      whole: a tensor outside of the layers -> the parameter of a `Decoder`.
      embedding: which of `whole` is the token embedding.
      layers_prefix: what precedes the number of a layer.
      optional_prefix: a prefix of all names but the head's that files may omit: those of a model
        without a head (LlamaModel), and GPT-2's published ones.
      transposed: whether the matrices of the layers lie [out, in], as in PyTorch's linear layers;
        those of `Conv1D` lie [in, out]. The head is always transposed, the embedding never.
    """

    layer: Mapping[str, tuple[str, ...]]
    whole: Mapping[str, str]
    embedding: str
    layers_prefix: str
    optional_prefix: str
    transposed: bool = True


def _linear(theirs: str, *ours: str) -> dict[str, tuple[str, ...]]:
    """Weight and bias of a linear layer that holds the kernels and biases of some of ours."""
    return {
        f"{theirs}.{suffix}": tuple(f"{name}/{leaf}" for name in ours)
        for suffix, leaf in (("weight", "kernel"), ("bias", "bias"))
    }


def _scheme(*parts: Mapping[str, tuple[str, ...]]) -> TensorNames:
    """The scheme of Llama and its descendants, with a table put together from parts."""
    return TensorNames(
        layer={theirs: ours for part in parts for theirs, ours in part.items()},
        whole={
            "model.embed_tokens.weight": "embedding",
            "model.norm.weight": "final_norm/scale",
            HEAD: "untied_head",
        },
        embedding="model.embed_tokens.weight",
        layers_prefix="model.layers",
        optional_prefix="model.",
    )


_PRE_NORM = {
    "input_layernorm.weight": ("attention_norm/scale",),
    "post_attention_layernorm.weight": ("mlp_norm/scale",),
}
_POST_NORM = {
    "post_attention_layernorm.weight": ("attention_post_norm/scale",),
    "post_feedforward_layernorm.weight": ("mlp_post_norm/scale",),
}
_SANDWICH_NORM = _POST_NORM | {
    "input_layernorm.weight": ("attention_norm/scale",),
    "pre_feedforward_layernorm.weight": ("mlp_norm/scale",),
}
_OUTPUT = _linear("self_attn.o_proj", "attention/output")
_DOWN = _linear("mlp.down_proj", "mlp/down")
_ATTENTION = (
    _linear("self_attn.q_proj", "attention/query")
    | _linear("self_attn.k_proj", "attention/key")
    | _linear("self_attn.v_proj", "attention/value")
    | {
        "self_attn.q_norm.weight": ("attention/query_norm/scale",),
        "self_attn.k_norm.weight": ("attention/key_norm/scale",),
    }
    | _OUTPUT
)
_MERGED_MLP = _linear("mlp.gate_up_proj", "mlp/gate", "mlp/up") | _DOWN
_MLP = _linear("mlp.gate_proj", "mlp/gate") | _linear("mlp.up_proj", "mlp/up") | _DOWN

#: Norms before attention and MLP, and one tensor for each matrix.
LLAMA = _scheme(_PRE_NORM, _ATTENTION, _MLP)
OLMO2 = _scheme(_POST_NORM, _ATTENTION, _MLP)
GEMMA2 = _scheme(_SANDWICH_NORM, _ATTENTION, _MLP)
PHI3 = _scheme(
    _PRE_NORM,
    _linear("self_attn.qkv_proj", "attention/query", "attention/key", "attention/value"),
    _OUTPUT,
    _MERGED_MLP,
)
#: GLM: as Llama, with gate and up in one tensor; GLM-4 has norms of the outputs too.
GLM = _scheme(_PRE_NORM, _ATTENTION, _MERGED_MLP)
GLM4 = _scheme(
    _PRE_NORM,
    {
        "post_self_attn_layernorm.weight": ("attention_post_norm/scale",),
        "post_mlp_layernorm.weight": ("mlp_post_norm/scale",),
    },
    _ATTENTION,
    _MERGED_MLP,
)
MIXTRAL = _scheme(
    _PRE_NORM,
    _ATTENTION,
    {
        "block_sparse_moe.gate.weight": ("mlp/router/kernel",),
        "block_sparse_moe.experts.{}.w1.weight": ("mlp/gate/kernel",),
        "block_sparse_moe.experts.{}.w3.weight": ("mlp/up/kernel",),
        "block_sparse_moe.experts.{}.w2.weight": ("mlp/down/kernel",),
    },
)
QWEN3_MOE = _scheme(
    _PRE_NORM,
    _ATTENTION,
    _MLP,  # of layers without experts
    {
        "mlp.gate.weight": ("mlp/router/kernel",),
        "mlp.experts.{}.gate_proj.weight": ("mlp/gate/kernel",),
        "mlp.experts.{}.up_proj.weight": ("mlp/up/kernel",),
        "mlp.experts.{}.down_proj.weight": ("mlp/down/kernel",),
    },
)
GPT2 = TensorNames(
    layer=(
        _linear("attn.c_attn", "attention/query", "attention/key", "attention/value")
        | _linear("attn.c_proj", "attention/output")
        | _linear("mlp.c_fc", "mlp/up")
        | _linear("mlp.c_proj", "mlp/down")
        | {
            f"{theirs}.{suffix}": (f"{ours}/{leaf}",)
            for theirs, ours in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm"))
            for suffix, leaf in (("weight", "scale"), ("bias", "bias"))
        }
    ),
    whole={
        "transformer.wte.weight": "embedding",
        "transformer.wpe.weight": "position_embedding",
        "transformer.ln_f.weight": "final_norm/scale",
        "transformer.ln_f.bias": "final_norm/bias",
        HEAD: "untied_head",
    },
    embedding="transformer.wte.weight",
    layers_prefix="transformer.h",
    optional_prefix="transformer.",
    transposed=False,
)
