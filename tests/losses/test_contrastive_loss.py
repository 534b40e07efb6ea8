"""Noise-contrastive estimation against loops, in value and gradient, and at the extremes."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from feature_reference import compute, value_and_gradient
from loss_reference import assert_close, numeric_gradient

from distill_jax import losses
from distill_jax.errors import UsageError


def reference(positive, negatives, count):
    values = []
    for hit, misses in zip(positive, negatives, strict=True):
        noise = len(misses) / count
        right = [hit / (hit + noise + 1e-7)]
        right += [noise / (miss + noise + 1e-7) for miss in misses]
        values.append(-sum(map(math.log, right)))
    return np.array(values)


def scores(batch, negatives, count, seed=0):
    rng = np.random.default_rng(seed)
    values = np.exp(3 * rng.standard_normal((batch, 1 + negatives))) / count
    return np.split(values.astype(np.float32).astype(np.float64), [1], axis=1)


@pytest.mark.parametrize(("batch", "negatives", "count"), [(1, 1, 1), (4, 3, 50), (2, 16, 50_000)])
def test_value_and_gradient(batch, negatives, count):
    positive, others = scores(batch, negatives, count)
    positive = positive[:, 0]
    weights = np.arange(1.0, 1 + batch)

    def weighted(p, n):
        values = losses.contrastive_nce(p, n, count=count)
        return (values * weights).sum(), values

    (_, values), slopes = value_and_gradient(weighted, argnums=(0, 1), has_aux=True)(
        np.float32(positive), np.float32(others)
    )
    assert values.shape == (batch,) and values.dtype == jnp.float32
    assert_close(values, reference(positive, others, count))
    by_positive = numeric_gradient(
        lambda x: weights * reference(x, others, count), positive, 1e-5 / count
    )
    by_negatives = numeric_gradient(
        lambda x: weights * reference(positive, x, count), others, 1e-5 / count
    )
    np.testing.assert_allclose(slopes[0], by_positive, rtol=1e-4)
    np.testing.assert_allclose(slopes[1], by_negatives, rtol=1e-4)


@pytest.mark.parametrize("score", [0.0, 1e-12, 1e6])
def test_extreme_scores_stay_finite(score):
    positive, negatives = np.float32([score, 0.1]), np.float32([[0.1, 0.1], [score, score]])
    value, slopes = value_and_gradient(
        lambda p, n: losses.contrastive_nce(p, n, count=50_000).sum(), argnums=(0, 1)
    )(positive, negatives)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


def test_better_scores_cost_less():
    base = compute(losses.contrastive_nce, jnp.array([0.1]), jnp.array([[0.1]]), count=10)
    assert compute(losses.contrastive_nce, jnp.array([0.2]), jnp.array([[0.1]]), count=10) < base
    assert compute(losses.contrastive_nce, jnp.array([0.1]), jnp.array([[0.0]]), count=10) < base


def test_bfloat16_is_upcast_first():
    positive, others = (jnp.asarray(x, jnp.bfloat16) for x in scores(4, 3, 50))
    values = compute(losses.contrastive_nce, positive[:, 0], others, count=50)
    assert values.dtype == jnp.float32
    exact = (np.asarray(x, np.float64) for x in (positive[:, 0], others))
    assert_close(values, reference(*exact, 50))


@pytest.mark.usefixtures("unchecked_shapes")
def test_misuse():
    for positive, negatives in (((4, 1), (4, 3)), ((4,), (3, 3)), ((4,), (4,)), ((4,), (4, 0))):
        with pytest.raises(UsageError, match=r"expected \[B\] and \[B, K\]"):
            losses.contrastive_nce(np.ones(positive), np.ones(negatives), count=50)
    with pytest.raises(UsageError, match="count=0: expected the number of examples"):
        losses.contrastive_nce(np.ones(4), np.ones((4, 3)), count=0)
