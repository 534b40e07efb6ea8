"""Sources that read arrays and files: right values, and one line for every kind of bad input."""

import gzip
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from distill_jax.data import load
from distill_jax.data.images.sources.base import resize
from distill_jax.errors import UsageError

# ---------------------------------------------------------------- digits


def test_digits_are_the_whole_set_split_once():
    from sklearn.datasets import load_digits

    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1297, 500)
    assert train.info == test.info
    assert train.info.image_shape == (8, 8, 1) and train.info.num_classes == 10
    images = np.concatenate([train.arrays()[0], test.arrays()[0]])
    labels = np.concatenate([train.arrays()[1], test.arrays()[1]])
    original = load_digits()
    # Undoing the scaling gives the sixteen levels back, so nothing was lost or doubled.
    ours = sorted(
        (*np.rint(x.ravel() * (16 / 255)), y) for x, y in zip(images, labels, strict=True)
    )
    theirs = sorted((*x, y) for x, y in zip(original.data, original.target, strict=True))
    assert ours == theirs
    assert images.dtype == np.uint8 and images.max() == 255 and labels.dtype == np.int32
    sizes = np.bincount(test.labels())
    assert np.all(np.abs(sizes - np.bincount(original.target) * 500 / 1797) < 1)


def test_examples_agree_with_arrays_and_cannot_be_written():
    train = load("digits", "train")
    images, labels = train.arrays()
    image, label = train[42]
    assert np.array_equal(image, images[42]) and label == labels[42] and type(label) is int
    assert train.nbytes == images.nbytes + labels.nbytes
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


# ---------------------------------------------------------------- IDX and npz


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def mnist(shared_data):
    pack = np.load(shared_data / "vision" / "mnist.npz")
    sizes = {"train": 300, "test": 60}
    return {
        f"{axis}_{split}": pack[f"{axis}_{split}"][:size].astype(np.uint8)
        for split, size in sizes.items()
        for axis in "xy"
    }


def _write_idx(folder, mnist, mark="-", compress=False):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for axis, content in (("x", "images-idx3"), ("y", "labels-idx1")):
            name = f"{prefix}-{content}-ubyte".replace("-idx", f"{mark}idx")
            data = _idx(mnist[f"{axis}_{split}"])
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data, 1))
            else:
                (folder / name).write_bytes(data)


@pytest.mark.parametrize(("mark", "compress"), [("-", False), (".", False), ("-", True)])
def test_idx_reads_what_was_written(tmp_path, mnist, mark, compress):
    _write_idx(tmp_path, mnist, mark, compress)
    for split in ("train", "test"):
        examples = load("idx", split, path=str(tmp_path))
        images, labels = examples.arrays()
        assert examples.info.image_shape == (28, 28, 1) and examples.info.num_classes == 10
        assert np.array_equal(images[..., 0], mnist[f"x_{split}"])
        assert np.array_equal(labels, mnist[f"y_{split}"])


def _spoil(name, change):
    def spoil(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil("train-images-idx3-ubyte", lambda b: b[:-1]), "truncated or damaged"),
        (_spoil("train-images-idx3-ubyte", lambda b: b + b"x"), "truncated or damaged"),
        (_spoil("train-images-idx3-ubyte", lambda b: b[:7]), "7 bytes are no IDX header"),
        (_spoil("train-images-idx3-ubyte", lambda b: b""), "0 bytes are no IDX header"),
        (
            _spoil("train-labels-idx1-ubyte", lambda b: b"\0\0\x09" + b[3:]),
            "magic number 2305, expected 2049",
        ),
        (
            _spoil("train-labels-idx1-ubyte", lambda b: struct.pack(">II", 2049, 5) + b[8:13]),
            "300 train images but 5 labels",
        ),
        (
            _spoil("train-images-idx3-ubyte", lambda b: struct.pack(">4I", 2051, 0, 28, 28)),
            "0 train images but 300 labels",
        ),
        (lambda folder: (folder / "train-labels-idx1-ubyte").unlink(), "no file train-labels-idx1"),
    ],
)
def test_idx_refuses(tmp_path, mnist, spoil, message):
    _write_idx(tmp_path, mnist)
    spoil(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        load("idx", "train", path=str(tmp_path))
    assert str(caught.value).startswith("data.path='") and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_idx_refuses_truncated_gzip(tmp_path, mnist, kept):
    _write_idx(tmp_path, mnist, compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UsageError, match=r"images-idx3-ubyte\.gz': unreadable or truncated"):
        load("idx", "train", path=str(tmp_path))


def test_npz_of_the_real_mnist(shared_data):
    path = shared_data / "vision" / "mnist.npz"
    test = load("npz", "test", path=str(path))
    images, labels = test.arrays()
    assert images.shape == (10000, 28, 28, 1) and test.info.num_classes == 10
    assert np.array_equal(images[..., 0], np.load(path)["x_test"])
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]


