"""Which tensor of a Hugging Face checkpoint is which parameter of a `Decoder`.

A layer is a table: the tensor's name -> the parameters it holds, in order along their last axis
(queries, keys and values are one tensor in GPT-2 and Phi-3). A tensor of a table exists when its
parameters do; one with "{}" in its name is there for each expert. Matrices lie [out, in] in files
of PyTorch's linear layers and are transposed; in GPT-2, whose layers are `Conv1D`, and in
embeddings they lie as here.
"""

import dataclasses
import re
from collections.abc import Mapping

from distill_jax.models.language.config import DecoderConfig, places


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
      name: in the checkpoint.
      parameters: what it holds, in order along their last axis.
      place: where in each of them: (row of its layer,), (row, expert), or () for all of it.
      transposed: whether it lies [out, in].
      shape: in the checkpoint.
      splits: of the last axis of the parameters: where the second and the following begin.
    """

    name: str
    parameters: tuple[str, ...]
    place: tuple[int, ...]
    transposed: bool
    shape: tuple[int, ...]
    splits: tuple[int, ...]


def _both(theirs: str, *ours: str) -> dict[str, tuple[str, ...]]:
    return {
        f"{theirs}.{suffix}": tuple(f"{name}/{leaf}" for name in ours)
        for suffix, leaf in (("weight", "kernel"), ("bias", "bias"))
    }


_OUTPUT = _both("self_attn.o_proj", "attention/output")
_DOWN = _both("mlp.down_proj", "mlp/down")
_ATTENTION = (
    _both("self_attn.q_proj", "attention/query")
    | _both("self_attn.k_proj", "attention/key")
    | _both("self_attn.v_proj", "attention/value")
    | {
        "self_attn.q_norm.weight": ("attention/query_norm/scale",),
        "self_attn.k_norm.weight": ("attention/key_norm/scale",),
    }
    | _OUTPUT
)
_PROJECTIONS = (
    _ATTENTION | _both("mlp.gate_proj", "mlp/gate") | _both("mlp.up_proj", "mlp/up") | _DOWN
)
_MIXTRAL = _ATTENTION | {
    "block_sparse_moe.gate.weight": ("mlp/router/kernel",),
    "block_sparse_moe.experts.{}.w1.weight": ("mlp/gate/kernel",),
    "block_sparse_moe.experts.{}.w3.weight": ("mlp/up/kernel",),
    "block_sparse_moe.experts.{}.w2.weight": ("mlp/down/kernel",),
}
_QWEN3_MOE = _ATTENTION | {
    "mlp.gate.weight": ("mlp/router/kernel",),
    "mlp.experts.{}.gate_proj.weight": ("mlp/gate/kernel",),
    "mlp.experts.{}.up_proj.weight": ("mlp/up/kernel",),
    "mlp.experts.{}.down_proj.weight": ("mlp/down/kernel",),
}
_FUSED = (
    _both("self_attn.qkv_proj", "attention/query", "attention/key", "attention/value")
    | _OUTPUT
    | _both("mlp.gate_up_proj", "mlp/gate", "mlp/up")
    | _DOWN
)
_PRE = {
    "input_layernorm.weight": ("attention_norm/scale",),
    "post_attention_layernorm.weight": ("mlp_norm/scale",),
}
_POST = {
    "post_attention_layernorm.weight": ("attention_post_norm/scale",),
    "post_feedforward_layernorm.weight": ("mlp_post_norm/scale",),
}
_SANDWICH = _POST | {
    "input_layernorm.weight": ("attention_norm/scale",),
    "pre_feedforward_layernorm.weight": ("mlp_norm/scale",),
}
_GPT2 = (
    _both("attn.c_attn", "attention/query", "attention/key", "attention/value")
    | _both("attn.c_proj", "attention/output")
    | _both("mlp.c_fc", "mlp/up")
    | _both("mlp.c_proj", "mlp/down")
    | {
        f"{theirs}.{suffix}": (f"{ours}/{leaf}",)
        for theirs, ours in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm"))
        for suffix, leaf in (("weight", "scale"), ("bias", "bias"))
    }
)
_LAYERS = {
    "llama": _PRE | _PROJECTIONS,
    "mistral": _PRE | _PROJECTIONS,
    "qwen2": _PRE | _PROJECTIONS,
    "qwen3": _PRE | _PROJECTIONS,
    "mixtral": _PRE | _MIXTRAL,
    "qwen3_moe": _PRE | _QWEN3_MOE,
    "phi3": _PRE | _FUSED,
    "olmo2": _POST | _PROJECTIONS,
    "gemma2": _SANDWICH | _PROJECTIONS,
    "gemma3_text": _SANDWICH | _PROJECTIONS,
    "gpt2": _GPT2,
}
_WHOLE = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "final_norm/scale",
    "lm_head.weight": "untied_head",
}
_WHOLE_GPT2 = {
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "position_embedding",
    "transformer.ln_f.weight": "final_norm/scale",
    "transformer.ln_f.bias": "final_norm/bias",
    "lm_head.weight": "untied_head",
}
#: The tensor that a file with tied embeddings may hold once more.
HEAD = "lm_head.weight"
#: How the name of the embedding ends.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")

# Constants that older versions of transformers stored among the parameters.
_BUFFERS = re.compile(r"(.*\.)?(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)")


def tensors(config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """Every tensor that a checkpoint of this decoder has, each once.

    Args:
      config: of the decoder; its family names the table.
      shapes: of the decoder's parameters, by their flat names.
    """
    gpt2 = config.family == "gpt2"
    whole = _WHOLE_GPT2 if gpt2 else _WHOLE
    found = [
        _tensor(theirs, (ours,), (), theirs == HEAD, shapes)
        for theirs, ours in whole.items()
        if ours in shapes
    ]
    prefix = "transformer.h" if gpt2 else "model.layers"
    for number, (run, row) in enumerate(places(config)):
        for theirs, ours in _LAYERS[config.family].items():
            names = tuple(f"runs/{run}/{name}" for name in ours)
            if names[0] not in shapes:
                continue
            matrix = names[0].endswith("kernel") and not gpt2
            own = f"{prefix}.{number}.{theirs}"
            of_experts = [(row, expert) for expert in range(config.experts)]
            for place in of_experts if "{}" in own else [(row,)]:
                found.append(_tensor(own.format(*place[1:]), names, place, matrix, shapes))
    return found


def _tensor(
    name: str,
    parameters: tuple[str, ...],
    place: tuple[int, ...],
    transposed: bool,
    shapes: Mapping[str, tuple[int, ...]],
) -> Tensor:
    own = [shapes[parameter][len(place) :] for parameter in parameters]
    widths = [shape[-1] for shape in own]
    shape = (*own[0][:-1], sum(widths))
    splits = tuple(sum(widths[:i]) for i in range(1, len(widths)))
    shape = shape[::-1] if transposed else shape
    return Tensor(name, parameters, place, transposed, shape, splits)


def is_buffer(name: str) -> bool:
    """Whether a tensor is a constant that this decoder computes for itself."""
    return _BUFFERS.fullmatch(name) is not None


def canonical(name: str, config: DecoderConfig) -> str:
    """GPT-2's published files leave out "transformer."; other names stay as they are."""
    bare = config.family == "gpt2" and not name.startswith(("transformer.", "lm_head."))
    return f"transformer.{name}" if bare else name
