"""Decoders of every family that is exported, in llama.cpp: the same logits, the same text."""

import json
import pathlib

import jax
import jax.numpy as jnp
import llama_cpp
import numpy as np
import pytest
import small_texts

from distill_jax import cli, models
from distill_jax.data import text
from distill_jax.models import language
from distill_jax.models.language import DecoderConfig, RopeScaling, quantized
from distill_jax.models.language.gguf import architectures
from distill_jax.models.language.huggingface.family_table import FAMILIES
from distill_jax.quantization import grids

_SIZES = dict(
    vocab_size=320,
    dim=64,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_dim=96,
    max_positions=256,
)
_GEMMA = dict(
    norm_offset=True, norm_placement="sandwich", activation="gelu_tanh", embedding_scale=8.0,
    attention_scale=0.25, tied=True, window=8,
)  # fmt: skip
_BIASES = dict(qkv_bias=True, output_bias=True, mlp_bias=True)


def _scaled(kind: str, **fields) -> dict:
    return dict(rope_scaling=RopeScaling(kind, **fields))


CONFIGS = {
    "llama": {},
    "llama, tied, with biases": dict(tied=True, **_BIASES),
    "llama, wide heads": dict(head_dim=32),
    "llama3": _scaled("llama3", factor=8.0) | dict(rope_theta=5e5),
    "linear": _scaled("linear", factor=4.0),
    "yarn": _scaled(
        "yarn", factor=4.0, original_max_positions=64, attention_factor=0.1 * np.log(4.0) + 1
    ),
    "mistral": {},
    "qwen2": dict(qkv_bias=True),
    "qwen3": dict(qk_norm="head"),
    "gemma2": _GEMMA | dict(attention_cap=50.0, logit_cap=30.0, sliding=(True, False)),
    "gemma3_text": _GEMMA
    | dict(layers=7, sliding=(True,) * 5 + (False,), qk_norm="head", rope_theta=1e6)
    | dict(rope_local_theta=1e4),
    "olmo2": dict(norm_placement="post", qk_norm="all"),
    "smollm3": dict(no_rope=(False, False, False, True), tied=True),
    "granite": dict(
        attention_scale=0.1, embedding_scale=3.0, residual_scale=0.4, logit_scale=0.25, tied=True
    ),
    "seed_oss": dict(qkv_bias=True),
    "gpt2": dict(kv_heads=4, gated=False, norm="layer", positions="learned", tied=True)
    | _BIASES | dict(activation="gelu_tanh"),
}  # fmt: skip
PROMPT = [5, 17, 200, 33, 80, 4, 250, 299, 12, 64, 7, 7, 91, 22]


def make(name: str, folder: pathlib.Path) -> language.Decoder:
    """A decoder whose positions, norms and biases all matter, as a Hugging Face folder."""
    family = name if name in FAMILIES else "llama"
    config = DecoderConfig(**{**_SIZES, **CONFIGS[name]}, family=family)
    params, rng = models.split(language.create(config, seed=3))[1], np.random.default_rng(0)
    for path, value in params.items():
        if value.ndim > 2 and path.startswith("runs"):
            params[path] = 6 * value
        if path.endswith(("scale", "bias")):
            params[path] = value + 0.3 * rng.standard_normal(value.shape).astype(np.float32)
    model = language.from_params(config, params)
    language.save(folder, model)
    small_texts.write_tokenizer(folder)
    return model


def export(folder: pathlib.Path, kind: str, *flags: str) -> pathlib.Path:
    out = folder.with_name(f"{folder.name}-{kind}.gguf")
    flags = (f"--workdir={folder}", "--format=gguf", f"--out={out}", f"--type={kind}", *flags)
    assert cli.main(["export", *flags]) == 0
    return out


def our_log_probs(model: language.Decoder, ids: list[int]) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(model.logits(model(jnp.array([ids])).hidden)[0, -1]))