def _arrays(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (9, 4, 6, 3), np.uint8),
        "y_train": np.arange(9) % 3,
        "x_test": rng.integers(0, 256, (4, 4, 6, 3), np.uint8),
        "y_test": np.arange(4).reshape(4, 1) % 3,
    }
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def test_npz_colour_and_column_labels(tmp_path):
    arrays = _arrays()
    np.savez(tmp_path / "set.npz", **arrays)
    test = load("npz", "test", path=str(tmp_path / "set.npz"))
    assert test.info.image_shape == (4, 6, 3) and test.info.class_names == ("0", "1", "2")
    assert np.array_equal(test.arrays()[0], arrays["x_test"])
    assert test.labels().tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "no array 'x_test' in this file; it holds: x_train, y_train, y_test"),
        ({"x_test": np.zeros((4, 4, 6), np.float32)}, r"as uint8 .*got float32 \[4, 4, 6\]"),
        ({"x_test": np.zeros((4, 96), np.uint8)}, r"got uint8 \[4, 96\]"),
        ({"x_test": np.zeros((0, 4, 6), np.uint8), "y_test": np.zeros(0, int)}, "no images"),
        ({"y_test": np.arange(3)}, r"expected 4 integer labels, one an image, got int64 \[3\]"),
        ({"y_test": np.ones(4)}, "expected 4 integer labels.* float64"),
        ({"y_test": np.array([0, 1, 3, -1])}, "example 2 has label 3, expected 0 to 2; 2 labels"),
        ({"x_test": np.array([{}] * 4)}, "not a readable .npz file: Object arrays"),
    ],
)
def test_npz_refuses(tmp_path, changes, message):
    np.savez(tmp_path / "set.npz", **_arrays(**changes))
    with pytest.raises(UsageError, match=message):
        load("npz", "test", path=str(tmp_path / "set.npz"))


def test_npz_refuses_damaged_files(tmp_path):
    path = tmp_path / "set.npz"
    with pytest.raises(UsageError, match="no such file"):
        load("npz", "train", path=str(path))
    np.savez_compressed(path, **_arrays())
    content = path.read_bytes()
    # Cut off, and a byte changed in the middle of the first array.
    spoiled = bytearray(content)
    spoiled[120] ^= 255
    for damaged in (b"", b"text", content[:200], content[:-30], bytes(spoiled)):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="not a readable .npz file"):
            load("npz", "train", path=str(path))


