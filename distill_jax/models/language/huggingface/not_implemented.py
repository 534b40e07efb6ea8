"""Architectures of transformers that the decoder does not compute, and what it lacks for each.

A file of one of them gets a line with the reason. The list has published language models; any other
unknown `model_type` is refused with the names of those that are known.
"""

_LATENT = "multi-head latent attention and shared experts"
_SHARED = "shared experts, which every token passes"
_STATE = "layers of a state-space model (Mamba)"
_DELTA = "layers of linear attention (gated delta rule)"

#: model_type -> what the decoder lacks.
REASONS = {
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "falcon_h1": "state-space heads (Mamba-2) next to the attention",
    "falcon_mamba": _STATE,
    "gemma3n": "embeddings of each layer and parallel residual streams (AltUp)",
    "glm4_moe": _SHARED,
    "gpt_oss": "attention sinks, and experts with biases and a clamped activation",
    "granitemoehybrid": _STATE,
    "jamba": _STATE,
    "kimi_linear": _DELTA,
    "llama4": "attention in chunks, its temperature by position, and shared experts",
    "llama4_text": "attention in chunks, its temperature by position, and shared experts",
    "mamba": _STATE,
    "mamba2": _STATE,
    "ministral3": "a temperature of the attention by position (llama_4_scaling_beta)",
    "qwen2_moe": _SHARED,
    "qwen3_5": _DELTA,
    "qwen3_5_moe": _DELTA,
    "qwen3_next": f"{_DELTA} and gated attention",
}
