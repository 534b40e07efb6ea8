"""Weights of 8 bits: their error, what a network makes of them, and how little they take."""

import jax
import jax.numpy as jnp
import language_reference as reference
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill_jax.models import language, split
from distill_jax.models.language import quantized
from distill_jax.models.language.huggingface import tensor_files

# Float32 alone moves the logits of Gemma's golden weights by several 1e-5.
FAMILIES = {
    "llama": 1e-5,
    "phi3": 1e-5,
    "gemma2": 1e-4,
    "gpt2": 1e-5,
    "mixtral": 1e-5,
    "qwen3_moe_dense": 1e-5,
}
LARGE = language.DecoderConfig(
    vocab_size=64, dim=128, layers=12, heads=4, kv_heads=4, head_dim=32, mlp_dim=512
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantized_model_is_the_dense_one_of_its_rounded_weights(tmp_path, name):
    folder = reference.write(tmp_path / name, name)
    dense, small = language.load(folder), language.load(folder, quantize="int8")
    original = {k: np.float64(v) for k, v in reference.parameters(dense).items()}
    held = reference.parameters(small)
    rounded = {}
    for key, value in original.items():
        if not key.endswith("/kernel") or "router" in key:
            assert held[key].dtype == jnp.float32
            np.testing.assert_array_equal(held[key], value)
            rounded[key] = value
            continue
        q, scale = held[key], np.float64(held[f"{key}_scale"])[..., None, :]
        assert q.dtype == jnp.int8 and np.abs(q).max() == 127
        np.testing.assert_allclose(scale, np.abs(value).max(-2, keepdims=True) / 127, rtol=1e-6)
        rounded[key] = np.float64(q) * scale
        assert np.all(np.abs(value - rounded[key]) <= scale * (0.5 + 1e-4))
    assert held.keys() - original.keys() == {
        f"{k}_scale" for k in original if "/kernel" in k and "router" not in k
    }
    again = language.from_params(
        dense.config, {k: jnp.asarray(v, jnp.float32) for k, v in rounded.items()}
    )
    expected = reference.logits(again, reference.TOKENS)
    found = reference.logits(small, reference.TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=FAMILIES[name])
    # Else the comparison would not see whether anything was rounded.
    assert np.abs(expected - reference.logits(dense, reference.TOKENS)).max() > 1e-3


def test_a_matrix_is_rounded_to_its_nearest_integers_and_zeros_stay():
    kernel = np.zeros((5, 4), np.float32)
    kernel[:, 0] = [-12.7, 0.04, 0.06, 1.0, 6.35]
    kernel[:, 2] = 1e-30
    kernel[:, 3] = [3e38, 0, -3e38, 1e38, 1]
    q, scale = quantized.encode_kernel(jnp.asarray(kernel), quantized.WHILE_READING)
    np.testing.assert_allclose(scale[0], 0.1, rtol=1e-6)
    assert q[:3, 0].tolist() == [-127, 0, 1] and int(q[3, 0]) == 10
    assert q[:, 1].tolist() == [0] * 5 and q[:, 2].tolist() == [127] * 5
    assert q[:, 3].tolist() == [127, 0, -127, 42, 0]


def test_bfloat16_loses_nothing_of_the_integers(tmp_path):
    folder = reference.write(tmp_path / "llama", "llama")
    wide = language.load(folder, quantize="int8")
    options = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16}
    half = language.load(folder, quantize="int8", **options)
    for key, value in reference.parameters(wide).items():
        other = reference.parameters(half)[key]
        if "kernel" in key:
            assert other.dtype == value.dtype
            np.testing.assert_array_equal(other, value)
        else:
            assert other.dtype == jnp.bfloat16
    found, expected = (reference.logits(model, reference.TOKENS) for model in (half, wide))
    plain = reference.logits(language.load(folder, **options), reference.TOKENS)
    exact = reference.logits(language.load(folder), reference.TOKENS)
    # The computation in bfloat16 costs as much as it does without the integers.
    assert np.abs(found - expected).max() < 3 * np.abs(plain - exact).max()


def test_shards_are_quantized_in_place(tmp_path):
    folder = reference.write(tmp_path / "llama", "llama")
    mesh = Mesh(
        np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2
    )

    def sharding_fn(name, shape):
        wanted = (None, "a", "b") if name.endswith("/kernel") else ()
        wanted = (None, "b") if name.endswith("_scale") else wanted
        return NamedSharding(mesh, PartitionSpec(*wanted))

    placed = reference.parameters(language.load(folder, quantize="int8", sharding_fn=sharding_fn))
    for name, value in reference.parameters(language.load(folder, quantize="int8")).items():
        np.testing.assert_array_equal(placed[name], value, err_msg=name)
        assert placed[name].sharding.is_equivalent_to(sharding_fn(name, value.shape), value.ndim)


def test_the_dense_model_is_never_there(tmp_path, monkeypatch):
    language.save(tmp_path / "large", language.create(LARGE))
    stream, grown, before = tensor_files.stream, [], sum(a.nbytes for a in jax.live_arrays())

    def watched(*arguments):
        for item in stream(*arguments):
            yield item
            grown.append(sum(array.nbytes for array in jax.live_arrays()) - before)

    monkeypatch.setattr(tensor_files, "stream", watched)
    model = language.load(tmp_path / "large", quantize="int8")
    size = sum(value.nbytes for value in reference.parameters(model).values())
    dense = sum(value.nbytes for value in split(language.create(LARGE))[1].values())
    assert size < 0.27 * dense
    assert len(grown) >= 7 * LARGE.layers
    assert max(grown) < size + 2 * 4 * LARGE.dim * LARGE.mlp_dim


def test_a_program_holds_one_dense_layer_at_a_time(tmp_path):
    language.save(tmp_path / "large", language.create(LARGE))

    def memory(**options):
        model = language.load(tmp_path / "large", dtype=jnp.float32, **options)
        graphdef, state = nnx.split(model)

        def forward(state, tokens):
            return nnx.merge(graphdef, state)(tokens).hidden

        tokens = jnp.zeros((1, 8), jnp.int32)
        compiled = jax.jit(forward).lower(state, tokens).compile()
        found = compiled.memory_analysis()
        return found.argument_size_in_bytes, found.temp_size_in_bytes

    given, own = memory(quantize="int8")
    half_given, _ = memory(param_dtype=jnp.bfloat16)
    _, wide_own = memory()
    layer = 4 * (4 * LARGE.dim**2 + 3 * LARGE.dim * LARGE.mlp_dim)
    assert given < 0.55 * half_given
    assert own - wide_own < 1.5 * layer  # of twelve
