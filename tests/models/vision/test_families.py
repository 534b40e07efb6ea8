"""The image classifiers of the literature: published sizes, taps, initial values; all finite."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models.batch_norm import BATCH_NORM

apply = jax.jit(models.apply, static_argnums=0, static_argnames="train")

SMALL = (32, 32, 3)
LARGE = (224, 224, 3)

# Parameters with 100 and with 10 classes, counted from the PyTorch reference implementations.
CIFAR = {
    "resnet50": (23_705_252, 23_520_842),
    "wrn_16_1": (180_916, 175_066),
    "wrn_16_2": (703_284, 691_674),
    "wrn_40_1": (569_780, 563_930),
    "wrn_40_2": (2_255_156, 2_243_546),
    "vgg8": (3_965_028, 3_918_858),
    "vgg11": (9_277_284, 9_231_114),
    "vgg13": (9_462_180, 9_416_010),
    "vgg16": (14_774_436, 14_728_266),
    "vgg19": (20_086_692, 20_040_522),
    "mobilenet_v2": (812_836, 697_546),
    "shufflenet_v1": (949_258, 862_768),
    "shufflenet_v2": (1_355_528, 1_263_278),
}

# Millions of multiplications and additions in convolutions and dense layers, one 32x32 image.
MILLIONS = {
    "resnet8": 12.5,
    "resnet20": 40.8,
    "resnet110": 253.2,
    "resnet8x4": 177.1,
    "resnet32x4": 1083.0,
    "resnet50": 1298.0,
    "wrn_16_1": 26.7,
    "wrn_16_2": 101.1,
    "wrn_40_1": 83.3,
    "wrn_40_2": 327.6,
    "vgg8": 96.2,
    "vgg11": 209.4,
    "vgg13": 284.9,
    "vgg16": 398.2,
    "vgg19": 511.4,
    "mobilenet_v2": 6.5,
    "shufflenet_v1": 38.7,
    "shufflenet_v2": 44.5,
}

# Parameters with 1000 classes, from torchvision, the MobileNet and the DeiT papers' code.
IMAGENET = {
    "imagenet_resnet18": (11_689_512, {}),
    "imagenet_resnet34": (21_797_672, {}),
    "imagenet_resnet50": (25_557_032, {}),
    "imagenet_resnet152": (60_192_808, {}),
    "mobilenet_v1": (4_231_976, {}),
    "deit_tiny": (5_910_800, {}),
    "deit_small": (22_436_432, {}),
    "deit_tiny without token": (5_717_416, {"distillation_token": False}),
    "deit_small without token": (22_050_664, {"distillation_token": False}),
}

# (channels, side) of "stem", "stage1" .. for one image, then the width of "pooled".
WIDE1 = ((16, 32), (16, 32), (32, 16), (64, 8)), 64
WIDE2 = ((16, 32), (32, 32), (64, 16), (128, 8)), 128
VGG = ((64, 32), (128, 16), (256, 8), (512, 4), (512, 4)), 512
BASIC = ((64, 112), (64, 56), (128, 28), (256, 14), (512, 7)), 512
BOTTLENECK = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)), 2048
TAPS = {
    "resnet50": (((64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)), 2048),
    "wrn_16_1": WIDE1,
    "wrn_16_2": WIDE2,
    "wrn_40_1": WIDE1,
    "wrn_40_2": WIDE2,
    **{f"vgg{depth}": VGG for depth in (8, 11, 13, 16, 19)},
    "mobilenet_v2": (((16, 16), (12, 16), (16, 8), (48, 4), (160, 2)), 1280),
    "shufflenet_v1": (((24, 32), (240, 16), (480, 8), (960, 4)), 960),
    "shufflenet_v2": (((24, 32), (116, 16), (232, 8), (464, 4)), 1024),
    "shufflenet_v2_1.5x": (((24, 32), (176, 16), (352, 8), (704, 4)), 1024),
    "imagenet_resnet18": BASIC,
    "imagenet_resnet34": BASIC,
    "imagenet_resnet50": BOTTLENECK,
    "imagenet_resnet152": BOTTLENECK,
    "mobilenet_v1": (((32, 112), (128, 56), (256, 28), (512, 14), (1024, 7)), 1024),
}


def shapes(name, shape, num_classes, **options):
    """The parts of an abstract network and the shapes of its outputs for two images."""
    module = models.abstract(name, input_shape=shape, num_classes=num_classes, **options)
    graphdef, params, stats = models.split(module)
    batch = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda p, s, x: models.apply(graphdef, p, s, x), params, stats, batch
    )
    return params, stats, outputs


def parameters(name, shape, num_classes, **options):
    module = models.abstract(name, input_shape=shape, num_classes=num_classes, **options)
    return models.parameter_count(models.split(module)[1])


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_networks_have_the_published_number_of_parameters(name):
    assert (parameters(name, SMALL, 100), parameters(name, SMALL, 10)) == CIFAR[name]


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_networks_have_the_published_number_of_parameters(name):
    expected, options = IMAGENET[name]
    assert parameters(name.split()[0], LARGE, 1000, **options) == expected


def multiplications(jaxpr):
    """Of all convolutions and matrix products in a traced function, functions inside included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # [size, size, inputs / groups, outputs]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[:3])
        elif equation.primitive.name == "dot_general":
            ((axes, _), _) = equation.params["dimension_numbers"]
            operand = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(operand[i] for i in axes)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += multiplications(inner)
    return total


