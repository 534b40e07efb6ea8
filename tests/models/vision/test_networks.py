"""What holds for every network: sizes, taps, evaluation, dropout, dtypes, compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax import models
from distill_jax.models.batch_norm import BatchNorm
from distill_jax.models.vision import layers

SMALL = {
    "mlp": {"widths": (16, 12), "dropout": 0.5, "input_dropout": 0.2},
    "cnn": {"channels": (4, 6), "dense": 8, "dropout": 0.5},
    "resnet8": {},
}
apply = jax.jit(models.apply, static_argnums=0, static_argnames="train")


def network(name, dtype=jnp.float32, seed=0):
    module = models.create(
        name, input_shape=(8, 8, 1), num_classes=3, seed=seed, dtype=dtype, **SMALL[name]
    )
    return models.split(module)


def images(count=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, 8, 8, 1)), jnp.float32)


# Parameters with 100 and with 10 classes, counted from the PyTorch reference implementations.
COUNTS = {
    "resnet8": (83_892, 78_042),
    "resnet14": (181_108, 175_258),
    "resnet20": (278_324, 272_474),
    "resnet32": (472_756, 466_906),
    "resnet44": (667_188, 661_338),
    "resnet56": (861_620, 855_770),
    "resnet110": (1_736_564, 1_730_714),
    "resnet8x4": (1_233_540, 1_210_410),
    "resnet32x4": (7_433_860, 7_410_730),
}


@pytest.mark.parametrize("name", COUNTS)
def test_resnets_have_the_published_number_of_parameters(name):
    module = models.abstract(name, input_shape=(32, 32, 3), num_classes=100)
    graphdef, params, stats = models.split(module)
    assert models.parameter_count(params) == COUNTS[name][0]
    width = params["classifier/kernel"].shape[0]
    assert models.parameter_count(params) - 90 * (width + 1) == COUNTS[name][1]
    assert set(stats) == {
        name.replace("/scale", part)
        for name in params
        if name.endswith("/scale")
        for part in ("/mean", "/var")
    }


@pytest.mark.parametrize("name", ["resnet14", "resnet8x4"])
def test_resnets_have_the_published_taps(name):
    module = models.abstract(name, input_shape=(32, 32, 3), num_classes=100)
    graphdef, params, stats = models.split(module)
    stem, *widths = (32, 64, 128, 256) if name.endswith("x4") else (16, 16, 32, 64)
    shape = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda p, s, x: models.apply(graphdef, p, s, x), params, stats, shape
    )
    expected = {"stem": (2, 32, 32, stem), "pooled": (2, widths[-1])}
    for i, side in enumerate((32, 16, 8)):
        expected[f"stage{i + 1}"] = expected[f"stage{i + 1}_pre"] = (2, side, side, widths[i])
    assert {name: tap.shape for name, tap in outputs.taps.items()} == expected
    assert outputs.logits.shape == (2, 100)


def test_mlp_and_cnn_have_the_counted_number_of_parameters():
    arguments = {"input_shape": (28, 28, 1), "num_classes": 10}
    _, params, stats = models.split(models.abstract("mlp", **arguments))
    assert models.parameter_count(params) == 784 * 800 + 800 + 800 * 800 + 800 + 800 * 10 + 10
    assert stats == {}
    _, params, _ = models.split(models.abstract("cnn", **arguments))
    convolutions = 9 * 1 * 32 + 2 * 32 + 9 * 32 * 64 + 2 * 64
    assert models.parameter_count(params) == convolutions + 7 * 7 * 64 * 128 + 128 + 128 * 10 + 10


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((8, 8, 1), [(4, 4), (2, 2), (2, 2)]),
        ((28, 28, 1), [(14, 14), (7, 7), (4, 4)]),
        ((32, 32, 3), [(16, 16), (8, 8), (4, 4)]),
        ((5, 9, 2), [(3, 5), (3, 5), (3, 5)]),
        ((1, 1, 1), [(1, 1), (1, 1), (1, 1)]),
    ],
)
def test_cnn_halves_while_the_map_is_large_enough(shape, sides):
    module = models.abstract("cnn", input_shape=shape, num_classes=3, channels=(4, 5, 6))
    graphdef, params, stats = models.split(module)
    batch = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda p, s, x: models.apply(graphdef, p, s, x), params, stats, batch
    )
    assert [outputs.taps[f"stage{i}"].shape[1:3] for i in (1, 2, 3)] == sides
    assert outputs.taps["pooled"].shape == (2, 128)


@pytest.mark.parametrize("name", SMALL)
def test_taps_are_the_activations_of_their_pre_activations(name):
    graphdef, params, stats = network(name)
    outputs, _ = apply(graphdef, params, stats, images())
    twins = [tap for tap in outputs.taps if tap.endswith("_pre")]
    assert len(twins) == (3 if name == "resnet8" else 2)
    for tap in twins:
        before = np.asarray(outputs.taps[tap])
        assert before.min() < 0
        np.testing.assert_array_equal(outputs.taps[tap.removesuffix("_pre")], np.maximum(before, 0))
    weights, bias = (np.asarray(params[f"classifier/{part}"]) for part in ("kernel", "bias"))
    head = np.asarray(outputs.taps["pooled"]) @ weights + bias
    np.testing.assert_allclose(outputs.logits, head, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_ignores_the_rest_of_the_batch_and_changes_nothing(name):
    graphdef, params, stats = network(name)
    together, new_stats = apply(graphdef, params, stats, images(4))
    alone, _ = apply(graphdef, params, stats, images(4)[:1])
    np.testing.assert_allclose(together.logits[:1], alone.logits, atol=1e-5)
    assert list(new_stats) == list(stats)
    for key, value in stats.items():
        np.testing.assert_array_equal(new_stats[key], value)


@pytest.mark.parametrize("name", ["cnn", "resnet8"])
def test_training_uses_and_updates_the_batch_statistics(name):
    graphdef, params, stats = network(name)
    key = jax.random.key(0)
    outputs, new_stats = apply(graphdef, params, stats, images(4), train=True, key=key)
    other, _ = apply(graphdef, params, stats, images(4).at[1:].mul(3.0), train=True, key=key)
    assert np.abs(outputs.logits[0] - other.logits[0]).max() > 1e-3
    assert list(new_stats) == list(stats)
    assert all(not np.array_equal(new_stats[key], stats[key]) for key in stats)


def test_training_never_writes_into_the_arrays_of_the_caller():
    module = models.create("cnn", input_shape=(2, 2, 1), num_classes=2, channels=(2,), dense=2)
    graphdef, params, stats = models.split(module)
    mine = {name: np.array(value) for name, value in stats.items()}
    _, new = models.apply(graphdef, params, mine, images()[:, :2, :2], train=True)
    for name, value in stats.items():
        np.testing.assert_array_equal(mine[name], value)
        assert not np.array_equal(new[name], value)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_dropout_is_off_in_evaluation_and_a_function_of_the_key_in_training(name):
    graphdef, params, stats = network(name)

    def logits(train, seed):
        return apply(graphdef, params, stats, images(), train=train, key=jax.random.key(seed))[
            0
        ].logits

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    np.testing.assert_array_equal(logits(True, 0), logits(True, 0))
    assert np.abs(logits(True, 0) - logits(True, 1)).max() > 1e-3
    with pytest.raises(ValueError, match="needs a random key"):
        models.apply(graphdef, params, stats, images(), train=True)


def test_dropout_zeroes_at_its_rate_and_keeps_the_mean():
    ones = jnp.ones((200, 200))
    key = jax.random.key(0)
    first, second = (
        np.asarray(layers.dropout(ones, 0.2, train=True, key=key, layer=i)) for i in (0, 1)
    )
    assert set(np.unique(first)) == {0.0, np.float32(1 / 0.8)}
    assert abs(first.mean() - 1) < 0.02
    # Independent layers agree at 0.2^2 + 0.8^2 of the places.
    assert abs((first == second).mean() - 0.68) < 0.02


def test_no_dropout_needs_no_key():
    graphdef, params, stats = network("resnet8")
    apply(graphdef, params, stats, images(), train=True)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computes_in_half_and_keeps_float32(name):
    half = network(name, jnp.bfloat16)
    full = network(name)
    for group in (1, 2):
        assert all(value.dtype == jnp.float32 for value in half[group].values())
        for key, value in full[group].items():
            np.testing.assert_array_equal(half[group][key], value)
    outputs, stats = apply(*half, images(16), train=True, key=jax.random.key(0))
    exact, exact_stats = apply(*full, images(16), train=True, key=jax.random.key(0))
    assert outputs.logits.dtype == jnp.float32
    first = "hidden1" if name == "mlp" else "stage1"
    assert outputs.taps[first].dtype == jnp.bfloat16
    # A mean over a map is kept whole; the dense layers that end the other two are not one.
    assert outputs.taps["pooled"].dtype == (jnp.float32 if name == "resnet8" else jnp.bfloat16)
    np.testing.assert_allclose(outputs.logits, exact.logits, atol=0.15)
    assert np.abs(outputs.logits - exact.logits).max() > 0
    for key, value in stats.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, exact_stats[key], atol=0.02)


def test_batch_norm_keeps_running_statistics_in_float32_under_bfloat16():
    # A mean of 1 + 2^-10 is 1 in bfloat16; a network that rounded it would answer 0 for both.
    norm = BatchNorm(1, rngs=nnx.Rngs(0))
    norm.var[...] = jnp.full(1, 1e-6)
    ones = jnp.ones((1, 1), jnp.bfloat16)
    norm.mean[...] = jnp.ones(1)
    assert float(norm(ones, train=False)[0, 0]) == 0
    norm.mean[...] = jnp.ones(1) + 2**-10
    result = norm(ones, train=False)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(result[0, 0]), -(2**-10) / np.sqrt(1.1e-5), rtol=1e-2)


def test_initial_values_have_the_published_spread():
    _, params, stats = models.split(
        models.create("resnet8x4", input_shape=(32, 32, 3), num_classes=100)
    )
    kernel = np.asarray(params["stage3/0/second/conv/kernel"])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 256)), rtol=0.01)
    projection = np.asarray(params["stage2/0/projection/conv/kernel"])
    np.testing.assert_allclose(projection.std(), np.sqrt(2 / 128), rtol=0.03)
    for name in ("classifier/kernel", "classifier/bias"):
        values = np.asarray(params[name])
        assert 0.9 / 16 < np.abs(values).max() <= 1 / 16 and abs(values.mean()) < 0.01
    for name, value in {**params, **stats}.items():
        if name.endswith(("/scale", "/var")):
            assert (np.asarray(value) == 1).all()
        elif name.endswith(("norm/bias", "/mean")):
            assert (np.asarray(value) == 0).all()
    _, params, _ = models.split(models.create("mlp", input_shape=(28, 28, 1), num_classes=10))
    np.testing.assert_allclose(np.std(params["hidden/0/kernel"]), np.sqrt(2 / 784), rtol=0.01)
    assert (np.asarray(params["hidden/0/bias"]) == 0).all()


def test_split_and_apply_keep_names_and_places_of_long_lists():
    # Eleven layers or more: "10" sorts before "2" by name and after it by place.
    widths = tuple(range(4, 17))
    graphdef, params, stats = models.split(
        models.create("mlp", input_shape=(2, 2, 1), num_classes=3, widths=widths)
    )
    assert list(params) == sorted(params)
    x = np.asarray(images()[:, :2, :2])
    expected = x.reshape(4, -1)
    for i in range(len(widths)):
        weights, bias = (np.asarray(params[f"hidden/{i}/{part}"]) for part in ("kernel", "bias"))
        layer = expected @ weights + bias
        expected = np.maximum(np.asarray(layer), 0)
    outputs, _ = apply(graphdef, params, stats, x)
    np.testing.assert_allclose(outputs.taps["pooled"], expected, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_one_compilation_serves_every_call_and_every_network_made_alike(name):
    traces = 0

    def forward(graphdef, params, stats, x, key):
        nonlocal traces
        traces += 1
        outputs, stats = models.apply(graphdef, params, stats, x, train=True, key=key)
        return outputs.logits.sum(), stats

    compiled = jax.jit(forward, static_argnums=0)
    for seed in (0, 1):
        graphdef, params, stats = network(name, seed=seed)
        for i in range(2):
            _, stats = compiled(graphdef, params, stats, images(seed=i), jax.random.key(i))
    assert traces == 1


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_receives_a_finite_gradient(name):
    graphdef, params, stats = network(name)

    def loss(params):
        outputs, _ = models.apply(
            graphdef, params, stats, images(8), train=True, key=jax.random.key(0)
        )
        return (jax.nn.log_softmax(outputs.logits)[:, 0] ** 2).mean()

    gradients = jax.jit(jax.grad(loss))(params)
    assert list(gradients) == list(params)
    for key, value in gradients.items():
        assert np.isfinite(value).all() and np.abs(value).max() > 0, key


def test_raw_pixels_and_other_shapes_are_refused():
    graphdef, params, stats = network("resnet8")
    with pytest.raises(ValueError, match="normalised floats; got uint8"):
        models.apply(graphdef, params, stats, jnp.zeros((2, 8, 8, 1), jnp.uint8))
    with pytest.raises(ValueError, match=r"\[B, 8, 8, 1\]; got \[2, 8, 8, 3\]"):
        models.apply(graphdef, params, stats, jnp.zeros((2, 8, 8, 3)))
