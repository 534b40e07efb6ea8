"""Adaptive pooling against windows that are averaged one by one."""

import jax.numpy as jnp
import numpy as np
import pytest
from feature_reference import compute, gradient, pooled
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loss_reference import assert_close, random_logits

from distill_jax import losses
from distill_jax.errors import UsageError

side = st.integers(1, 9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(height=side, width=side, size=st.tuples(side, side))
@example(height=8, width=8, size=(4, 2))
@example(height=7, width=5, size=(3, 4))
@example(height=2, width=3, size=(5, 7))
def test_any_size(height, width, size):
    maps = random_logits(2, height, width, 3)
    result = compute(losses.adaptive_average, maps, size=size)
    assert result.dtype == jnp.float32
    assert_close(result, pooled(maps, size))


def test_windows_by_hand():
    """Of five positions: 0 1, 1 2 3, 3 4; and 0 1 2, 2 3 4."""
    row = np.arange(5.0).reshape(1, 1, 5, 1)
    windows = compute(losses.adaptive_average, row, size=(1, 3))
    assert_close(windows[0, 0, :, 0], [0.5, 2.0, 3.5])
    assert_close(compute(losses.adaptive_average, row, size=(1, 2))[0, 0, :, 0], [1.0, 3.0])


def test_same_size_is_untouched():
    maps = random_logits(2, 3, 4, 5)
    np.testing.assert_array_equal(compute(losses.adaptive_average, maps, size=(3, 4)), maps)


def test_gradient_is_the_weight_of_each_position():
    slope = gradient(lambda x: losses.adaptive_average(x, (2, 1))[0, 0, 0, 0])(
        jnp.ones((1, 3, 2, 1))
    )
    assert_close(slope[0, :, :, 0], [[0.25, 0.25], [0.25, 0.25], [0, 0]])


def test_match_size_takes_the_smaller_on_each_axis():
    student, teacher = random_logits(2, 8, 3, 4), random_logits(2, 4, 6, 5, seed=1)
    ours, theirs = compute(losses.match_size, student, teacher)
    assert_close(ours, pooled(student, (4, 3)))
    assert_close(theirs, pooled(teacher, (4, 3)))


def test_match_size_stops_the_teacher():
    maps = jnp.ones((1, 2, 2, 1))
    slopes = gradient(lambda s, t: sum(x.sum() for x in losses.match_size(s, t)), argnums=(0, 1))(
        maps, maps
    )
    assert np.all(slopes[0] == 1) and not np.any(slopes[1])


@pytest.mark.usefixtures("unchecked_shapes")
def test_misuse():
    maps = np.zeros((2, 4, 4, 3))
    with pytest.raises(UsageError, match=r"maps \(2, 4\): expected \[B, H, W, C\]"):
        losses.adaptive_average(maps[:, :, 0, 0], (1, 1))
    for size in ((0, 1), (2,), (1.5, 2)):
        with pytest.raises(UsageError, match="size=.*: expected two positive integers"):
            losses.adaptive_average(maps, size)
    with pytest.raises(UsageError, match="with the same B"):
        losses.match_size(maps, maps[:1])
    with pytest.raises(UsageError, match="expected maps"):
        losses.match_size(maps, maps[:, 0])
