"""Strong views: each operation against Pillow, the promised distributions, the same on any mesh."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from distill_jax.data import Augment, draw, draw_strong, strong_view, view
from distill_jax.data.images.strong import COLOR, OPERATIONS, RANGES
from distill_jax.errors import UsageError

OPTIONS = Augment(crop_padding=4, flip=True, strong_ops=2)
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
MAGNITUDES = np.float32([0, 0.037, 0.21, 0.4, 0.5, 0.55, 0.63, 0.78, 0.9, 0.9999999])


@functools.partial(jax.jit, static_argnums=2)
def _strong(key, images, options):
    draws = draw_strong(key, images.shape[0], options)
    return draws, strong_view(images, draws, options)


_view = jax.jit(strong_view, static_argnums=2)


def _levels(pixels):
    """Pixels in [0, 1] as the whole levels that they are."""
    levels = np.asarray(pixels) * 255
    assert np.allclose(levels, np.round(levels), atol=1e-3)
    return np.round(levels).astype(int)


def _pictures(height=32, width=32, channels=3):
    """Images of all sorts: noise, slopes, few levels, one colour, black borders, dark ones."""
    rng = np.random.default_rng(0)
    shape = (height, width, channels)
    noise = rng.integers(0, 256, (3, *shape))
    slope = np.arange(height)[:, None, None] * 2 + np.arange(width)[:, None] * 3
    slopes = [np.broadcast_to(slope + 20 * np.arange(channels), shape) % 256, slope % 256 // 3 + 60]
    few = [rng.choice([3, 90, 91, 240], shape), rng.choice([0, 255], shape)]
    flat = [np.full(shape, level) for level in (0, 77, 255)]
    bordered = rng.integers(100, 140, shape)
    bordered[: height // 4], bordered[:, -width // 5 :] = 0, 0
    dark = [rng.poisson(6, shape), rng.normal(128, 12, shape).clip(0, 255)]
    images = [*noise, *slopes, *few, *flat, bordered, *dark]
    return np.stack([np.broadcast_to(image, shape) for image in images]).astype(np.uint8)


def _pillow(image, name, magnitude):
    """The operation as the public code calls it: strengths in the ranges of the paper."""
    low, high = RANGES[name]
    strength = float(low + (high - low) * magnitude)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    width, height = picture.size
    affine = {
        "ShearX": (1, strength, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, strength, 1, 0),
        "TranslateX": (1, 0, strength * width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, strength * height),
    }
    if name in affine:
        result = picture.transform(picture.size, Image.Transform.AFFINE, affine[name])
    elif name in ("Brightness", "Color", "Contrast", "Sharpness"):
        result = getattr(ImageEnhance, name)(picture).enhance(strength)
    else:
        result = {
            "AutoContrast": lambda: ImageOps.autocontrast(picture),
            "Equalize": lambda: ImageOps.equalize(picture),
            "Identity": picture.copy,
            "Posterize": lambda: ImageOps.posterize(picture, int(strength)),
            "Rotate": lambda: picture.rotate(strength),
            "Solarize": lambda: ImageOps.solarize(picture, strength),
        }[name]()
    return np.asarray(result).reshape(image.shape).astype(int)


def _one(images, name, magnitude):
    """The operation on each image, without a crop, flip or square."""
    each = (len(images), 1)
    draws = {
        "op": np.full(each, OPERATIONS.index(name), np.int32),
        "magnitude": np.broadcast_to(np.float32(magnitude), each),
    }
    return _levels(_view(images, draws, OPTIONS))


@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32, 1), (19, 40, 3)], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_pillows(name, shape):
    images = _pictures(*shape)
    for magnitude in MAGNITUDES:
        ours = _one(images, name, magnitude)
        theirs = np.stack([_pillow(image, name, magnitude) for image in images])
        different = ours != theirs
        if name in WARPS:
            # Our angles have 32 bits and Pillow's 64: a pixel on the border of two may move.
            assert np.mean(different) < 1e-3
        elif name in ("AutoContrast", "Color", "Contrast", "Sharpness"):
            # Both cut a fraction off; where it is all but nothing, rounding decides.
            assert np.abs(ours - theirs).max() <= 1 and np.mean(different) < 0.05
        else:
            assert not np.any(different)
        if name in ("Identity", "Color" if shape[-1] == 1 else None):
            assert np.array_equal(ours, images)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3)], ids=str)
def test_an_image_that_is_all_rim_is_not_smoothed(shape):
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    assert np.array_equal(_one(images, "Sharpness", 0.3), images)
    assert np.array_equal(_pillow(images[0], "Sharpness", 0.3), images[0])


def test_operations_differ_from_one_another():
    # A comparison on images that an operation leaves alone would prove nothing.
    images = _pictures()
    results = {name: _one(images, name, 0.21) for name in OPERATIONS}
    for first in OPERATIONS:
        for second in OPERATIONS[: OPERATIONS.index(first)]:
            assert np.mean(results[first] != results[second]) > 0.1, (first, second)


def test_the_whole_view_is_crop_flip_operations_in_order_and_the_square():
    images = np.concatenate([_pictures()] * 8)
    options = Augment(crop_padding=4, padding_mode="reflect", flip=True, strong_ops=3)
    draws, pixels = _strong(jax.random.key(2), images, options)
    assert pixels.dtype == np.float32 and pixels.shape == images.shape
    draws = {name: np.asarray(value) for name, value in draws.items()}
    expected = []
    for row, image in enumerate(images):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        top, left = draws["dy"][row], draws["dx"][row]
        image = padded[top : top + 32, left : left + 32]
        image = image[:, ::-1] if draws["flip"][row] else image
        for step in range(3):
            name = OPERATIONS[draws["op"][row, step]]
            image = _pillow(image.astype(np.uint8), name, draws["magnitude"][row, step])
        image = image.copy()
        y, x = (int(32 * part) for part in draws["centre"][row])
        side = int(np.round(np.float32(0.5) * draws["side"][row] * 32))
        top, left = y - side // 2, x - side // 2
        image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = COLOR
        expected.append(image)
    difference = np.abs(_levels(pixels) - np.stack(expected))
    # A level that is one off before Solarize or Equalize may be further off after it.
    assert np.mean(difference > 1) < 2e-3


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 1.0])
def test_the_square_has_one_colour_and_is_cut_off_at_the_edge(part):
    options = Augment(strong_ops=1, strong_cutout=part)
    images = np.full((64, 20, 12, 3), 200, np.uint8)
    draws = draw_strong(jax.random.key(1), 64, options)
    assert ("centre" in draws) == (part > 0)
    draws["op"] = np.full((64, 1), OPERATIONS.index("Identity"), np.int32)
    levels = _levels(_view(images, draws, options))
    grey = levels == np.array(COLOR)
    assert np.array_equal(levels, np.where(grey, COLOR, 200))
    assert np.array_equal(grey.any(axis=-1), grey.all(axis=-1))
    sides = np.zeros(64, int)
    if part:
        sides = np.round(np.float32(12 * part) * np.asarray(draws["side"])).astype(int)
        assert sides.max() > 12 * part * 0.8
    for row, square in enumerate(grey[..., 0]):
        tall, wide = square.any(axis=1), square.any(axis=0)
        assert np.array_equal(square, tall[:, None] & wide)
        for inside, size, axis in ((tall, 20, 0), (wide, 12, 1)):
            side = sides[row]
            if side:
                start = int(size * float(draws["centre"][row, axis])) - side // 2
                assert inside.sum() == min(start + side, size) - max(start, 0)
                assert np.argmax(inside) == max(start, 0)


def test_draws_have_their_promised_distributions():
    size = 40_000
    draws = {
        name: np.asarray(value)
        for name, value in draw_strong(jax.random.key(4), size, OPTIONS).items()
    }
    assert set(draws) == {"dy", "dx", "flip", "op", "magnitude", "side", "centre"}
    for name in ("op", "magnitude"):
        assert draws[name].shape == (size, 2)
    # Both steps at once: uniform, and with replacement.
    pairs = np.bincount(draws["op"][:, 0] * 14 + draws["op"][:, 1], minlength=196)
    assert len(OPERATIONS) == 14 and len(pairs) == 196
    assert stats.chisquare(pairs).pvalue > 1e-3
    for name in ("magnitude", "side", "centre"):
        assert stats.kstest(draws[name].ravel(), "uniform").pvalue > 1e-3
        assert draws[name].max() < 1
    cells = np.bincount(draws["dy"] * 9 + draws["dx"], minlength=81)
    assert len(cells) == 81 and stats.chisquare(cells).pvalue > 1e-3
    assert stats.binomtest(int(draws["flip"].sum()), size).pvalue > 1e-3
    columns = [np.reshape(value, (size, -1)) for value in draws.values()]
    correlations = np.corrcoef(np.concatenate(columns, axis=1).T)
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.025


def test_the_weak_view_of_the_same_key_is_another_and_stays_as_it_was():
    images, labels = _pictures(), np.arange(13)
    without = Augment(crop_padding=4, flip=True, color_jitter=0.3, mixup=0.2, cutmix=1.0)
    also = Augment(**vars(without) | {"strong_ops": 2, "strong_cutout": 0.25})
    key = jax.random.key(7)
    before, after = draw(key, 13, without), draw(key, 13, also)
    assert before.keys() == after.keys()
    for name in before:
        assert np.array_equal(before[name], after[name])
    jitted = jax.jit(view, static_argnums=(2, 4))
    views = [jitted(images, labels, 13, before, options) for options in (without, also)]
    for one, other in zip(*views, strict=True):
        assert np.array_equal(one, other)
    weak, strong = (make(key, 40_000, also) for make in (draw, draw_strong))
    assert not strong.keys() & {"brightness", "contrast", "partner", "lam", "use_cutmix"}
    for mine in ("dy", "dx", "flip"):
        for theirs in ("dy", "dx", "flip", "brightness", "contrast"):
            assert abs(np.corrcoef(strong[mine], weak[theirs])[0, 1]) < 0.025


def test_the_view_is_the_same_each_time_and_another_for_another_key():
    images = np.concatenate([_pictures()] * 2)[:24]
    first, again, other = (_strong(jax.random.key(seed), images, OPTIONS) for seed in (3, 3, 4))
    for name, value in first[0].items():
        assert np.array_equal(value, again[0][name])
        assert not np.array_equal(value, other[0][name])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_same_view_on_one_and_on_eight_devices_without_communication():
    images = np.concatenate([_pictures()] * 2)[:24]
    assert len(jax.devices()) >= 8, "the test run makes eight virtual devices"
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    batch = jax.device_put(images, split)
    for seed in range(3):
        key = jax.random.key(seed)
        _, single = _strong(key, images, OPTIONS)
        _, sharded = _strong(jax.device_put(key, whole), batch, OPTIONS)
        assert sharded.sharding.is_equivalent_to(split, 4)
        assert np.array_equal(single, sharded)
    program = _strong.lower(jax.device_put(key, whole), batch, OPTIONS).compile().as_text()
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in program


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strong_ops": -1}, "data.augment.strong_ops=-1: expected 0 or more"),
        ({"strong_cutout": 1.5}, "data.augment.strong_cutout=1.5: expected 0 to 1"),
        ({"strong_cutout": float("nan")}, "data.augment.strong_cutout=nan"),
    ],
)
def test_augment_refuses(options, message):
    with pytest.raises(UsageError, match=message):
        Augment(**options)


def test_no_strong_view_without_operations():
    with pytest.raises(UsageError, match="data.augment.strong_ops=0: a strong view needs 1"):
        draw_strong(jax.random.key(0), 4, Augment(flip=True))
