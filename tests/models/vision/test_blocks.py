"""How the convolutional families put their layers together, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_reference import convolve, draw

from distill_jax import models
from distill_jax.models.vision import imagenet_resnet, mobilenet_v2, resnet, shufflenet, wide_resnet

apply = jax.jit(models.apply, static_argnums=0, static_argnames="train")


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 8, 2), (4, 7, 1), (4, 4, 1)])
def test_the_padded_shortcut_is_option_a(inputs, outputs, stride):
    block = resnet.Block(
        inputs,
        outputs,
        stride=stride,
        shortcut="pad",
        dtype=jnp.dtype("float32"),
        rngs=nnx.Rngs(0),
    )
    block.second.norm.scale[...] = jnp.zeros(outputs)  # What is left is the shortcut.
    x = draw(2, 5, 6, inputs)
    actual = block(jnp.asarray(x), train=False)
    expected = np.zeros((2, -(-5 // stride), -(-6 // stride), outputs))
    before = (outputs - inputs) // 2
    expected[..., before : before + inputs] = x[:, ::stride, ::stride]
    np.testing.assert_array_equal(actual, expected)


def test_option_a_saves_the_projections_alone():
    def count(name, shortcut):
        module = models.abstract(name, input_shape=(32, 32, 3), num_classes=10, shortcut=shortcut)
        return models.parameter_count(models.split(module)[1])

    # He et al. (2016, table 6) have 0.27 million for ResNet-20 and 1.7 for ResNet-110.
    assert count("resnet20", "pad") == 269_722
    assert count("resnet110", "pad") == 1_727_962
    assert count("resnet20", "projection") == 272_474


@pytest.mark.parametrize(("outputs", "stride"), [(6, 1), (6, 2), (8, 1)])
def test_inverted_residuals_add_the_input_where_the_shape_allows(outputs, stride):
    block = mobilenet_v2.Block(
        6, outputs, expansion=2, stride=stride, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
    )
    block.third.norm.bias[...] = jnp.full(outputs, -10.0)  # No ReLU follows.
    x = draw(2, 4, 4, 6)
    y = np.maximum(convolve(x, np.float64(block.first.conv.kernel[...])), 0)
    y = np.maximum(convolve(y, np.float64(block.second.conv.kernel[...]), stride, 12), 0)
    y = convolve(y, np.float64(block.third.conv.kernel[...])) - 10
    expected = y + x if (outputs, stride) == (6, 1) else y
    np.testing.assert_allclose(block(jnp.asarray(x), train=False), expected, atol=1e-3)


@pytest.mark.parametrize(("inputs", "stride"), [(8, 1), (4, 1), (8, 2)])
def test_bottlenecks_stride_in_the_middle_and_project_where_the_map_changes(inputs, stride):
    block = imagenet_resnet.Bottleneck(
        inputs, 8, stride=stride, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
    )
    x = draw(2, 5, 4, inputs)
    y = np.maximum(convolve(x, np.float64(block.first.conv.kernel[...])), 0)
    y = np.maximum(convolve(y, np.float64(block.second.conv.kernel[...]), stride), 0)
    y = convolve(y, np.float64(block.third.conv.kernel[...]))
    projected = (inputs, stride) != (8, 1)
    assert (block.projection is not None) == projected
    kernel = np.float64(block.projection.conv.kernel[...]) if projected else None
    expected = y + (convolve(x, kernel, stride) if projected else x)
    np.testing.assert_allclose(block(jnp.asarray(x), train=False), expected, atol=1e-3)


def test_vgg_and_the_large_stem_pool_by_the_maximum():
    def taps(name, side):
        module = models.create(name, input_shape=(side, side, 3), num_classes=2)
        outputs, _ = apply(*models.split(module), jnp.asarray(draw(1, side, side, 3)))
        return module, outputs.taps

    module, found = taps("vgg8", 8)
    stem = np.asarray(found["stem"]).reshape(1, 4, 2, 4, 2, 64).max((2, 4))
    expected = module.stage1[0](jnp.asarray(stem), train=False)
    np.testing.assert_allclose(found["stage1_pre"], expected, atol=1e-4)
    module, found = taps("imagenet_resnet18", 32)
    padded = np.pad(found["stem"], ((0, 0), (1, 1), (1, 1), (0, 0)))  # After a ReLU 0 is least.
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    x = jnp.asarray(windows[:, ::2, ::2].max((-1, -2)))
    for block in module.stage1:
        x = nnx.relu(block(x, train=False))
    np.testing.assert_allclose(found["stage1"], x, rtol=1e-4, atol=1e-4)


def test_wide_resnet_shortcuts_take_the_activated_input_only_where_the_width_changes():
    x = draw(2, 4, 4, 3)
    for outputs in (3, 5):
        block = wide_resnet.Block(
            3, outputs, stride=1, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
        )
        block.norm1.mean[...] = jnp.full(3, 0.3)
        block.conv2.kernel[...] = jnp.zeros_like(block.conv2.kernel[...])
        result, normalised = block(jnp.asarray(x), train=False)
        before = (np.float64(x) - 0.3) / np.sqrt(1 + 1e-5)
        np.testing.assert_allclose(normalised, before, atol=1e-5)
        if outputs == 3:
            np.testing.assert_array_equal(result, x)
        else:
            kernel = np.float64(block.projection.kernel[...])
            np.testing.assert_allclose(result, convolve(np.maximum(before, 0), kernel), atol=1e-5)


def test_wide_resnet_updates_its_statistics_once_though_a_tap_shares_them():
    module = models.create("wrn_16_1", input_shape=(8, 8, 3), num_classes=2)
    graphdef, params, stats = models.split(module)
    outputs, new = apply(graphdef, params, stats, jnp.asarray(draw(4, 8, 8, 3)), train=True)
    for stage, norm in ((1, "stage2/0/norm1"), (2, "stage3/0/norm1"), (3, "norm")):
        raw = np.float64(outputs.taps[f"stage{stage}"])
        mean, var = raw.mean((0, 1, 2)), raw.var((0, 1, 2))
        np.testing.assert_allclose(new[f"{norm}/mean"], 0.1 * mean, rtol=1e-3, atol=1e-5)
        normalised = (raw - mean) / np.sqrt(var + 1e-5)
        np.testing.assert_allclose(outputs.taps[f"stage{stage}_pre"], normalised, atol=1e-3)
    pooled = np.maximum(outputs.taps["stage3_pre"], 0).mean((1, 2))
    np.testing.assert_allclose(outputs.taps["pooled"], pooled, atol=1e-5)


def test_shuffle_is_that_of_pytorch():
    x = draw(2, 4, 5, 12)
    for groups in (1, 2, 3):
        nchw = np.moveaxis(x, -1, 1)
        viewed = nchw.reshape(2, groups, 12 // groups, 4, 5).transpose(0, 2, 1, 3, 4)
        expected = np.moveaxis(viewed.reshape(nchw.shape), 1, -1)
        np.testing.assert_array_equal(shufflenet.shuffle(jnp.asarray(x), groups), expected)


def test_shufflenet_v1_appends_the_average_that_counts_outer_places_as_zeros():
    unit = shufflenet.Unit(
        6, 18, first_groups=1, stride=2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
    )
    x = draw(2, 4, 4, 6)
    result = np.asarray(unit(jnp.asarray(x), train=False))
    assert result.shape == (2, 2, 2, 18)
    depthwise = np.full((3, 3, 1, 6), 1 / 9)
    np.testing.assert_allclose(result[..., 12:], convolve(x, depthwise, 2, 6), atol=1e-6)


def test_shufflenet_v2_units_split_shuffle_and_tell_what_was_before():
    unit = shufflenet.SplitUnit(8, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    x = jnp.asarray(draw(2, 4, 4, 8))
    result, before = unit(x, train=False)
    np.testing.assert_array_equal(before[..., :4], x[..., :4])
    through = unit.branch(x[..., 4:], train=False)
    np.testing.assert_array_equal(before[..., 4:], through)
    assert np.asarray(through).min() < 0
    np.testing.assert_array_equal(result[..., ::2], x[..., :4])
    np.testing.assert_array_equal(result[..., 1::2], np.maximum(through, 0))
    down = shufflenet.DownUnit(8, 12, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    result, before = down(x, train=False)
    assert result.shape == before.shape == (2, 2, 2, 12)
    np.testing.assert_array_equal(result[..., 1::2], np.maximum(before[..., 6:], 0))
