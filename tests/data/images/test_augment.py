"""Views: equal to a plain numpy account of the drawn numbers, uniform, and the same on any mesh."""

import functools

import compiling
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from distill_jax.data import Augment, draw, identity, view
from distill_jax.errors import UsageError

EVERYTHING = Augment(
    crop_padding=3, padding_mode="reflect", flip=True, color_jitter=0.4, mixup=0.7, cutmix=1.0
)


def _batch(size=12, height=8, width=10, channels=3, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, height, width, channels), np.uint8)
    return images, rng.integers(0, classes, size)


@functools.partial(jax.jit, static_argnums=(3, 4), compiler_options=compiling.ROUNDING)
def _augmented(key, images, labels, classes, options):
    draws = draw(key, images.shape[0], options)
    return draws, view(images, labels, classes, draws, options)


def _run(seed, options, **shape):
    images, labels = _batch(**shape)
    draws, (pixels, targets) = _augmented(jax.random.key(seed), images, labels, 5, options)
    assert pixels.dtype == targets.dtype == np.float32
    assert pixels.shape == images.shape and targets.shape == (len(images), 5)
    numbers = {name: np.asarray(value) for name, value in draws.items()}
    return images, labels, numbers, np.asarray(pixels), np.asarray(targets)


def _expected(images, labels, draws, options, classes=5):
    """The view again, image by image and pixel by pixel, in float64."""
    views = []
    pad = options.crop_padding
    for row, image in enumerate(images):
        height, width, channels = image.shape
        mode = {"zero": "constant", "reflect": "reflect"}[options.padding_mode]
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
        top, left = (draws["dy"][row], draws["dx"][row]) if pad else (0, 0)
        result = np.empty(image.shape)
        for y in range(height):
            for x in range(width):
                across = width - 1 - x if options.flip and draws["flip"][row] else x
                for channel in range(channels):
                    result[y, x, channel] = padded[top + y, left + across, channel] / 255
        if options.color_jitter:
            result = np.minimum(result * draws["brightness"][row], 1)
            middle = result.mean()
            result = np.clip(middle + (result - middle) * draws["contrast"][row], 0, 1)
        views.append(result)
    views = np.array(views)
    targets = np.array([[float(label == k) for k in range(classes)] for label in labels])
    if not (options.mixup or options.cutmix):
        return views, targets

    lam = float(draws["lam"])
    mixed, mixed_targets = views.copy(), targets.copy()
    paste = options.cutmix and (not options.mixup or draws["use_cutmix"])
    if paste:
        height, width = images.shape[1:3]
        # As in the authors' code: half sides by integer division, cut off at the image's edge.
        tall, wide = int(height * np.sqrt(1 - lam)) // 2, int(width * np.sqrt(1 - lam)) // 2
        middle = (int(draws["centre"][0] * height), int(draws["centre"][1] * width))
        pasted = 0
        for y in range(max(middle[0] - tall, 0), min(middle[0] + tall, height)):
            for x in range(max(middle[1] - wide, 0), min(middle[1] + wide, width)):
                mixed[:, y, x] = views[draws["partner"], y, x]
                pasted += 1
        lam = 1 - pasted / (height * width)
    else:
        mixed = lam * views + (1 - lam) * views[draws["partner"]]
    for row in range(len(images)):
        mixed_targets[row] = lam * targets[row] + (1 - lam) * targets[draws["partner"][row]]
    return mixed, mixed_targets


def test_without_options_the_view_is_the_image_over_255():
    levels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    labels = np.arange(4)
    for transform in (identity, lambda *batch: view(*batch, {}, Augment())):
        for run in (transform, jax.jit(transform, static_argnums=2)):
            pixels, targets = run(levels, labels, 4)
            assert np.array_equal(pixels, levels.astype(np.float32) / np.float32(255))
            assert np.array_equal(targets, np.eye(4, dtype=np.float32))
    assert draw(jax.random.key(0), 8, Augment()) == {}


@pytest.mark.parametrize("padding_mode", ["zero", "reflect"])
@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_is_the_padded_image_cut(padding_mode, flip):
    # All 49 offsets at once, each flipped or not.
    options = Augment(crop_padding=3, padding_mode=padding_mode, flip=flip)
    images, labels = _batch(size=49, height=5, width=6)
    dy, dx = np.divmod(np.arange(49, dtype=np.int32), 7)
    draws = {"dy": dy, "dx": dx} | ({"flip": np.arange(49) % 3 == 0} if flip else {})
    pixels, _ = jax.jit(view, static_argnums=(2, 4))(images, labels, 5, draws, options)
    expected, _ = _expected(images, labels, draws, options)
    assert np.array_equal(pixels, expected.astype(np.float32))


@pytest.mark.parametrize(
    "options",
    [
        Augment(flip=True),
        Augment(color_jitter=1.0, flip=True, crop_padding=1),
        Augment(mixup=0.3),
        Augment(cutmix=1.0),
        EVERYTHING,
    ],
    ids=str,
)
def test_view_equals_the_plain_account(options):
    used = set()
    for seed in range(6):
        images, labels, draws, pixels, targets = _run(seed, options)
        expected, expected_targets = _expected(images, labels, draws, options)
        np.testing.assert_allclose(pixels, expected, atol=2e-6)
        np.testing.assert_allclose(targets, expected_targets, atol=1e-6)
        assert pixels.min() >= 0 and pixels.max() <= 1
        assert np.all(targets >= 0)
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        used.add(bool(draws.get("use_cutmix", False)))
    if options is EVERYTHING:
        assert used == {False, True}


