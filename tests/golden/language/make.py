"""What transformers makes of small checkpoints: the files of this folder, and the live comparison.

    python make.py golden [FAMILY …]  writes FAMILY.json next to this file
    python make.py checkpoints DIR    writes DIR/FAMILY, as transformers saves it, with answer.npz
    python make.py answers DIR        loads DIR/FAMILY, whoever wrote it, writes answer.npz there

needs torch and transformers. FAMILY.json was written with torch 2.13.0 and transformers 5.24.0. It
holds config.json, the names and shapes of the tensors in a file, and the logits of `TOKENS` when
the tensors are `fill(name, shape)`.
"""

import json
import pathlib
import sys
import tempfile
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent
TOKENS = (np.arange(22).reshape(2, 11) * 7 + np.arange(11) ** 2) % 40

_SMALL = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
_GEMMA = _SMALL | dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=6, num_hidden_layers=4)
_LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
_YARN = dict(
    rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4
)
_LONGROPE = dict(
    rope_type="longrope",
    rope_theta=1e4,
    partial_rotary_factor=0.75,
    short_factor=[1.0, 1.5, 2.0],
    long_factor=[1.0, 3.0, 8.0],
)
#: File name: (class of the config, its values).
FAMILIES = {
    "llama": ("LlamaConfig", _SMALL | dict(attention_bias=True, mlp_bias=True, head_dim=6)),
    "llama3": ("LlamaConfig", _SMALL | dict(rope=_LLAMA3, tie_word_embeddings=True)),
    "mistral": ("MistralConfig", _SMALL | dict(sliding_window=4, head_dim=8)),
    "qwen2": (
        "Qwen2Config",
        _SMALL
        | dict(
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            rope=dict(rope_type="linear", factor=2.0, rope_theta=1e4),
        ),
    ),
    "qwen3": ("Qwen3Config", _SMALL | dict(head_dim=6, attention_bias=True)),
    "gemma2": (
        "Gemma2Config",
        _GEMMA | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    ),
    "gemma3": (
        "Gemma3TextConfig",
        _GEMMA
        | dict(
            num_hidden_layers=8,
            num_key_value_heads=1,
            layer_types=(["sliding_attention"] * 2 + ["full_attention"]) * 2
            + ["sliding_attention"] * 2,
            final_logit_softcapping=3.0,
            gemma3_rope=dict(rope_type="linear", factor=8.0, rope_theta=2000.0),
        ),
    ),
    "mixtral": (
        "MixtralConfig",
        _SMALL | dict(sliding_window=4, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        _SMALL
        | dict(
            head_dim=6,
            attention_bias=True,
            moe_intermediate_size=16,
            num_experts=8,
            num_experts_per_tok=4,
            norm_topk_prob=False,
        ),
    ),
    "qwen3_moe_dense": (
        "Qwen3MoeConfig",
        _SMALL
        | dict(
            head_dim=6,
            num_hidden_layers=6,
            intermediate_size=20,
            moe_intermediate_size=16,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            decoder_sparse_step=2,
            mlp_only_layers=[3],
        ),
    ),
    "phi3": ("Phi3Config", _SMALL | dict(sliding_window=4)),
    "olmo2": ("Olmo2Config", _SMALL),
    "olmo3": (
        "Olmo3Config",
        _SMALL | dict(num_hidden_layers=5, sliding_window=4, olmo3_rope=_YARN),
    ),
    "smollm3": ("SmolLM3Config", _SMALL | dict(num_hidden_layers=5, attention_bias=True)),
    "smollm3_windows": (
        "SmolLM3Config",
        _SMALL
        | dict(use_sliding_window=True, sliding_window=4, no_rope_layers=[0, 1, 0], mlp_bias=True),
    ),
    "ministral": (
        "MinistralConfig",
        _SMALL
        | dict(
            sliding_window=4,
            head_dim=8,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "granite": (
        "GraniteConfig",
        _SMALL
        | dict(
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.35,
            logits_scaling=4.0,
            mlp_bias=True,
        ),
    ),
    "seed_oss": ("SeedOssConfig", _SMALL | dict(head_dim=6, attention_out_bias=True)),
    "glm": ("GlmConfig", _SMALL | dict(head_dim=8)),
    "glm4": ("Glm4Config", _SMALL | dict(head_dim=8, attention_bias=False)),
    "llama_yarn": (
        "LlamaConfig",
        _SMALL | dict(rope=_YARN | dict(mscale=1.5, mscale_all_dim=0.5, truncate=False)),
    ),
    "phi4_mini": (
        "Phi3Config",
        _SMALL | dict(hidden_size=32, original_max_position_embeddings=8, rope=_LONGROPE),
    ),
    "phi4_mini_short": (
        "Phi3Config",
        _SMALL | dict(hidden_size=32, original_max_position_embeddings=16, rope=_LONGROPE),
    ),
    "gpt2": (
        "GPT2Config",
        dict(
            vocab_size=40,
            n_embd=16,
            n_layer=3,
            n_head=4,
            n_positions=32,
            bos_token_id=None,
            eos_token_id=None,
        ),
    ),
}


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Pseudo-random float32 numbers, a function of name and shape alone.

    Matrices are normal with deviation 0.3; vectors lie in 0.1 .. 0.9. Both are wide enough that
    softmax and caps are far from linear.
    """
    generator = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    if len(shape) == 1:
        return (0.1 + 0.8 * generator.random(shape)).astype(np.float32)
    return (0.3 * generator.standard_normal(shape)).astype(np.float32)


def config_of(name: str):
    """The config of transformers, whichever version is here."""
    import transformers

    kind, values = FAMILIES[name]
    values = dict(values)
    four = int(transformers.__version__.split(".")[0]) < 5
    for option in ("rope", "gemma3_rope", "olmo3_rope"):
        rope = values.pop(option, None)
        if rope is None:
            continue
        if four:
            values["rope_theta"] = rope["rope_theta"]
            values["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
        elif option == "rope":
            values["rope_parameters"] = rope
        elif option == "olmo3_rope":
            local = dict(rope_type="default", rope_theta=rope["rope_theta"])
            values["rope_parameters"] = dict(full_attention=rope, sliding_attention=local)
        else:
            local = dict(rope_type="default", rope_theta=100.0)
            values["rope_parameters"] = dict(full_attention=rope, sliding_attention=local)
        if four and option == "gemma3_rope":
            values["rope_local_base_freq"] = 100.0
    return getattr(transformers, kind)(**values, attn_implementation="eager")


def answer(model) -> np.ndarray:
    """The logits of `TOKENS`, float32 [2, 11, 40]."""
    import torch

    with torch.no_grad():
        return model.float().eval()(torch.tensor(TOKENS)).logits.numpy()


def _filled(name: str):
    """The model, and the shapes of its tensors by their names in a file."""
    import safetensors.numpy
    import transformers

    models = transformers.AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        # Version 5 keeps the experts of a layer in one tensor, but not in files.
        models.from_config(config_of(name)).save_pretrained(folder)
        file = pathlib.Path(folder) / "model.safetensors"
        shapes = {own: value.shape for own, value in safetensors.numpy.load_file(file).items()}
        filled = {own: fill(own, shape) for own, shape in shapes.items()}
        safetensors.numpy.save_file(filled, file, metadata={"format": "pt"})
        model = models.from_pretrained(folder, attn_implementation="eager")
    return model, {own: list(shape) for own, shape in sorted(shapes.items())}


def golden(*names: str) -> None:
    for name in names or FAMILIES:
        model, shapes = _filled(name)
        content = {
            "config": json.loads(model.config.to_json_string()),
            "tensors": shapes,
            "logits": np.round(answer(model).astype(float), 7).tolist(),
        }
        (HERE / f"{name}.json").write_text(json.dumps(content) + "\n")


def checkpoints(folder: pathlib.Path) -> None:
    for name in FAMILIES:
        model, _ = _filled(name)
        # The last one is sharded, as large checkpoints are.
        size = "4KB" if name == "gpt2" else "1GB"
        model.save_pretrained(folder / name, max_shard_size=size)
        np.savez(folder / name / "answer.npz", logits=answer(model))


def answers(folder: pathlib.Path) -> None:
    import transformers

    for place in sorted(folder.iterdir()):
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            place, attn_implementation="eager", output_loading_info=True
        )
        if any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            raise ValueError(f"{place.name}: {report}")
        np.savez(place / "answer.npz", logits=answer(model))


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "golden":
        golden(*rest)
    else:
        {"checkpoints": checkpoints, "answers": answers}[command](*map(pathlib.Path, rest))
