"""The decoder: cache, packing, scan, rematerialisation, dtypes, and how one is made."""

import jax
import jax.numpy as jnp
import language_reference as reference
import numpy as np
import pytest
from flax import nnx

from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import DecoderConfig

SMALL = DecoderConfig(
    vocab_size=31,
    dim=16,
    layers=5,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp_dim=24,
    window=3,
    sliding=(True, False),
)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory) -> language.Decoder:
    """Windows of 4 in two layers of three, other rotations there, sandwich norms."""
    return language.load(reference.write(tmp_path_factory.mktemp("gemma3"), "gemma3"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> language.Decoder:
    """Learned positions."""
    return language.load(reference.write(tmp_path_factory.mktemp("gpt2"), "gpt2"))


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_decoding_with_a_cache_gives_the_states_of_the_whole_text(name, request):
    model = request.getfixturevalue(name)
    tokens = reference.TOKENS
    whole = np.asarray(reference.forward(model, tokens).hidden)
    lengths = np.array([7, 4])
    prompt = np.where(np.arange(7) < lengths[:, None], tokens[:, :7], 0)
    segments = (np.arange(7) < lengths[:, None]).astype(np.int32)
    graphdef, state = nnx.split(model)
    traces = []

    @jax.jit
    def step(state, tokens, segments, cache):
        traces.append(tokens.shape)
        decoded = nnx.merge(graphdef, state)(tokens, segments=segments, cache=cache)
        return decoded.hidden, decoded.cache

    cache = language.init_cache(model.config, batch=2, length=11)
    hidden, cache = step(state, prompt, segments, cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(hidden[row, :length], whole[row, :length], rtol=1e-5, atol=4e-5)
    for _ in range(4):
        at = np.asarray(cache.lengths)
        new = tokens[np.arange(2), at][:, None]
        hidden, cache = step(state, new, np.ones((2, 1), np.int32), cache)
        np.testing.assert_allclose(hidden[:, 0], whole[np.arange(2), at], rtol=1e-5, atol=4e-5)
    np.testing.assert_array_equal(cache.lengths, lengths + 4)
    assert traces == [(2, 7), (2, 1)]


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_packed_documents_do_not_attend_to_each_other(name, request):
    model = request.getfixturevalue(name)
    sizes = [6, 1, 3]
    tokens = reference.TOKENS[:1]
    segments = np.repeat([3, 1, 2, 0], [*sizes, 1])[None].astype(np.int32)
    packed = reference.forward(model, tokens, segments=segments).hidden
    start = 0
    for size in sizes:
        # One shape, one compilation: what follows a document changes nothing in it.
        alone = np.zeros_like(tokens)
        alone[0, :size] = tokens[0, start : start + size]
        expected = reference.forward(model, alone).hidden[0, :size]
        np.testing.assert_allclose(packed[0, start : start + size], expected, rtol=0, atol=2e-5)
        start += size
    assert np.isfinite(packed).all()


def test_the_last_state_normalised_is_the_hidden_and_the_first_is_the_embedding(gemma3):
    decoded = reference.forward(gemma3, reference.TOKENS)
    assert decoded.states.shape == (9, 2, 11, 16)
    table = np.asarray(gemma3.embedding[...])
    np.testing.assert_allclose(decoded.states[0], table[reference.TOKENS] * 4, rtol=1e-6)
    last = np.asarray(decoded.states[-1], np.float64)
    size = np.sqrt(np.mean(last**2, axis=-1, keepdims=True) + 1e-6)
    scale = 1 + np.asarray(gemma3.final_norm.scale[...], np.float64)
    np.testing.assert_allclose(decoded.hidden, last / size * scale, rtol=1e-5, atol=1e-5)


def _compiled(config: DecoderConfig, output: str) -> str:
    graphdef, state = nnx.split(language.abstract(config))
    tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)

    @jax.jit
    def forward(state, tokens):
        return getattr(nnx.merge(graphdef, state)(tokens), output)

    return forward.lower(state, tokens).compile().as_text()


def test_states_are_computed_only_where_they_are_used():
    config = SMALL.replace(window=None, sliding=(False,))
    stacked = "f32[5,2,7,16]"
    assert stacked in _compiled(config, "states")
    assert stacked not in _compiled(config, "hidden")


def test_the_program_does_not_grow_with_depth():
    def size(layers: int) -> int:
        graphdef, state = nnx.split(language.abstract(SMALL.replace(layers=layers)))
        tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
        lowered = jax.jit(lambda s, t: nnx.merge(graphdef, s)(t).hidden).lower(state, tokens)
        return len(lowered.as_text().splitlines())

    assert size(4) == size(40)


@pytest.mark.parametrize(
    "experts",
    [{}, pytest.param(dict(experts=4, experts_per_token=2), marks=pytest.mark.slow)],
    ids=["one MLP", "experts"],
)
def test_rematerialisation_keeps_less_and_changes_no_gradient(experts):
    config = SMALL.replace(layers=4, window=None, sliding=(False,), **experts)
    params = reference.parameters(language.create(config, seed=1))
    tokens = reference.TOKENS % 31

    def compiled(remat):
        def loss(params):
            model = language.from_params(config, params, remat=remat)
            return jnp.sum(model(tokens).hidden[..., 5])

        return jax.jit(jax.grad(loss)).lower(params).compile()

    programs = {remat: compiled(remat) for remat in ("none", "dots", "full")}
    gradients = {remat: program(params) for remat, program in programs.items()}
    for name, expected in gradients["none"].items():
        for remat in ("dots", "full"):
            np.testing.assert_allclose(gradients[remat][name], expected, rtol=1e-4, atol=1e-5)
    none, dots, full = (p.memory_analysis().temp_size_in_bytes for p in programs.values())
    assert full < dots < none


def test_bfloat16_computes_in_bfloat16_and_stays_near_float32(gpt2):
    half = language.from_params(gpt2.config, reference.parameters(gpt2), dtype=jnp.bfloat16)
    decoded = reference.forward(half, reference.TOKENS)
    assert decoded.hidden.dtype == jnp.bfloat16
    exact = np.asarray(reference.forward(gpt2, reference.TOKENS).hidden)
    error = np.sqrt(np.mean((np.asarray(decoded.hidden, np.float32) - exact) ** 2))
    assert 0 < error < 0.02 * np.sqrt(np.mean(exact**2))


def test_a_token_outside_the_vocabulary_gives_nan():
    model = language.create(SMALL)
    tokens = np.array([[1, 31, 2]], np.int32)
    assert np.isnan(reference.forward(model, tokens).hidden[0, 1]).all()


def test_too_many_tokens_are_refused(gpt2):
    with pytest.raises(ValueError, match="33 tokens: the model has max_positions=32"):
        gpt2(np.zeros((1, 33), np.int32))
    cache = language.init_cache(gpt2.config, batch=2, length=4)
    with pytest.raises(ValueError, match="the cache is for 2 texts of at most 4 tokens"):
        gpt2(np.zeros((2, 5), np.int32), cache=cache)


def test_a_new_decoder_is_a_function_of_its_seed():
    first, same, other = (reference.parameters(language.create(SMALL, seed=s)) for s in (3, 3, 4))
    for name, value in first.items():
        np.testing.assert_array_equal(value, same[name])
    kernel = np.asarray(first["runs/0/mlp/up/kernel"])
    assert kernel.std() == pytest.approx(0.02, rel=0.05)
    assert not np.array_equal(kernel, other["runs/0/mlp/up/kernel"])
    assert (np.asarray(first["final_norm/scale"]) == 1).all()


def test_a_decoder_of_chosen_layers_has_those_layers():
    teacher = language.create(SMALL, seed=2)
    student = language.from_layers(teacher, (0, 3, 4))
    assert student.config.layers == 3
    assert student.config.sliding_layers() == (True, False, True)
    # The teacher's runs are (window, none) x 2 and one more; the student's three of one layer.
    old, new = reference.parameters(teacher), reference.parameters(student)
    name = "attention/query/kernel"
    np.testing.assert_array_equal(new[f"runs/0/{name}"][0], old[f"runs/0/{name}"][0])
    np.testing.assert_array_equal(new[f"runs/1/{name}"][0], old[f"runs/0/{name}"][3])
    np.testing.assert_array_equal(new[f"runs/2/{name}"][0], old[f"runs/1/{name}"][0])
    np.testing.assert_array_equal(new["untied_head"], old["untied_head"])


def test_all_layers_chosen_are_the_same_decoder(gemma3):
    copy = language.from_layers(gemma3, range(8))
    tokens = reference.TOKENS
    expected = reference.forward(gemma3, tokens).hidden
    np.testing.assert_array_equal(reference.forward(copy, tokens).hidden, expected)


def test_a_decoder_of_chosen_layers_computes_as_the_first():
    teacher = language.create(SMALL, dtype=jnp.bfloat16, remat="dots")
    assert language.from_layers(teacher, (0,)).dtype == jnp.bfloat16
    assert language.from_layers(teacher, (0,)).remat == "dots"
    assert language.from_layers(teacher, (0,), remat="full").remat == "full"


@pytest.mark.parametrize(
    "dtype, length, config, expected",
    [
        (jnp.bfloat16, 8, SMALL.replace(head_dim=8), "cudnn"),
        (jnp.bfloat16, 7, SMALL.replace(head_dim=8), "xla"),
        (jnp.float32, 8, SMALL.replace(head_dim=8), "xla"),
        (jnp.bfloat16, 8, SMALL, "xla"),
    ],
    ids=["fits", "odd length", "float32", "small heads"],
)
def test_on_a_gpu_cudnn_is_chosen_where_it_fits(dtype, length, config, expected, monkeypatch):
    chosen, original = [], jax.nn.dot_product_attention

    def spy(*arrays, implementation, **options):
        chosen.append(implementation)
        return original(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    graphdef, state = nnx.split(language.abstract(config, dtype=dtype))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    jax.eval_shape(lambda s, t: nnx.merge(graphdef, s)(t), state, tokens)
    assert set(chosen) == {expected}


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(remat="some"), "remat='some': expected one of none, full, dots"),
        (dict(attention="flash"), "attention='flash': expected one of auto, xla, cudnn, splash"),
        (dict(attention="cudnn"), "attention='cudnn' computes in bfloat16 or float16, not"),
    ],
    ids=["remat", "attention", "dtype"],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError) as caught:
        language.create(SMALL, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("layers", [(), (0, 5), (-1,), (1.0,)])
def test_layers_out_of_range_are_refused(layers):
    with pytest.raises(UsageError, match="student.layers=.*: expected numbers of layers, from 0"):
        language.from_layers(language.create(SMALL), layers)
