"""Paired comparisons against scipy's bootstrap and binomial test."""

import numpy as np
import pytest
import scipy.stats

from distill_jax.evaluation import paired


def losses(count=400, seed=0):
    random = np.random.default_rng(seed)
    shared = random.gamma(2.0, size=count)
    return shared + random.normal(size=count), shared + 0.15 + random.normal(size=count)


def test_the_interval_is_that_of_scipy():
    a, b = losses()
    found = paired.bootstrap_difference(a, b)
    reference = scipy.stats.bootstrap(
        (a, b),
        lambda x, y: np.mean(x - y),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert found.value == pytest.approx(np.mean(a - b))
    deviation = np.std(a - b) / np.sqrt(len(a))
    # Two sets of 5,000 resamples: their 2.5 % quantiles differ by about 0.04 deviations.
    assert abs(found.low - reference.low) < 0.15 * deviation
    assert abs(found.high - reference.high) < 0.15 * deviation


def test_pairing_matters():
    """The same values in another order, which only an unpaired interval would not notice."""
    a, b = losses()
    width = np.diff(paired.bootstrap_difference(a, b)[1:])
    shuffled = np.random.default_rng(1).permutation(b)
    assert np.diff(paired.bootstrap_difference(a, shuffled)[1:]) > 1.3 * width


def test_sums_are_divided_by_their_counts_in_each_resample():
    """Rows of text of different lengths, by a loop over the same draws."""
    a, b = losses(50)
    counts = np.random.default_rng(3).integers(1, 200, 50)
    found = paired.bootstrap_difference(a, b, counts=counts, resamples=300, seed=5)
    rows = np.random.default_rng(5).integers(50, size=(300, 50))
    values = []
    for draw in rows:
        gap = sum(float(a[i]) - float(b[i]) for i in draw)
        values.append(gap / sum(int(counts[i]) for i in draw))
    assert found.value == pytest.approx((a.sum() - b.sum()) / counts.sum())
    assert found[1:] == pytest.approx(np.quantile(values, [0.025, 0.975]), rel=1e-9)


def test_many_examples_are_drawn_in_parts_and_equal_calls_agree():
    a, b = losses(30_000)
    assert paired.bootstrap_difference(a, b, resamples=300) == paired.bootstrap_difference(
        a, b, resamples=300
    )


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (1, 0), (7, 3), (40, 22), (600, 655)])
def test_mcnemar_is_the_binomial_test(ours, theirs):
    a = np.array([1] * ours + [0] * theirs + [1, 0] * 10)
    b = np.array([0] * ours + [1] * theirs + [1, 0] * 10)
    expected = scipy.stats.binomtest(ours, ours + theirs).pvalue if ours + theirs else 1.0
    assert paired.mcnemar(a, b) == (ours, theirs, pytest.approx(expected, rel=1e-9))


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_lengths_that_do_not_fit_are_refused(a, b):
    with pytest.raises(ValueError):
        paired.bootstrap_difference(a, b)