@pytest.mark.parametrize("name", MILLIONS)
def test_cifar_networks_have_the_published_amount_of_work(name):
    module = models.abstract(name, input_shape=SMALL, num_classes=100)
    graphdef, params, stats = models.split(module)
    image = jax.ShapeDtypeStruct((1, *SMALL), jnp.float32)
    traced = jax.make_jaxpr(lambda p, s, x: models.apply(graphdef, p, s, x)[0].logits)(
        params, stats, image
    )
    assert round(multiplications(traced.jaxpr) / 1e6, 1) == MILLIONS[name]


def test_shufflenet_v2_at_one_and_a_half_widths_is_counted_by_hand():
    def branch(inputs, width):  # 1x1, depthwise 3x3, 1x1, each with a scale and a bias.
        return inputs * width + 9 * width + width * width + 6 * width

    count, inputs = 3 * 24 + 2 * 24, 24
    for outputs, depth in ((176, 3), (352, 7), (704, 3)):
        half = outputs // 2
        count += 9 * inputs + 2 * inputs + inputs * half + 2 * half  # left of the first unit
        count += branch(inputs, half) + depth * branch(half, half)
        inputs = outputs
    count += 704 * 1024 + 2 * 1024 + 1025 * 100
    assert parameters("shufflenet_v2_1.5x", SMALL, 100) == count


@pytest.mark.parametrize("name", TAPS)
def test_convolutional_networks_have_the_published_taps(name):
    maps, pooled = TAPS[name]
    large = maps[0][1] == 112
    params, stats, outputs = shapes(name, LARGE if large else SMALL, 100)
    expected = {"pooled": (2, pooled)}
    for i, (channels, side) in enumerate(maps):
        tap = f"stage{i}" if i else "stem"
        expected[tap] = (2, side, side, channels)
        if i and name != "mobilenet_v2":
            expected[f"{tap}_pre"] = expected[tap]
    assert {name: tap.shape for name, tap in outputs.taps.items()} == expected
    assert outputs.logits.shape == (2, 100)
    assert params["classifier/kernel"].shape == (pooled, 100)
    scales = [name for name in params if name.endswith("/scale")]
    statistics = {name.replace("/scale", part) for name in scales for part in ("/mean", "/var")}
    assert len(scales) > 0 and set(stats) == statistics


@pytest.mark.parametrize(("name", "width"), [("deit_tiny", 192), ("deit_small", 384)])
@pytest.mark.parametrize("token", [True, False])
def test_deit_has_its_taps(name, width, token):
    _, stats, outputs = shapes(name, LARGE, 100, distillation_token=token)
    expected = {f"block{i}": (2, 197 + token, width) for i in range(1, 13)}
    expected["pooled"] = (2, width)
    if token:
        expected["class_logits"] = expected["distillation_logits"] = (2, 100)
    assert {name: tap.shape for name, tap in outputs.taps.items()} == expected
    assert outputs.logits.shape == (2, 100) and stats == {}


