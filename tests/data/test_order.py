"""Permutations, splits and the training order: exact, pure, and stratified."""

import numpy as np
import pytest
from scipy.stats import chisquare

from distill_jax.data import Order, load, splits
from distill_jax.data.order import permutation, stratified
from distill_jax.errors import UsageError


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train")


def test_order_is_pinned():
    # A run must find its order again after an upgrade of numpy: these numbers never change.
    assert permutation(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert Order(np.arange(100, 105), 7).ids(3, 6).tolist() == [102, 100, 103, 101, 102, 104]


def test_every_id_once_an_epoch_and_epochs_differ():
    ids = np.array([3, 5, 8, 13, 21, 34, 55, 89])
    order = Order(ids, 4)
    epochs = [order.ids(epoch * 8, 8) for epoch in range(30)]
    for epoch in epochs:
        assert epoch.dtype == np.int32
        assert sorted(epoch.tolist()) == ids.tolist()
    assert len({tuple(epoch) for epoch in epochs}) > 25
    assert order.ids(0, 8).tolist() != Order(ids, 5).ids(0, 8).tolist()


@pytest.mark.parametrize("batch", [1, 3, 7, 10, 25])
def test_order_is_independent_of_batch_size_and_of_what_was_read_before(batch):
    whole = Order(np.arange(10), 11).ids(0, 75)
    order = Order(np.arange(10), 11)
    parts = [order.ids(start, min(batch, 75 - start)) for start in range(0, 75, batch)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    for start in (74, 40, 9, 0):
        assert Order(np.arange(10), 11).ids(start, 1) == whole[start]


def test_first_places_are_uniform():
    firsts = [Order(np.arange(6), seed).ids(0, 1)[0] for seed in range(1000)]
    assert chisquare(np.bincount(firsts, minlength=6)).pvalue > 1e-3


def test_order_needs_ids():
    with pytest.raises(UsageError, match="at least one id"):
        Order(np.zeros(0), 0)


def test_stratified_keeps_shares_and_the_exact_count():
    labels = np.repeat([0, 1, 2, 5], [50, 31, 17, 3])
    for count in (0, 1, 10, 33, 100, 101):
        chosen = stratified(labels, count, 3, 0)
        assert len(set(chosen.tolist())) == count
        sizes = np.bincount(labels[chosen], minlength=6)
        shares = np.bincount(labels, minlength=6) * count / len(labels)
        assert np.all(np.abs(sizes - shares) < 1)


@pytest.mark.parametrize(("validation", "count"), [(0.2, 259), (100, 100), (0.0001, 1), (0, 0)])
def test_splits_are_disjoint_sorted_and_stratified(digits, validation, count):
    train, held_out = splits(digits, validation=validation, split_seed=0)
    assert train.dtype == held_out.dtype == np.int32
    assert len(held_out) == count
    assert sorted([*train, *held_out]) == list(range(1297))
    assert np.all(np.diff(train) > 0) and np.all(np.diff(held_out) > 0)
    labels = digits.labels()
    shares = np.bincount(labels, minlength=10) * count / 1297
    assert np.all(np.abs(np.bincount(labels[held_out], minlength=10) - shares) < 1)


def test_splits_depend_on_the_seed_alone(digits):
    first = splits(digits, validation=0.1, split_seed=3, fraction=0.5)
    again = splits(load("digits", "train"), validation=0.1, split_seed=3, fraction=0.5)
    other = splits(digits, validation=0.1, split_seed=4, fraction=0.5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_filters_leave_validation_and_each_other_alone(digits):
    def split(**options):
        return splits(digits, validation=0.15, split_seed=9, **options)

    labels = digits.labels()
    train, held_out = split()
    part, held_out_of_part = split(fraction=0.1)
    threes, held_out_of_threes = split(only_classes=(3, "7"), exclude_classes=("7",))
    fewer, _ = split(fraction=0.1, exclude_classes=(3,))
    assert np.array_equal(held_out, held_out_of_part)
    assert np.array_equal(held_out, held_out_of_threes)
    assert set(labels[held_out]) == set(range(10))
    assert len(part) == round(0.1 * len(train))
    assert np.array_equal(threes, train[labels[train] == 3])
    assert np.array_equal(fewer, part[labels[part] != 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, r"data\.validation=1\.0: expected a fraction in \[0, 1\)"),
        ({"validation": -1}, r"data\.validation=-1: .* count in \[0, 1297\)"),
        ({"validation": 1297}, r"data\.validation=1297"),
        ({"validation": True}, r"data\.validation=True"),
        ({"fraction": 0.0}, r"data\.fraction=0\.0: expected a number in \(0, 1\]"),
        ({"fraction": 1.5}, r"data\.fraction=1\.5"),
        ({"fraction": 0.0001}, r"no example is left to train on of 1297"),
        ({"only_classes": (10,)}, r"data\.only_classes=10: .*\[0, 10\)"),
        ({"exclude_classes": ("x",)}, r"data\.exclude_classes='x': unknown class"),
        ({"exclude_classes": range(10)}, r"no example is left"),
        ({"only_classes": (1,), "exclude_classes": (1,)}, r"no example is left"),
    ],
)
def test_splits_refuse(digits, options, message):
    with pytest.raises(UsageError, match=message):
        splits(digits, **{"validation": 0.1, "split_seed": 0, **options})
