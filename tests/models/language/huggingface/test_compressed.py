"""Quantized folders: of transformers with compressed-tensors, and of what is not read."""

import json
import os
import subprocess

import language_reference as reference
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from distill_jax.errors import UsageError
from distill_jax.models import language, split
from distill_jax.models.language import quantized
from distill_jax.models.language.huggingface.reading import grids_of
from distill_jax.quantization import grids, packing, recipes

PYTHON = os.environ.get("DISTILL_JAX_TRANSFORMERS")
RECIPES = (
    *("int8", "int4", "int4-g32", "fp8", "fp8-weight-only", "q4_0", "q8_0", "w8a8"),
    ".*/attention/.*=int8;.*=int4-g64",
)
TOKENS = np.arange(22, dtype=np.int32).reshape(2, 11)
X = np.random.default_rng(5).normal(size=(3, 7, 128)).astype(np.float32)
SCRIPT = """
import sys, numpy, torch, transformers
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
found = {}
x = torch.from_numpy(numpy.load(sys.argv[1]))
for kind, name in (("int", "int8"), ("float", "fp8")):
    args = QuantizationArgs(num_bits=8, type=kind, strategy="token", dynamic=True)
    scales, zeros = compute_dynamic_scales_and_zp(x, args, torch.nn.Linear(1, 1))
    found[name] = quantize(x, scales, zeros, args).float().numpy()
for folder in sys.argv[2:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found[folder.replace("/", "|")] = model(torch.arange(22).reshape(2, 11)).logits.numpy()
numpy.savez(sys.argv[1] + ".npz", **found)
"""


def config(family: str = "llama", **changes) -> language.DecoderConfig:
    sizes = {"vocab_size": 40, "dim": 128, "layers": 2, "heads": 4, "kv_heads": 2}
    return language.DecoderConfig(
        **{**sizes, "head_dim": 32, "mlp_dim": 256, "family": family, **changes}
    )


def write(folder, recipe, own=None):
    """A random quantized folder; returns (the model in memory, the dense one)."""
    dense = language.create(own or config())
    params = {name: 4 * v if "kernel" in name else v for name, v in split(dense)[1].items()}
    dense = language.from_params(dense.config, params)
    kernels = quantized.kernels(language.shapes(dense.config))
    chosen = recipes.parse(recipe, "--recipe").choose(kernels, kernels, "--recipe")
    held = quantized.encode(params, chosen)
    language.save_params(folder, dense.config, held, chosen=chosen)
    acting = quantized.activations(chosen)
    return language.from_params(dense.config, held, activations=acting), dense


