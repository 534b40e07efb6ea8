"""Random resized crops: the published distribution, Pillow's pixels, the same cut wherever read."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from distill_jax import data
from distill_jax.data.images.crops import Crops, box
from distill_jax.data.images.sources.base import decode_cut


def _reference(rng, count, height, width, least):
    """Areas and ratios of width to height as parts of the image, by the definition, all at once."""
    area = height * width * rng.uniform(least, 1, (count, 10))
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (count, 10)))
    wide, tall = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (wide <= width) & (tall <= height) & (wide > 0) & (tall > 0)
    rows, first = np.arange(count), np.argmax(fits, axis=1)
    wide, tall, found = wide[rows, first], tall[rows, first], fits.any(axis=1)
    middle = (height, min(width, np.rint(height * 4 / 3)))  # of an image that is not upright
    return np.where(found, tall, middle[0]), np.where(found, wide, middle[1])


def _distance(one, other):
    """Kolmogorov and Smirnov's: between the distribution functions of two samples."""
    at = np.sort(np.concatenate([one, other]))
    of = [
        np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (one, other)
    ]
    return np.abs(of[0] - of[1]).max()


@pytest.mark.parametrize(
    ("height", "width", "least"), [(375, 500, 0.08), (120, 360, 0.08), (64, 64, 0.5)]
)
def test_areas_ratios_and_places_are_distributed_as_published(height, width, least):
    count = 4000
    top, left, tall, wide = np.array(
        [cut(height, width) for cut in Crops(least, 3).at(range(count))]
    ).T
    expected = _reference(np.random.default_rng(0), count, height, width, least)
    # Of two such samples, one in 10,000 pairs would differ by more than 0.05.
    assert _distance(tall * wide, expected[0] * expected[1]) < 0.05
    assert _distance(wide / tall, expected[1] / expected[0]) < 0.05
    assert top.min() >= 0 and left.min() >= 0
    assert (top + tall).max() <= height and (left + wide).max() <= width
    # Where there is room, the place is uniform and does not depend on the size.
    for place, room in ((top, height - tall), (left, width - wide)):
        roomy = room >= 20
        share = (place[roomy] + 0.5) / (room[roomy] + 1)
        assert _distance(share, np.linspace(0, 1, 4001)) < 0.06
        assert abs(np.corrcoef(share, room[roomy])[0, 1]) < 0.08


def _uniform(area, ratio, least):
    """The first two numbers of a try that has this area and this ratio of width to height."""
    return (area - least) / (1 - least), math.log(ratio * 4 / 3) / (2 * math.log(4 / 3))


def test_a_try_that_does_not_fit_is_drawn_again_and_the_middle_comes_last():
    tries = np.zeros((10, 4))
    tries[:, :2] = _uniform(1.0, 4 / 3, 0.08)  # too wide for a square
    assert box(tries, 0.08, 100, 100) == (0, 0, 100, 100)  # the whole is the middle of a square
    tries[7] = (*_uniform(0.25, 1.0, 0.08), 0.5, 0.999)
    assert box(tries, 0.08, 100, 100) == (25, 50, 50, 50)  # of 51 places: 25 and 50
    tries[7] = tries[0]
    # int(round(h * 4/3)) across, int(round(w / (3/4))) down, halves left over are cut off below.
    assert box(tries, 1.0, 31, 100) == (0, 29, 31, 41)
    assert box(tries, 1.0, 100, 31) == (29, 0, 41, 31)
    assert box(np.zeros((10, 4)), 1e-6, 3, 3) == (0, 0, 3, 3)  # smaller than a pixel