def test_every_exported_family_has_a_case():
    exported = {family for row in architectures.ARCHITECTURES.values() for family in row.families}
    assert exported <= CONFIGS.keys()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("llama", "qwen2") else pytest.mark.slow)
        for name in CONFIGS
    ],
)
def test_llama_cpp_computes_the_same_logits(name, tmp_path, capsys):
    llama_cpp.need()
    model = make(name, tmp_path / "model")
    server = llama_cpp.Server(export(tmp_path / "model", "f32"))
    found = server.log_probs(PROMPT, 320)
    # GGML's GELU is a table of float16.
    tolerance = 2e-3 if model.config.activation == "gelu_tanh" else 1e-4
    np.testing.assert_allclose(found, our_log_probs(model, PROMPT), atol=tolerance)
    assert np.std(found) > 0.03


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_exported_is_imported_again(name, tmp_path, capsys):
    model = make(name, tmp_path / "model")
    file = export(tmp_path / "model", "f32")
    assert cli.main(["import", str(file), f"--workdir={tmp_path / 'back'}"]) == 0
    back = language.load(tmp_path / "back")
    family = "llama" if name == "mistral" else model.config.family
    assert back.config == model.config.replace(family=family)
    ours, theirs = (models.split(each)[1] for each in (model, back))
    for path, value in ours.items():
        # 1 is added to Gemma's norms in the file.
        np.testing.assert_allclose(theirs[path], value, rtol=0, atol=2e-7, err_msg=path)
    tokenizers = [text.load_tokenizer(tmp_path / folder) for folder in ("model", "back")]
    sentence = " ".join(small_texts.sentence(40, seed=5)) + " 12  é\n</s>"
    assert tokenizers[0].encode(sentence) == tokenizers[1].encode(sentence)
    assert [each.adds_bos for each in tokenizers] == [True, True]


@pytest.mark.parametrize(("kind", "tolerance"), [("f16", 5e-3), ("q8_0", 0.1), ("q4_0", 2.0)])
def test_types_of_fewer_bits(kind, tolerance, tmp_path, capsys):
    llama_cpp.need()
    model = make("llama", tmp_path / "model")
    file = export(tmp_path / "model", kind)
    server = llama_cpp.Server(file)
    ours = our_log_probs(model, PROMPT)
    found = server.log_probs(PROMPT, 320)
    assert np.abs(found - ours).max() < tolerance
    if kind == "f16":
        ids, generated = list(PROMPT), server.generate(PROMPT, 8)
        for token in generated:
            assert int(our_log_probs(model, ids).argmax()) == token
            ids.append(token)
    # What the file says is what llama.cpp computes: the numbers read back from it.
    assert cli.main(["import", str(file), f"--workdir={tmp_path / 'back'}"]) == 0
    back = our_log_probs(language.load(tmp_path / "back"), PROMPT)
    # Its products of quantized matrices round the activations to 8 bits.
    assert np.abs(found - back).max() < (5e-3 if kind == "f16" else 0.15)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16", "bf16"])
def test_numbers_of_a_type_are_written_again_without_a_change(kind, tmp_path, capsys):
    make("llama", tmp_path / "model")
    first = export(tmp_path / "model", kind)
    assert cli.main(["import", str(first), f"--workdir={tmp_path / 'model-again'}"]) == 0
    second = export(tmp_path / "model-again", kind)
    content = [path.read_bytes().replace(b"model-again", b"model") for path in (first, second)]
    names = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert names[0]["architecture"] == "llama"
    # All after the metadata, which differ in the length of a name alone.
    tail = 50_000
    assert len(content[0]) > 2 * tail and content[0][-tail:] == content[1][-tail:]


@pytest.mark.parametrize("grid", [grids.Q4_0, grids.Q8_0])
def test_codes_of_a_quantized_decoder_are_not_rounded_again(grid, tmp_path, capsys):
    model = make("llama", tmp_path / "dense")
    dense = models.split(model)[1]
    chosen = dict.fromkeys(quantized.kernels({k: v.shape for k, v in dense.items()}), grid)
    encoded = {}
    for name in chosen:
        codes, scales = grid.encode(np.asarray(dense[name]))
        # Codes that no rounding to nearest gives, such as those of a calibration: the largest is
        # smaller than the grid allows.
        encoded[name] = (np.clip(codes, -5, 5), scales)
    params = quantized.with_codes(dense, encoded, chosen)
    folder = tmp_path / "model"
    language.save_params(folder, model.config, params, chosen=chosen)
    small_texts.write_tokenizer(folder)
    flags = [f"--workdir={folder}", "--format=gguf", f"--out={tmp_path / 'm.gguf'}"]
    assert cli.main(["export", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == grid.name
    assert cli.main(["import", str(tmp_path / "m.gguf"), f"--workdir={tmp_path / 'back'}"]) == 0
    back = models.split(language.load(tmp_path / "back"))[1]
    for name, value in quantized.decode(params, chosen, np.float32).items():
        if name in chosen:
            np.testing.assert_array_equal(back[name], value, err_msg=name)
    out = tmp_path / "again.gguf"
    flags = [f"--workdir={folder}", "--format=gguf", f"--out={out}", "--type=f16"]
    assert cli.main(["export", *flags]) == 2
    assert "rounded again" in capsys.readouterr().err
    assert not out.exists()