@pytest.mark.skipif(
    PYTHON is None,
    reason="DISTILL_JAX_TRANSFORMERS names no python with transformers and compressed-tensors",
)
@pytest.mark.slow
def test_transformers_gives_our_logits(tmp_path):
    models = {str(tmp_path / str(i)): write(tmp_path / str(i), r) for i, r in enumerate(RECIPES)}
    probe = [PYTHON, "-c", "import compressed_tensors"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("the python of DISTILL_JAX_TRANSFORMERS has no compressed-tensors")
    np.save(tmp_path / "x.npy", X)
    command = [PYTHON, "-c", SCRIPT, str(tmp_path / "x.npy"), *models]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    found = np.load(tmp_path / "x.npy.npz")
    for kind in ("int8", "fp8"):  # of the very same activations, code for code
        np.testing.assert_array_equal(grids.encode_tokens(X, kind)[0], found[kind])
    for recipe, (folder, (model, dense)) in zip(RECIPES, models.items(), strict=True):
        ours, exact = (reference.logits(each, TOKENS) for each in (model, dense))
        error, rounding = (
            np.abs(other - ours).max() for other in (found[folder.replace("/", "|")], exact)
        )
        # With 127.5 the largest activation of a token lies half-way between two codes, and falls to
        # either with the last bit of what comes before.
        assert error < (rounding if recipe == "w8a8" else 1e-5), recipe
        assert rounding > 1e-3


@pytest.mark.parametrize("family", ["phi3", "mixtral"])
@pytest.mark.parametrize("recipe", ["int4-g32", "w8a8"])
def test_fused_matrices_and_experts_come_back_bit_for_bit(tmp_path, family, recipe):
    golden = language.from_huggingface(reference.golden(family)["config"])
    own = golden.replace(dim=64, heads=2, kv_heads=2, head_dim=32, mlp_dim=64, rotary_dim=None)
    model, dense = write(tmp_path / "folder", recipe, own)
    back = language.load(tmp_path / "folder")
    for name, value in split(model)[1].items():
        np.testing.assert_array_equal(np.asarray(split(back)[1][name]), np.asarray(value))
    ours, exact = (reference.logits(each, TOKENS) for each in (model, dense))
    np.testing.assert_array_equal(reference.logits(back, TOKENS), ours)
    assert 1e-4 < np.abs(ours - exact).max()
    decoded = quantized.decode(split(back)[1], grids_of(tmp_path / "folder"), np.float32)
    plain = reference.logits(language.from_params(own, decoded), TOKENS)
    if recipe == "int4-g32":
        np.testing.assert_allclose(ours, plain, atol=1e-4)
    else:  # activations are rounded too
        assert 1e-5 < np.abs(ours - plain).max()


def test_shards_and_the_shapes_alone(tmp_path):
    model, _ = write(tmp_path / "one", "int4-g32")
    chosen = grids_of(tmp_path / "one")
    language.save_params(
        tmp_path / "many", model.config, split(model)[1], chosen=chosen, shard_bytes=50_000
    )
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    loaded = split(language.load(tmp_path / "many"))[1]
    zeros = split(language.load_zeros(tmp_path / "many"))[1]
    for name, value in split(model)[1].items():
        np.testing.assert_array_equal(np.asarray(loaded[name]), np.asarray(value))
        assert (zeros[name].shape, zeros[name].dtype) == (value.shape, value.dtype)


def test_words_are_those_of_compressed_tensors():
    """Code + 2^(bits - 1), element i of a row in bits 4 i or 8 i of a little-endian int32."""
    rng = np.random.default_rng(0)
    for bits in (4, 8):
        codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 26)).astype(np.int8)
        words = packing.to_words(codes, bits)
        per_word = 32 // bits
        assert words.dtype == np.int32 and words.shape == (3, -(-26 // per_word))
        for row, column in np.ndindex(codes.shape):
            word = int(words[row, column // per_word]) & 0xFFFFFFFF
            shifted = word >> bits * (column % per_word) & (2**bits - 1)
            assert shifted - 2 ** (bits - 1) == codes[row, column]
        np.testing.assert_array_equal(packing.from_words(words, bits, 26), codes)


def _edit(folder, change):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content["quantization_config"])
    path.write_text(json.dumps(content))
    (folder / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(quant_method="gptq"), "quant_method='gptq': not read"),
        (lambda c: c.update(format="nvfp4-pack-quantized"), "format='nvfp4-pack-quantized'"),
        (lambda c: c.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme is set"),
        (lambda c: c.update(ignore=["model.layers.1.mlp.up_proj"]), "expected all layers alike"),
        (lambda c: c.update(config_groups={}), "expected config_groups"),
        (lambda c: _weights(c).update(symmetric=False), "symmetric=False: not read"),
        (lambda c: _weights(c).update(actorder="group"), "actorder='group': not read"),
        (lambda c: _weights(c).update(strategy="tensor"), "strategy='tensor': not read"),
        (lambda c: _weights(c).update(num_bits=3), "num_bits=3: not read"),
        (
            lambda c: _weights(c).update(group_size=64),
            "_proj.weight_scale is [256, 4], not [256, 2]",
        ),
        (
            lambda c: c["config_groups"]["group_0"].update(
                input_activations={"num_bits": 8, "strategy": "tensor", "dynamic": False}
            ),
            "input_activations=",
        ),
    ],
)
def test_what_is_not_read_is_refused(tmp_path, change, words):
    write(tmp_path / "folder", "int4-g32")
    _edit(tmp_path / "folder", change)
    with pytest.raises(UsageError) as error:
        language.load(tmp_path / "folder", key="teacher.path")
    assert words in str(error.value) and str(error.value).startswith("teacher.path=")


def _weights(content):
    return content["config_groups"]["group_0"]["weights"]


def test_a_folder_as_llm_compressor_writes_it(tmp_path):
    """Regular expressions, bfloat16 scales, no key of ours, and names of modules."""
    model, _ = write(tmp_path / "folder", "int4-g32")
    path = tmp_path / "folder" / "config.json"
    content = json.loads(path.read_text())
    del content["distill_jax_grids"]
    about = content["quantization_config"]
    about["config_groups"]["group_0"]["targets"] = [r"re:.*(self_attn|mlp)\..*_proj$"]
    about["ignore"] = ["lm_head", "re:.*router.*"]
    about["config_groups"]["group_0"]["weights"] |= {"actorder": None, "observer": "minmax"}
    path.write_text(json.dumps(content))
    (tmp_path / "folder" / "SHA256SUMS").unlink()
    file = tmp_path / "folder" / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    halved = {
        name: value.astype(ml_dtypes.bfloat16) if name.endswith("weight_scale") else value
        for name, value in tensors.items()
    }
    safetensors.numpy.save_file(halved, file)
    found = split(language.load(tmp_path / "folder"))[1]
    for name, value in split(model)[1].items():
        wanted = np.asarray(value)
        if name.endswith("kernel_scale"):
            wanted = wanted.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(found[name]), wanted)


def test_a_folder_that_is_quantized_is_not_quantized_while_it_is_read(tmp_path):
    write(tmp_path / "folder", "int8")
    with pytest.raises(UsageError, match="path=.* is quantized already"):
        language.load(tmp_path / "folder", quantize="int8")


def test_gpt2_has_no_linear_layers(tmp_path):
    with pytest.raises(UsageError, match="model_type=gpt2: its matrices are Conv1D"):
        own = language.from_huggingface(reference.golden("gpt2")["config"])
        write(tmp_path / "folder", "int8", own)
