"""Paired comparisons of two models on the same test examples: bootstrap intervals, McNemar's test.

Both treat the examples as a sample and the two models as fixed: they tell whether other examples
would have changed the result, not whether another seed would. Left out on purpose: corrections for
many comparisons, and everything that needs the examples to be independent of their order.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 5000
LEVEL = 0.95
_DRAWS = 2**22  # indices that exist at a time


class Interval(NamedTuple):
    """A difference with its interval.

    Attributes:
      value: on the examples as they are.
      low: the lower end.
      high: the upper end.
    """

    value: float
    low: float
    high: float


def bootstrap_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    counts: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """The difference of two means over the same examples, with a percentile bootstrap interval.

    Each resample draws N examples with replacement, the same ones for both models, and gives
    sum(first - second) / sum(counts) over them; the ends are quantiles of these values.

    Args:
      first: [N] a value of each example under the first model.
      second: [N] under the second one.
      counts: [N] how many tokens a value is the sum of; None for one each.
      resamples: how many.
      seed: of the draws.
      level: the share of resamples within the interval.

    Raises:
      ValueError: different lengths, or no example.

    Reference:
      Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 (percentile
      intervals) and 8 (resampling whole units).
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    weights = np.ones_like(a) if counts is None else np.asarray(counts, np.float64)
    if a.ndim != 1 or not len(a) or not a.shape == b.shape == weights.shape:
        raise ValueError(
            f"{a.shape}, {b.shape}, {weights.shape}: expected equal lengths, 1 or more"
        )
    gap = a - b
    random = np.random.default_rng(seed)
    chunk = max(1, _DRAWS // len(gap))
    values = []
    for begin in range(0, resamples, chunk):
        rows = random.integers(len(gap), size=(min(chunk, resamples - begin), len(gap)))
        values.append(gap[rows].sum(axis=1) / weights[rows].sum(axis=1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return Interval(float(gap.sum() / weights.sum()), float(low), float(high))


def mcnemar(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """McNemar's exact test of two classifiers on the same examples.

    Args:
      first: [N] whether the first is correct.
      second: [N] whether the second is.

    Returns:
      How many examples the first alone has right, how many the second alone, and the two-sided
      binomial probability of a split at least as uneven, if both were equally good.

    Reference:
      McNemar 1947, "Note on the sampling error of the difference between correlated proportions";
      the exact form: Dietterich 1998, section 3.1, with the binomial in place of chi squared.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    ours, theirs = int(np.sum(a & ~b)), int(np.sum(~a & b))
    total, fewer = ours + theirs, min(ours, theirs)
    if not total:
        return ours, theirs, 1.0
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        for k in range(fewer + 1)
    ]
    tail = sum(math.exp(value - total * math.log(2)) for value in logs)
    return ours, theirs, min(1.0, 2 * tail)
