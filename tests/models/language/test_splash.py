"""The splash kernel, interpreted: against attention in float64, and within a decoder."""

import functools

import jax
import jax.numpy as jnp
import language_reference
import numpy as np
import pytest

from distill_jax import parallel
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import DecoderConfig, attention, splash

LENGTH = 384  # three blocks of 128: some are visible as a whole, some in part, some not at all


def in_float64(query, key, value, slope, *, scale, cap, window, segments):
    """Attention [B, T, N, H] and its gradients, of the formulas, for the gradient `slope` of it."""
    query, key, value, slope = (np.asarray(a, np.float64) for a in (query, key, value, slope))
    group = query.shape[2] // key.shape[2]
    keys, values = (np.repeat(a, group, axis=2) for a in (key, value))
    logits = scale * np.einsum("btnh,bsnh->bnts", query, keys)
    bent = np.ones_like(logits)
    if cap is not None:
        bent = 1 - np.tanh(logits / cap) ** 2
        logits = cap * np.tanh(logits / cap)
    positions = np.arange(query.shape[1])
    distance = positions[:, None] - positions[None]
    visible = (distance >= 0) & (distance < (window or len(positions)))
    if segments is not None:
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    logits = np.where(visible, logits, -np.inf)
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    attended = np.einsum("bnts,bsnh->btnh", probabilities, values)
    steep = np.einsum("btnh,bsnh->bnts", slope, values)
    steep = (
        probabilities
        * (steep - np.sum(probabilities * steep, axis=-1, keepdims=True))
        * bent
        * scale
    )
    gradients = [
        np.einsum("bnts,bsnh->btnh", steep, keys),
        np.einsum("bnts,btnh->bsnh", steep, query),
        np.einsum("bnts,btnh->bsnh", probabilities, slope),
    ]
    for place in (1, 2):
        whole = gradients[place]
        gradients[place] = whole.reshape(*key.shape[:3], group, -1).sum(axis=3)
    return attended, *gradients


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 150, "packed": True},
        {"cap": 3.0, "window": 1},
        {"cap": 3.0, "packed": True, "kv_heads": 1},
    ],
    ids=["causal", "window, packed", "cap, window", "cap, packed, one head of keys"],
)
def test_the_kernel_is_attention_and_so_are_its_gradients(options):
    rng = np.random.default_rng(3)
    shapes = [(2, LENGTH, heads, 64) for heads in (2, options.get("kv_heads", 2))]
    shapes = [shapes[0], shapes[1], shapes[1], shapes[0]]
    *given, slope = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    segments = None
    if options.get("packed"):
        starts = np.array([[0, 100, 101, 300], [0, 128, 129, 383]])
        segments = np.sum(np.arange(LENGTH) >= starts[..., None], axis=1).astype(np.int32) % 4
    chosen = {name: options.get(name) for name in ("cap", "window")}
    chosen |= {"scale": 0.3, "segments": segments}

    @jax.jit
    def computed(given, slope):
        attend = functools.partial(splash.attend, mesh=None, **chosen)
        attended, pull = jax.vjp(attend, *given)
        return attended, *pull(slope)

    found = computed(given, slope)
    expected = in_float64(*given, slope, **chosen)
    for name, own, other in zip("output query key value".split(), found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=2e-5, atol=2e-5, err_msg=name)


CONFIG = DecoderConfig(
    vocab_size=31,
    dim=16,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=64,
    mlp_dim=24,
    window=50,
    sliding=(True, False),
    attention_cap=20.0,
)


@pytest.mark.parametrize(
    ("sizes", "remat"),
    [
        (None, "none"),
        ((2, 2, 2), "full"),  # two heads a device, and the head of keys that they meet
        ((1, 2, 4), "dots"),  # a head a device: two devices meet the same keys
        ((1, 1, 8), "none"),  # the heads do not divide: every device has them all
    ],
)
def test_a_decoder_by_the_kernel_is_the_decoder(sizes, remat):
    mesh = sizes and parallel.make_mesh(*sizes)
    params = language_reference.parameters(language.create(CONFIG, seed=5))
    # A new decoder's attention adds little to its stream, and its logits are all alike.
    factors = {"attention/": 8.0, "embedding": 50.0}
    for part, factor in factors.items():
        params |= {name: v * factor for name, v in params.items() if part in name}
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 31, (4, 128)).astype(np.int32)
    segments = np.repeat([1, 2, 3, 0], [50, 1, 70, 7])[None] * np.ones((4, 1), np.int32)
    real, slope = segments[..., None] != 0, rng.normal(size=16).astype(np.float32)

    def run(implementation, mesh, remat):
        def loss(params):
            model = language.from_params(
                CONFIG, params, attention=implementation, mesh=mesh, remat=remat
            )
            hidden = model(tokens, segments=segments).hidden
            return jnp.sum(jnp.where(real, hidden * slope, 0)), hidden

        gradients, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
        return gradients | {"hidden": np.where(real, hidden, 0)}

    expected = run("xla", None, "none")
    found = run("splash", mesh, remat)
    for name, value in expected.items():
        size = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, rtol=0, atol=3e-5 * size, err_msg=name)


@pytest.mark.parametrize(
    ("length", "size", "message"),
    [
        (96, 64, "attention='splash': 96 tokens and heads of 64; expected a multiple of 128"),
        (128, 80, "attention='splash': 128 tokens and heads of 80; expected a multiple of 128"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(length, size, message):
    model = language.create(CONFIG.replace(head_dim=size), attention="splash")
    with pytest.raises(UsageError) as caught:
        model(np.zeros((1, length), np.int32))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("platform", "length", "cached", "expected"),
    [
        ("tpu", 256, False, "splash"),
        ("tpu", 200, False, "xla"),
        ("tpu", 256, True, "xla"),
        ("gpu", 256, False, "cudnn"),
        ("cuda", 256, True, "cudnn"),
        ("cpu", 256, False, "xla"),
    ],
)
def test_the_devices_of_the_mesh_choose(platform, length, cached, expected):
    mesh = type("Mesh", (), {"devices": np.array([type("Chip", (), {"platform": platform})])})
    config = CONFIG.replace(attention_cap=None)
    index = jnp.zeros((1, length), jnp.int32)
    cache = language.init_cache(config, 1, length) if cached else None
    mask = attention.make_mask(
        config,
        sliding=True,
        implementation="auto",
        mesh=mesh,
        dtype=jnp.dtype(jnp.bfloat16),
        index=index,
        segments=index,
        cache=cache,
    )
    assert mask.implementation == expected
    assert (mask.mask is None) == (expected == "splash")
