"""Feeds: resident and streamed agree from any position, evaluation counts each example once."""

import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from distill_jax import data
from distill_jax.data.images import feed
from distill_jax.data.images.sources.base import ArrayExamples, Info
from distill_jax.errors import UsageError

DIGITS_TRAIN = "5df3db0de9dbc6b56812f8ffbebb89cdf3753069a490a9df00753fdfe962311f"
DIGITS_TEST = "88b94d5c64c8a2045379c3e44d9271261ca96c098eb8b2b8d5448bf5b77ae7b7"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train")


@pytest.fixture(scope="module")
def order():
    # An epoch of 50, so that batches of 16 span epochs.
    return data.Order(np.arange(100, 150), 5)


def _take(feed, position, count):
    batches = feed.at(position)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_equals_resident(digits, order, workers):
    images, labels = digits.arrays()
    resident = _take(data.training_feed(digits, order, 16, resident=True, workers=0), 37, 9)
    streamed = _take(data.training_feed(digits, order, 16, resident=False, workers=workers), 37, 9)
    for ids, batch in zip(resident, streamed, strict=True):
        assert set(ids) == {"id"} and set(batch) == {"id", "image", "label"}
        assert batch["id"].dtype == batch["label"].dtype == np.int32
        assert batch["image"].shape == (16, 8, 8, 1) and batch["image"].dtype == np.uint8
        assert np.array_equal(ids["id"], batch["id"])
        assert np.array_equal(batch["image"], images[ids["id"]])
        assert np.array_equal(batch["label"], labels[ids["id"]])


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("position", [0, 1, 16, 49, 50, 333])
def test_any_position_gives_the_suffix(digits, order, resident, position):
    training = data.training_feed(digits, order, 16, resident=resident, workers=0)
    whole = order.ids(0, 600)
    ids = np.concatenate([batch["id"] for batch in _take(training, position, 4)])
    assert ids.tolist() == whole[position : position + 64].tolist()