def test_cutmix_share_is_the_exact_area():
    # White images pasted on black ones: the mean of the view is the share pasted.
    images = np.zeros((2, 9, 7, 1), np.uint8)
    images[1] = 255
    options = Augment(cutmix=1.0)
    keys = jax.random.split(jax.random.key(0), 40)
    drawn = jax.jit(jax.vmap(lambda key: draw(key, 2, options)))(keys)
    drawn["partner"] = np.tile([1, 0], (40, 1))
    views = jax.jit(jax.vmap(lambda draws: view(images, np.arange(2), 2, draws, options)))(drawn)
    shares = set()
    for pixels, targets in zip(*map(np.asarray, views), strict=True):
        assert set(np.unique(pixels)) <= {0.0, 1.0}
        pasted = int(pixels[0].sum())
        np.testing.assert_allclose(targets[0], [1 - pasted / 63, pasted / 63], atol=1e-7)
        np.testing.assert_allclose(targets[1], [pasted / 63, 1 - pasted / 63], atol=1e-7)
        shares.add(pasted)
    assert len(shares) > 10


def test_draws_have_their_promised_distributions():
    size = 40_000
    draws = draw(jax.random.key(3), size, EVERYTHING)
    cells = np.bincount(np.asarray(draws["dy"]) * 7 + np.asarray(draws["dx"]), minlength=49)
    assert len(cells) == 49  # no offset beyond twice the padding
    assert stats.chisquare(cells).pvalue > 1e-3
    assert stats.binomtest(int(draws["flip"].sum()), size).pvalue > 1e-3
    for name in ("brightness", "contrast"):
        assert stats.kstest(np.asarray(draws[name]), stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    assert np.array_equal(np.sort(draws["partner"]), np.arange(size))
    assert abs(np.corrcoef(draws["brightness"], draws["contrast"])[0, 1]) < 0.02
    assert abs(np.corrcoef(draws["flip"], draws["dx"])[0, 1]) < 0.02


def test_mixing_weights_are_beta_and_the_choice_is_even():
    keys = jax.random.split(jax.random.key(5), 4000)
    draws = jax.jit(jax.vmap(lambda key: draw(key, 2, EVERYTHING)))(keys)
    pasted = np.asarray(draws["use_cutmix"])
    assert stats.binomtest(int(pasted.sum()), len(pasted)).pvalue > 1e-3
    lam = np.asarray(draws["lam"])
    assert stats.kstest(lam[~pasted], stats.beta(0.7, 0.7).cdf).pvalue > 1e-3
    assert stats.kstest(lam[pasted], stats.beta(1.0, 1.0).cdf).pvalue > 1e-3
    assert stats.kstest(np.asarray(draws["centre"]).ravel(), "uniform").pvalue > 1e-3


def test_one_option_leaves_the_numbers_of_another_alone():
    key = jax.random.key(8)
    alone = draw(key, 16, Augment(flip=True))
    together = draw(key, 16, EVERYTHING)
    assert set(alone) == {"flip"}
    assert np.array_equal(alone["flip"], together["flip"])
    assert not np.array_equal(alone["flip"], draw(jax.random.key(9), 16, EVERYTHING)["flip"])


@pytest.mark.parametrize("options", [Augment(crop_padding=2, flip=True), EVERYTHING], ids=str)
def test_same_view_on_one_and_on_eight_devices(options):
    images, labels = _batch(size=16)
    assert len(jax.devices()) >= 8, "the test run makes eight virtual devices"
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    for seed in range(3):
        key = jax.random.key(seed)
        _, single = _augmented(key, images, labels, 5, options)
        _, sharded = _augmented(
            jax.device_put(key, whole),
            jax.device_put(images, split),
            jax.device_put(labels, split),
            5,
            options,
        )
        assert sharded[0].sharding.is_equivalent_to(split, 4)
        for one, eight in zip(single, sharded, strict=True):
            assert np.array_equal(one, eight)


def test_crop_and_flip_need_no_communication():
    images, labels = _batch(size=16)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    batch = [jax.device_put(array, split) for array in (images, labels)]
    options = Augment(crop_padding=2, flip=True)
    key = jax.device_put(jax.random.key(0), NamedSharding(mesh, PartitionSpec()))
    program = _augmented.lower(key, *batch, 5, options).compile().as_text()
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in program


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"padding_mode": "mirror"},
            "data.augment.padding_mode='mirror': unknown mode.*reflect, zero",
        ),
        ({"crop_padding": -1}, "data.augment.crop_padding=-1: expected 0 or more"),
        ({"color_jitter": 1.5}, "data.augment.color_jitter=1.5: expected 0 to 1"),
        ({"mixup": -0.1}, "data.augment.mixup=-0.1"),
        ({"cutmix": float("inf")}, "data.augment.cutmix=inf"),
        ({"cutmix": float("nan")}, "data.augment.cutmix=nan"),
    ],
)
def test_augment_refuses(options, message):
    with pytest.raises(UsageError, match=message):
        Augment(**options)


def test_reflection_beyond_the_image_is_refused():
    options = Augment(crop_padding=8, padding_mode="reflect")
    with pytest.raises(UsageError, match="crop_padding=8: reflection needs less than .* 8 x 10"):
        _run(0, options)
    _run(0, Augment(crop_padding=8, padding_mode="zero"))
