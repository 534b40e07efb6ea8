"""The layers that families share, against NumPy in float64, and the batch-norm options."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_reference import convolve, draw

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models.batch_norm import BatchNorm
from distill_jax.models.vision import layers


@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "stride", "groups"),
    [(6, 4, 3, 1, 2), (6, 6, 3, 2, 6), (6, 9, 1, 1, 3), (2, 3, 7, 2, 1)],
)
def test_convolutions_are_those_of_pytorch(inputs, outputs, size, stride, groups):
    conv = layers.convolution(
        inputs,
        outputs,
        size,
        stride=stride,
        groups=groups,
        bias=True,
        dtype=jnp.dtype("float32"),
        rngs=nnx.Rngs(0),
    )
    conv.bias[...] = jnp.asarray(draw(outputs, seed=1))
    x = draw(2, 9, 8, inputs)
    expected = convolve(x, np.float64(conv.kernel[...]), stride, groups) + draw(outputs, seed=1)
    np.testing.assert_allclose(conv(x), expected, atol=1e-5)


@pytest.mark.parametrize("batch", [4, 6, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_convolutions_are_those_of_the_formula(batch, stride):
    # Those of 4 and 8 images are summed over quarters of the batch.
    x, kernel = draw(batch, 7, 6, 2), draw(3, 3, 2, 3, seed=1)
    weight = draw(*convolve(x, kernel, stride).shape, seed=2)

    @jax.jit
    def gradients(x, kernel):
        def loss(x, kernel):
            margins = ((1, 1), (1, 1))
            axes = ("NHWC", "HWIO", "NHWC")
            y = layers.convolve(x, kernel, (stride,) * 2, margins, dimension_numbers=axes)
            return jnp.sum(y * weight)

        return jax.grad(loss, (0, 1))(x, kernel)

    def along(one, shape):  # A convolution is linear in each: its gradient, entry by entry.
        units = np.eye(math.prod(shape)).reshape(-1, *shape)
        return np.reshape([np.sum(one(unit) * np.float64(weight)) for unit in units], shape)

    to_x, to_kernel = gradients(x, kernel)
    expected = along(lambda unit: convolve(x, unit, stride), kernel.shape)
    np.testing.assert_allclose(to_kernel, expected, atol=2e-5)
    expected = along(lambda unit: convolve(unit, kernel, stride), x.shape)
    np.testing.assert_allclose(to_x, expected, atol=2e-5)


@pytest.mark.parametrize(("size", "stride", "margin"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_max_pool_and_its_gradient_are_those_of_pytorch(size, stride, margin):
    # Small integers: many windows hold their largest value twice, and the first one counts.
    x = np.float32(np.random.default_rng(0).integers(0, 3, (2, 9, 8, 3)))
    rows, columns = ((length + 2 * margin - size) // stride + 1 for length in x.shape[1:3])
    expected = np.zeros((2, rows, columns, 3))
    gradient = np.zeros(x.shape)
    weights = draw(*expected.shape)
    for image, row, column, channel in np.ndindex(expected.shape):
        best, place = -math.inf, None
        for i in range(row * stride - margin, row * stride - margin + size):
            for j in range(column * stride - margin, column * stride - margin + size):
                inside = 0 <= i < x.shape[1] and 0 <= j < x.shape[2]
                if inside and x[image, i, j, channel] > best:
                    best, place = x[image, i, j, channel], (image, i, j, channel)
        expected[image, row, column, channel] = best
        gradient[place] += weights[image, row, column, channel]

    def weighted(x):
        pooled = layers.max_pool(x, size, stride=stride, margin=margin)
        return (pooled * weights).sum(), pooled

    actual, pooled = jax.grad(weighted, has_aux=True)(jnp.asarray(x))
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(actual, gradient, atol=1e-5)


def test_max_pool_passes_on_what_is_not_a_number():
    for place in np.ndindex(2, 2):
        x = np.ones((1, 2, 2, 1), np.float32)
        x[0, place[0], place[1], 0] = np.nan
        assert np.isnan(layers.max_pool(jnp.asarray(x), 2, stride=2)).all()


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3), jnp.bfloat16)
    key = jax.random.key(0)
    first, second = (
        np.float32(layers.drop_path(x, 0.25, train=True, key=key, layer=i)) for i in (0, 1)
    )
    assert (first == first[:, :1, :1]).all()
    assert len(np.unique(first)) == 2 and first.min() == 0
    assert abs(first.mean() - 1) < 0.03
    assert abs((first == second).mean() - (0.25**2 + 0.75**2)) < 0.03
    assert layers.drop_path(x, 0.25, train=True, key=key, layer=0).dtype == jnp.bfloat16
    np.testing.assert_array_equal(layers.drop_path(x, 0.25, train=False, key=None, layer=0), x)
    with pytest.raises(ValueError, match="needs a random key"):
        layers.drop_path(x, 0.25, train=True, key=None, layer=0)


def trained_statistics(x, **options):
    """The running statistics of the first layer of a small network after one step on x."""
    module = models.create("cnn", input_shape=x.shape[1:], num_classes=2, channels=(5,), **options)
    graphdef, params, stats = models.split(module)
    stats = {name: jnp.full_like(value, 0.5) for name, value in stats.items()}
    outputs, new = models.apply(graphdef, params, stats, jnp.asarray(x), train=True)
    kernel = np.float64(params["stages/0/conv/kernel"])
    seen = convolve(x, kernel, stride=2).reshape(-1, 5)
    return seen, {name.split("/")[-1]: value for name, value in new.items()}, outputs


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kept", [0.9, 0.7, 0.0])
def test_running_statistics_are_those_of_the_options(unbiased, kept):
    seen, new, _ = trained_statistics(draw(3, 4, 4, 2), bn_unbiased=unbiased, bn_momentum=kept)
    assert len(seen) == 12
    variance = seen.var(0, ddof=int(unbiased))
    np.testing.assert_allclose(new["mean"], kept * 0.5 + (1 - kept) * seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], kept * 0.5 + (1 - kept) * variance, rtol=1e-5)


def test_the_unbiased_variance_counts_the_batch_of_all_devices():
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    norm.unbiased = True
    graphdef, state = nnx.split(norm)

    @jax.jit
    def variance(state, x):
        module = nnx.merge(graphdef, state)
        module(x, train=True)
        return module.var[...]

    mesh = jax.sharding.Mesh(np.array(jax.devices()), "data")
    assert mesh.size == 8
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = draw(16, 3)
    actual = variance(state, jax.device_put(x, sharding))
    np.testing.assert_allclose(actual, 0.9 + 0.1 * np.float64(x).var(0, ddof=1), rtol=1e-5)


def test_the_batch_itself_is_normalised_by_the_biased_variance_and_epsilon():
    x = draw(3, 4, 4, 2)
    for options in ({"bn_unbiased": True}, {"bn_epsilon": 0.25}):
        seen, _, outputs = trained_statistics(x, **options)
        epsilon = options.get("bn_epsilon", 1e-5)
        expected = (seen - seen.mean(0)) / np.sqrt(seen.var(0) + epsilon)
        np.testing.assert_allclose(
            outputs.taps["stage1_pre"].reshape(-1, 5), expected, rtol=1e-4, atol=1e-5
        )


def test_evaluation_uses_epsilon_and_leaves_the_statistics():
    module = models.create(
        "cnn", input_shape=(4, 4, 2), num_classes=2, bn_epsilon=0.25, bn_unbiased=True
    )
    graphdef, params, stats = models.split(module)
    stats = {name: value + 0.5 for name, value in stats.items()}
    x = draw(3, 4, 4, 2)
    outputs, new = models.apply(graphdef, params, stats, jnp.asarray(x))
    seen = convolve(x, np.float64(params["stages/0/conv/kernel"]), stride=2)
    expected = (seen - 0.5) / np.sqrt(1.5 + 0.25)
    np.testing.assert_allclose(outputs.taps["stage1_pre"], expected, rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(new[name], stats[name]) for name in stats)


def test_one_value_a_channel_has_no_unbiased_variance_and_stays_finite():
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    norm.unbiased = True
    norm(jnp.asarray(draw(1, 3)), train=True)
    np.testing.assert_allclose(norm.var[...], 0.9, rtol=1e-6)


def test_the_options_reach_every_batch_norm_and_are_part_of_the_definition():
    def definition(**options):
        module = models.abstract("wrn_16_1", input_shape=(8, 8, 3), num_classes=2, **options)
        return module, models.split(module)[0]

    module, changed = definition(bn_momentum=0.5, bn_epsilon=1e-3, bn_unbiased=True)
    norms = [part for _, part in nnx.iter_modules(module) if isinstance(part, BatchNorm)]
    assert len(norms) == 13
    assert {(norm.momentum, norm.epsilon, norm.unbiased) for norm in norms} == {(0.5, 1e-3, True)}
    _, default = definition()
    _, spelt_out = definition(bn_momentum=0.9, bn_epsilon=1e-5, bn_unbiased=False)
    assert default == spelt_out and hash(default) == hash(spelt_out)
    for one in ({"bn_momentum": 0.5}, {"bn_epsilon": 1e-3}, {"bn_unbiased": True}):
        assert definition(**one)[1] != default
    assert changed != default


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("bn_momentum", 1.5),
        ("bn_momentum", -0.1),
        ("bn_epsilon", 0.0),
        ("bn_unbiased", 1),
        ("shortcut", "conv"),
    ],
)
def test_impossible_options_are_named(option, value):
    with pytest.raises(UsageError, match=f"student.{option}={value!r}: expected "):
        models.abstract("resnet8", input_shape=(8, 8, 3), num_classes=2, **{option: value})