class Counted:
    """Examples that note which ids are read."""

    def __init__(self, examples):
        self._examples, self.read = examples, []
        self.info = examples.info

    def batch(self, ids):
        self.read.extend(int(i) for i in ids)
        return self._examples.batch(ids)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_each_batch(digits, order, resident, processes):
    whole = _take(data.training_feed(digits, order, 16, resident=resident, workers=0), 37, 3)
    tested = data.evaluation_feed(digits, np.arange(40), 16, resident=resident)
    for process in range(processes):
        part = slice(process * 16 // processes, (process + 1) * 16 // processes)
        own = Counted(digits)
        options = {"resident": resident, "process": process, "processes": processes}
        feed_of_it = data.training_feed(own, order, 16, workers=0, **options)
        _assert_parts(_take(feed_of_it, 37, 3), whole, part)
        expected = [int(i) for batch in whole for i in batch["id"][part]]
        # A streamed feed reads ahead, of its own rows alone.
        assert resident or set(expected) <= set(own.read)
        assert set(own.read) <= {int(i) for n in range(9) for i in order.ids(37 + 16 * n, 16)[part]}
        shared = data.evaluation_feed(digits, np.arange(40), 16, **options)
        assert len(shared) == len(tested) == 3
        _assert_parts(list(shared), list(tested), part)


def _assert_parts(found, whole, part):
    for own, batch in zip(found, whole, strict=True):
        assert own.keys() == batch.keys()
        for name, values in own.items():
            assert np.array_equal(values, batch[name][part]), name


@pytest.mark.parametrize(("batch_size", "processes"), [(6, 4), (0, 1)])
def test_a_batch_that_cannot_be_shared_is_refused(digits, order, batch_size, processes):
    message = f"training.batch_size={batch_size}: expected a positive multiple of the {processes}"
    options = {"resident": True, "processes": processes}
    with pytest.raises(UsageError, match=message):
        data.training_feed(digits, order, batch_size, workers=0, **options)
    with pytest.raises(UsageError, match=message):
        data.evaluation_feed(digits, np.arange(5), batch_size, **options)


def test_a_damaged_image_is_named_through_a_worker(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((16, 16), number, np.uint8)).save(folder / f"{number}.bmp")
    damaged = folder / "2.bmp"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    examples = data.load("folder", "train", path=str(tmp_path))
    training = data.training_feed(
        examples, data.Order(np.arange(4), 0), 2, resident=False, workers=1
    )
    with pytest.raises(UsageError, match=r"2\.bmp': not a readable image"):
        _take(training, 0, 3)


SCRIPT = """
import numpy as np
print("started")
from distill_jax import data

class Mine(data.Examples):
    info = data.Info("mine", 2, (2, 2, 1), ("a", "b"))
    def __len__(self): return 20
    def __getitem__(self, index): return np.full((2, 2, 1), index, np.uint8), index % 2
    def labels(self): return np.arange(20, dtype=np.int32) % 2

order = data.Order(np.arange(20), 1)
batches = data.training_feed(Mine(), order, 4, resident=False, workers=2).at(3)
for start in range(3, 43, 4):
    batch = next(batches)
    assert batch["image"][:, 0, 0, 0].tolist() == order.ids(start, 4).tolist()
assert __file__.endswith("script.py")
print("finished")
"""


@pytest.mark.slow
def test_workers_run_from_a_script_without_a_main_guard(tmp_path):
    # The set is defined in the script, the stream is left open, and nothing is printed twice.
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    path = {"PYTHONPATH": str(pathlib.Path(feed.__file__).parents[3])}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **path}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "started\nfinished\n"
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(("count", "batch"), [(10, 4), (8, 4), (3, 4), (1, 1), (0, 4)])
def test_evaluation_counts_each_example_once(digits, resident, count, batch):
    images, labels = digits.arrays()
    ids = np.arange(200, 200 + 3 * count, 3)
    batches = data.evaluation_feed(digits, ids, batch, resident=resident)
    assert len(batches) == -(-count // batch)
    for _ in range(2):  # an evaluation can be gone through again
        seen = []
        for one in batches:
            assert one["id"].shape == one["mask"].shape == (batch,)
            assert one["mask"].dtype == bool and one["id"].dtype == np.int32
            assert set(one["id"][~one["mask"]]) <= {one["id"][one["mask"]][-1]}
            seen += one["id"][one["mask"]].tolist()
            if not resident:
                assert np.array_equal(one["image"], images[one["id"]])
                assert np.array_equal(one["label"], labels[one["id"]])
        assert seen == ids.tolist()


# ---------------------------------------------------------------- whole sets


def test_store_is_the_whole_split(digits):
    stored = data.resident_arrays(digits)
    assert stored["image"].shape == (1297, 8, 8, 1) and stored["label"].dtype == np.int32
    image, label = digits[1234]
    assert np.array_equal(stored["image"][1234], image) and stored["label"][1234] == label


def _set(images, labels=None, name="set"):
    labels = np.zeros(len(images), int) if labels is None else labels
    return ArrayExamples(Info(name, 3, images.shape[1:], ("a", "b", "c")), images, labels)


def test_statistics_are_those_of_the_chosen_pixels():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (1500, 5, 4, 3), np.uint8)
    images[..., 2] = 51
    ids = np.arange(0, 1500, 7)
    mean, std = data.statistics(_set(images), ids)
    pixels = images[ids].astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(std[:2], pixels.std(axis=(0, 1, 2))[:2], atol=5.1e-5)
    assert mean[2] == 0.2 and std[2] == 1.0
    assert all(type(value) is float and value == round(value, 4) for value in (*mean, *std))


def test_large_sets_are_sampled_evenly(monkeypatch):
    images = (np.arange(6000) % 250).astype(np.uint8).reshape(-1, 1, 1, 1)
    examples = _set(np.broadcast_to(images, (6000, 2, 2, 1)))
    exact = data.statistics(examples, np.arange(6000))
    monkeypatch.setattr(feed, "SMALL", 1)
    read = []
    batch = examples.batch
    monkeypatch.setattr(examples, "batch", lambda ids: read.extend(ids) or batch(ids))
    monkeypatch.setattr(examples, "arrays", None)
    sampled = data.statistics(examples, np.arange(6000))
    assert len(read) == len(set(read)) == 2048 and set(np.diff(read)) == {2, 3}
    np.testing.assert_allclose(np.array(sampled), np.array(exact), atol=5e-3)
    read.clear()
    first = data.fingerprint(examples)
    assert len(read) == 1024
    assert first == data.fingerprint(examples)


def test_fingerprint_tells_data_apart():
    images = np.random.default_rng(2).integers(0, 256, (20, 3, 3, 1), np.uint8)
    changed = images.copy()
    changed[13, 1, 1, 0] ^= 1
    other_labels = np.zeros(20, int)
    other_labels[7] = 1
    prints = [
        data.fingerprint(examples)
        for examples in (
            _set(images),
            _set(changed),
            _set(images, other_labels),
            _set(images, name="other"),
            _set(images[:-1]),
        )
    ]
    assert len(set(prints)) == 5
    assert prints[0] == data.fingerprint(_set(images.copy()))


def test_digits_never_change():
    # Pins the data and the split: results in this project's tables rest on both.
    assert data.fingerprint(data.load("digits", "train")) == DIGITS_TRAIN
    assert data.fingerprint(data.load("digits", "test")) == DIGITS_TEST