# ---------------------------------------------------------------- folder


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _noise(seed, shape=(6, 5, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two train images and one test image a class; classes written in no order."""
    for label, name in ((1, "bee"), (2, "cow"), (0, "ant")):
        for number in range(2):
            _save(tmp_path / "train" / name / f"{number}.png", _noise(10 * label + number))
        _save(tmp_path / "test" / name / "0.png", _noise(100 + label))
    return tmp_path


def test_folder_reads_pixels_and_sorts_classes(folder):
    (folder / "train" / "bee" / "notes.txt").write_text("not an image")
    train, test = (
        load("folder", "train", path=str(folder)),
        load("folder", "test", path=str(folder)),
    )
    assert train.info.class_names == ("ant", "bee", "cow")
    assert train.info.image_shape == (6, 5, 3) and train.info.num_classes == 3
    images, labels = train.arrays()
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] == train.labels().tolist()
    for row, seed in enumerate((0, 1, 10, 11, 20, 21)):
        assert np.array_equal(images[row], _noise(seed))
    assert np.array_equal(test[2][0], _noise(102)) and test[2][1] == 2


def test_folder_grey_stays_one_channel_and_one_colour_image_makes_all_rgb(tmp_path):
    for number in range(3):
        _save(tmp_path / "train" / "a" / f"{number}.png", _noise(number, (4, 4)))
    grey = load("folder", "train", path=str(tmp_path))
    assert grey.info.image_shape == (4, 4, 1)
    assert np.array_equal(grey[1][0][..., 0], _noise(1, (4, 4)))
    _save(tmp_path / "train" / "a" / "9.png", _noise(9, (4, 4, 3)))
    mixed = load("folder", "train", path=str(tmp_path))
    assert mixed.info.image_shape == (4, 4, 3)
    assert np.array_equal(mixed[1][0], np.repeat(_noise(1, (4, 4, 1)), 3, axis=2))


def test_folder_without_train_and_test_is_split_four_to_one(tmp_path):
    for label, name in enumerate("ab"):
        for number in range(10):
            _save(tmp_path / name / f"{number}.png", np.full((2, 2), 10 * label + number, np.uint8))
    train, test = (
        load("folder", "train", path=str(tmp_path)),
        load("folder", "test", path=str(tmp_path)),
    )
    assert np.bincount(train.labels()).tolist() == [8, 8]
    assert np.bincount(test.labels()).tolist() == [2, 2]
    seen = [*train.arrays()[0][:, 0, 0, 0], *test.arrays()[0][:, 0, 0, 0]]
    assert sorted(int(level) for level in seen) == list(range(20))


def test_folder_with_unequal_shapes_needs_a_size(folder):
    _save(folder / "train" / "bee" / "wide.jpg", _noise(3, (6, 12, 3)))
    with pytest.raises(UsageError, match=r"data\.image_size=0: .*wide\.jpg' is 6 x 12.* 6 x 5"):
        load("folder", "train", path=str(folder))
    train = load("folder", "train", path=str(folder), image_size=4)
    assert train.info.image_shape == (4, 4, 3)
    assert train.arrays()[0].shape == (7, 4, 4, 3)


def test_resize_keeps_proportions_and_cuts_the_centre():
    # Columns 0..11 of a 4 x 12 image; the centre square at half size covers columns 4..7.
    wide = np.repeat(np.arange(12, dtype=np.uint8)[None, :, None] * 20, 4, axis=0)
    assert np.array_equal(resize(wide, 4), wide[:, 4:8])
    halved = resize(wide, 2)[..., 0].astype(int)
    assert halved.shape == (2, 2)
    assert np.all(np.abs(halved - [90, 130]) <= 2)
    assert np.array_equal(resize(np.full((5, 9, 3), 77, np.uint8), 16), np.full((16, 16, 3), 77))
    with pytest.raises(UsageError, match="1, 3 or 4 channels are resized, got 2"):
        resize(np.zeros((4, 4, 2), np.uint8), 2)


def test_image_size_applies_to_arrays_too():
    digits = load("digits", "test", image_size=16)
    assert digits.info.image_shape == (16, 16, 1)
    assert digits.arrays()[0].shape == (500, 16, 16, 1)


def test_folder_names_the_unreadable_image(folder):
    path = folder / "train" / "cow" / "1.png"
    path.write_bytes(b"no image at all")
    with pytest.raises(UsageError, match=r"cow/1\.png': not a readable image"):
        load("folder", "train", path=str(folder))
    _save(path, _noise(5))
    path.write_bytes(path.read_bytes()[:90])  # the header is whole, the pixels are not
    train = load("folder", "train", path=str(folder))
    with pytest.raises(UsageError, match=r"cow/1\.png': not a readable image"):
        train.arrays()


def test_folder_refuses_more_than_eight_bits(tmp_path):
    _save(tmp_path / "train" / "a" / "0.png", np.full((4, 4), 40000, np.uint16))
    with pytest.raises(UsageError, match="image mode 'I;16' has more than 8 bits"):
        load("folder", "train", path=str(tmp_path))


def test_folder_refuses_what_is_not_there(tmp_path, folder):
    with pytest.raises(UsageError, match="no such folder"):
        load("folder", "train", path=str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no images; expected one folder a class"):
        load("folder", "train", path=str(tmp_path / "empty"))
    (folder / "train" / "dog").mkdir()
    with pytest.raises(UsageError, match="train/dog': no images in this class folder"):
        load("folder", "train", path=str(folder))
    (folder / "train" / "dog").rmdir()
    _save(folder / "test" / "eel" / "0.png", _noise(0))
    with pytest.raises(UsageError, match="test/eel': no such class in train/"):
        load("folder", "test", path=str(folder))
    (folder / "test").rename(folder / "elsewhere")
    with pytest.raises(UsageError, match=r"holds train/ but no test/"):
        load("folder", "test", path=str(folder))
    (folder / "train").rename(folder / "val")
    with pytest.raises(UsageError, match=r"holds val/ but no train/"):
        load("folder", "train", path=str(folder))


def test_a_pickled_source_leaves_its_decoded_images_behind(folder):
    train = load("folder", "train", path=str(folder))
    before = len(pickle.dumps(train))
    images, _ = train.arrays()
    assert train.arrays()[0] is images
    copy = pickle.loads(pickle.dumps(train))
    assert len(pickle.dumps(train)) == before
    assert np.array_equal(copy.arrays()[0], images)


# ---------------------------------------------------------------- load


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits", "validation", {}), "split='validation': unknown split.*test, train"),
        (("digits", "train", {"image_size": -1}), "data.image_size=-1"),
        (("idx", "train", {}), "data.path='': expected the path that data.name='idx' reads"),
    ],
)
def test_load_refuses(arguments, message):
    name, split, options = arguments
    with pytest.raises(UsageError, match=message):
        load(name, split, **options)


def test_images_that_are_stored_turned_are_counted_in_a_line(folder, caplog):
    path = folder / "train" / "ant" / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_noise(5)).save(path, exif=exif)
    load("folder", "train", path=str(folder))
    assert len(caplog.messages) == 1
    assert "1 of 7 images are stored turned" in caplog.messages[0] and str(path) in caplog.text
    caplog.clear()
    load("folder", "test", path=str(folder))
    assert not caplog.messages
