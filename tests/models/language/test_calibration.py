"""GPTQ of whole decoders: dense and with experts, of several kinds of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import models
from distill_jax.models import language
from distill_jax.models.language import calibration
from distill_jax.models.language.layerwise import Layers
from distill_jax.models.language.quantized import is_kernel
from distill_jax.quantization.grids import GRIDS

INT4 = GRIDS["int4-g32"]
SIZES = {"vocab_size": 60, "dim": 32, "layers": 3, "heads": 2, "kv_heads": 1, "head_dim": 16}
CASES = {
    "dense, a window in every second layer": {"window": 4, "sliding": (True, False, True)},
    "experts": {"experts": 4, "experts_per_token": 2},
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def decoder(request):
    config = language.DecoderConfig(**SIZES, mlp_dim=64, **request.param)
    params = models.split(language.create(config, seed=0))[1]
    # Larger ones than at the start of a training, so that layers matter.
    params = {name: v if "norm" in name else 6 * v for name, v in params.items()}
    return language.from_params(config, params)


@pytest.fixture(scope="module")
def batches():
    draws = np.random.default_rng(0)
    found = []
    for _ in range(3):
        # Zipf's words: their moments are far from those of white noise.
        tokens = np.minimum(draws.zipf(1.3, (4, 24)), 59).astype(np.int32)
        segments = np.ones((4, 24), np.int32)
        segments[0, 20:] = 0
        positions = np.broadcast_to(np.arange(24, dtype=np.int32), (4, 24))
        found.append({"tokens": tokens, "positions": positions, "segments": segments})
    return found


def test_layers_one_by_one_are_the_decoder(decoder, batches):
    batch = {name: jnp.asarray(value) for name, value in batches[0].items()}
    layers = Layers(decoder)
    stream = layers.begin(batch["tokens"], batch["positions"], batch["segments"])
    whole = decoder(**batch).states
    real = batch["segments"] != 0
    for layer in range(len(layers)):
        params = layers.params(layer)
        found = layers.moments(layer, params, stream)
        normed = decoder.block(layer).attention_norm(stream.x)[real]
        expected = np.float64(normed).T @ np.float64(normed)
        np.testing.assert_allclose(found["attention/key/kernel"], expected, rtol=1e-4, atol=1e-4)
        stream = layers.after(layer, params, stream)
        np.testing.assert_allclose(stream.x[real], whole[layer + 1][real], atol=2e-5)


def test_outputs_of_the_decoder_change_less_than_with_the_nearest_codes(decoder, batches):
    graphdef, params, _ = models.split(decoder)
    grids = {name: INT4 for name in params if is_kernel(name)}
    lines = []
    found = calibration.encode(decoder, batches, grids, note=lines.append)
    assert len(lines) == 3 and found.keys() == grids.keys()
    nearest = {name: INT4.encode(params[name]) for name in grids}
    run = jax.jit(lambda p, batch: models.merge(graphdef, p)(**batch).states[-1])

    def change(encoded):
        decoded = {name: INT4.decode(*both, jnp.float32) for name, both in encoded.items()}
        total = 0.0
        for batch in batches:
            real = batch["segments"] != 0
            both = run(params, batch)[real], run(params | decoded, batch)[real]
            total += float(jnp.sum((both[0] - both[1]) ** 2))
        return total

    for name, (codes, scales) in found.items():
        theirs = nearest[name]
        assert (codes.shape, scales.shape) == (theirs[0].shape, theirs[1].shape)
    assert change(found) < 0.8 * change(nearest)