def test_vgg_pools_once_more_only_at_64_pixels_and_refuses_less_than_8():
    for side, last in ((64, 4), (32, 4), (96, 12), (8, 1)):
        _, _, outputs = shapes("vgg8", (side, side, 3), 10)
        assert outputs.taps["stage4"].shape == (2, last, last, 512)
    with pytest.raises(UsageError, match=r"input_shape=\(8, 7, 3\): expected sides of 8 or more"):
        models.abstract("vgg8", input_shape=(8, 7, 3), num_classes=10)


slow = pytest.mark.slow
nightly = [slow, pytest.mark.nightly]  # of two versions the second runs in each push
RUNS = [
    pytest.param("wrn_16_1", 8, {}, marks=slow),
    pytest.param("vgg8", 8, {}),
    pytest.param("imagenet_resnet18", 32, {}, marks=slow),
    pytest.param("resnet50", 8, {}, marks=nightly),
    pytest.param("mobilenet_v1", 32, {}, marks=nightly),
    pytest.param("mobilenet_v2", 32, {}, marks=slow),
    pytest.param("shufflenet_v1", 16, {}, marks=nightly),
    pytest.param("shufflenet_v2", 16, {}, marks=slow),
    pytest.param("deit_tiny", 8, {"patch": 4, "drop_path": 0.2}, marks=slow),
    pytest.param("resnet8", 8, {"shortcut": "pad", "bn_unbiased": True}),
]


@pytest.mark.parametrize(("name", "side", "options"), RUNS)
def test_a_training_step_is_finite_and_half_precision_is_near(name, side, options):
    arguments = {"input_shape": (side, side, 3), "num_classes": 3, **options}
    graphdef, params, stats = models.split(models.create(name, **arguments))
    half = models.split(models.abstract(name, dtype=jnp.bfloat16, **arguments))[0]
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, side, side, 3)), jnp.float32)

    def loss(params):
        outputs, new = models.apply(
            graphdef, params, stats, images, train=True, key=jax.random.key(0)
        )
        return -jax.nn.log_softmax(outputs.logits)[:, 0].mean(), (outputs, new)

    gradients, (outputs, new) = jax.jit(jax.grad(loss, has_aux=True))(params)
    for key, value in gradients.items():
        assert value.dtype == jnp.float32 and np.isfinite(value).all(), key
        # A bias before batch normalisation cancels.
        assert np.abs(value).max() > 0 or key.endswith("conv/bias"), key
    assert list(new) == list(stats)
    for key, value in new.items():
        assert np.isfinite(value).all() and not np.array_equal(value, stats[key]), key
    for value in (outputs.logits, *outputs.taps.values()):
        assert np.isfinite(value).all()

    full, _ = apply(graphdef, params, new, images)
    near, _ = apply(half, params, new, images)
    assert near.logits.dtype == jnp.float32
    first = near.taps["block1" if name.startswith("deit") else "stage1"]
    assert first.dtype == jnp.bfloat16
    error = np.abs(near.logits - full.logits).max() / np.abs(full.logits).max()
    assert 0 < error < 0.1


def test_the_tables_above_know_every_name_of_these_families():
    listed = {*CIFAR, *TAPS, *(name.split()[0] for name in IMAGENET)}
    families = ("wrn_", "vgg", "mobilenet_", "shufflenet_", "imagenet_resnet", "deit_")
    assert {name for name in models.names() if name.startswith(families)} <= listed
    assert listed <= set(models.names())


def test_every_network_with_running_statistics_has_the_batch_norm_options():
    for name in ("cnn", "resnet8", "wrn_16_1", "vgg8", "mobilenet_v1", "shufflenet_v2"):
        options = models.options(name)
        assert {key: options[key] for key in BATCH_NORM} == BATCH_NORM
    for name in ("mlp", "deit_tiny"):
        assert not set(BATCH_NORM) & set(models.options(name))
