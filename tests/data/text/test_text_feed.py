"""Feeds of text: any position, any number of processes, every row once in an evaluation."""

import itertools

import numpy as np
import pytest

from distill_jax.data import Order, text
from distill_jax.errors import UsageError

NAMES = {"id", "tokens", "segments", "positions", "targets", "mask"}


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(1)
    sizes = random.integers(2, 30, 80)
    # 41 rows, a prime, so that no batch size divides it; the last is not full.
    sizes = np.append(sizes, 41 * 32 - 5 - (sizes - 1).sum() + 1)
    tokens = random.integers(1, 500, sizes.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    documents = text.Documents(tokens, random.random(len(tokens)) < 0.7, offsets)
    packed = text.pack(documents, 32, strategy="concatenate")
    assert len(packed) == 41
    return packed


def _take(batches, count):
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("position", [0, 3, 40, 41, 1000])
def test_batches_follow_the_order_from_any_position(rows, position):
    order = Order(np.arange(len(rows)), 7)
    expected = order.ids(0, 1100)
    batches = _take(text.training_feed(rows, order, 8).at(position), 11)
    ids = np.concatenate([batch["id"] for batch in batches])
    assert ids.tolist() == expected[position : position + 88].tolist()
    for batch in batches:
        assert set(batch) == NAMES and batch["tokens"].shape == (8, 32)
        assert batch["id"].dtype == np.int32
        for i, row in enumerate(batch["id"]):
            single = rows.batch(np.array([row]))
            assert all(np.array_equal(single[name][0], batch[name][i]) for name in single)


def test_an_epoch_holds_every_row_once(rows):
    order = Order(np.arange(len(rows)), 7)
    ids = np.concatenate([b["id"] for b in _take(text.training_feed(rows, order, 1).at(0), 82)])
    first, second = ids[:41], ids[41:]
    assert sorted(first) == sorted(second) == list(range(41))
    assert first.tolist() != second.tolist()


def _joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_each_batch(rows, processes):
    order = Order(np.arange(len(rows)), 7)
    single = _take(text.training_feed(rows, order, 8).at(5), 7)
    shares = [
        _take(text.training_feed(rows, order, 8, process=p, processes=processes).at(5), 7)
        for p in range(processes)
    ]
    for whole, *parts in zip(single, *shares, strict=True):
        joined = _joined(parts)
        assert all(np.array_equal(whole[name], joined[name]) for name in NAMES)
    single = text.evaluation_feed(rows, 8)
    shares = [
        text.evaluation_feed(rows, 8, process=p, processes=processes) for p in range(processes)
    ]
    for whole, *parts in zip(single, *shares, strict=True):
        joined = _joined(parts)
        assert all(np.array_equal(whole[name], joined[name]) for name in NAMES)


@pytest.mark.parametrize("batch_size", [1, 8, 41, 64])
def test_an_evaluation_counts_each_row_once(rows, batch_size):
    evaluation = text.evaluation_feed(rows, batch_size)
    batches = list(evaluation)
    assert len(batches) == len(evaluation) == -(-41 // batch_size)
    assert all(batch["tokens"].shape == (batch_size, 32) for batch in batches)
    joined = _joined(batches)
    everything = rows.batch(np.arange(41))
    for name, values in everything.items():
        assert np.array_equal(joined[name][:41], values)
    assert not joined["mask"][41:].any()
    assert joined["id"].tolist() == [*range(41), *[40] * (len(batches) * batch_size - 41)]
    # Again, and at any place.
    assert np.array_equal(next(iter(evaluation))["tokens"], batches[0]["tokens"])
    assert np.array_equal(evaluation[len(batches) - 1]["mask"], batches[-1]["mask"])
    with pytest.raises(IndexError):
        evaluation[len(batches)]


@pytest.mark.parametrize(("batch_size", "processes"), [(6, 4), (0, 1), (-2, 2)])
def test_a_batch_that_cannot_be_shared_is_refused(rows, batch_size, processes):
    order = Order(np.arange(len(rows)), 7)
    with pytest.raises(UsageError, match=f"training.batch_size={batch_size}: expected a positive"):
        text.training_feed(rows, order, batch_size, processes=processes)
    with pytest.raises(UsageError, match=f"training.batch_size={batch_size}: expected a positive"):
        text.evaluation_feed(rows, batch_size, processes=processes)