def _picture(height, width, seed=0):
    """An image with coarse and fine structure, and a border that is unlike its inside."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.uint8)
    for size, strength in ((3, 120), (24, 80)):
        coarse = rng.integers(0, strength, (size, size, 3), np.uint8)
        pixels += np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))
    pixels[0], pixels[:, -1] = 255, 0
    return Image.fromarray(pixels)


def _fixed(*where):
    return lambda height, width: where


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "palette.png", "grey.png"])
@pytest.mark.parametrize("where", [(0, 0, 90, 121), (3, 17, 50, 41), (80, 100, 1, 2)])
def test_pixels_are_those_of_pillows_crop_and_resize(tmp_path, name, where):
    picture = _picture(90, 121)
    picture = {"palette.png": picture.quantize(32), "grey.png": picture.convert("L")}.get(
        name, picture
    )
    picture.save(tmp_path / name)
    mode = "L" if name == "grey.png" else "RGB"
    top, left, tall, wide = where
    with Image.open(tmp_path / name) as image:
        whole = image.convert(mode)
    part = whole.crop((left, top, left + wide, top + tall))
    expected = np.asarray(part.resize((32, 48), Image.BILINEAR)).reshape(48, 32, -1)
    # A box of at most twice the size keeps every pixel of a JPEG.
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        assert np.array_equal(decode_cut(source, mode, (48, 32), _fixed(*where)), expected)


@pytest.mark.parametrize(("height", "width"), [(300, 401), (1203, 901)])
def test_a_large_jpeg_decoded_in_part_has_nearly_the_same_pixels(tmp_path, height, width):
    picture = _picture(height, width)
    picture.save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as image:
        whole = image.convert("RGB")
    reduced = 0
    for cut in Crops(0.08, 0).at(range(12)):
        top, left, tall, wide = cut(height, width)
        part = whole.crop((left, top, left + wide, top + tall))
        expected = np.asarray(part.resize((64, 64), Image.BILINEAR)).astype(int)
        found = decode_cut(tmp_path / "x.jpg", "RGB", (64, 64), cut).astype(int)
        reduced += not np.array_equal(found, expected)
        assert np.abs(found - expected).mean() < 1
    assert reduced  # else the half, quarter and eighth were not tried


# ---------------------------------------------------------------- feeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 JPEGs of as many sizes, two classes."""
    folder = tmp_path_factory.mktemp("jpegs")
    for number in range(24):
        name = folder / "train" / f"class{number % 2}" / f"{number:02d}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        _picture(40 + 3 * number, 90 - 2 * number, number).save(name)
    return folder


def _take(feed, position, count):
    batches = feed.at(position)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def test_the_cut_goes_by_the_position_alone(folder):
    examples = data.load("folder", "train", path=str(folder), image_size=16)
    order = data.Order(np.arange(20), 5)  # an epoch of 20: batches of 8 span epochs
    crops = Crops(0.08, 5)

    def taken(position, count, workers=0, **part):
        feed = data.training_feed(
            examples, order, 8, resident=False, workers=workers, crops=crops, **part
        )
        return _take(feed, position, count)

    whole = taken(0, 6)
    for number, batch in enumerate(whole):
        for row in range(8):
            (cut,) = crops.at([8 * number + row])
            images, labels = examples.cropped(batch["id"][row : row + 1], [cut])
            assert np.array_equal(batch["image"][row], images[0])
            assert batch["label"][row] == labels[0] == batch["id"][row] // 12
    found = {
        (0, 1): taken(16, 4),  # resumed
        (2, 1): taken(16, 4, workers=2),
        **{(0, n): taken(16, 4, process=n - 2, processes=2) for n in (2, 3)},
    }
    for (_, process), batches in found.items():
        part = {1: slice(8), 2: slice(4), 3: slice(4, 8)}[process]
        for own, batch in zip(batches, whole[2:], strict=True):
            for name, values in own.items():
                assert np.array_equal(values, batch[name][part]), (name, process)
    # Another epoch and another seed show other parts of the same image.
    shown = [[] for _ in range(20)]
    for batch in whole[:5]:
        for index, image in zip(batch["id"], batch["image"], strict=True):
            shown[index].append(image.tobytes())
    assert all(len(set(views)) == 2 for views in shown)
    assert Crops(0.08, 6).at([0])[0](400, 500) != crops.at([0])[0](400, 500)
    # Evaluation sees the middle, as ever.
    tested = data.evaluation_feed(examples, np.arange(8), 8, resident=False)[0]
    assert np.array_equal(tested["image"], examples.batch(np.arange(8))[0])
