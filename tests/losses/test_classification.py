"""Cross-entropy against sklearn and float64, with hard, soft and smoothed targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_reference import assert_close, golden_logits, numeric_gradient, random_logits
from scipy.special import softmax

from distill_jax import losses
from distill_jax.errors import UsageError

compiled = jax.jit(losses.cross_entropy)


def reference(logits, targets, label_smoothing=0.0):
    """Per example, from probabilities: minus the smoothed target's dot product with log p."""
    p = softmax(np.asarray(logits, np.float64), -1)
    if np.issubdtype(targets.dtype, np.integer):
        targets = np.eye(p.shape[-1])[targets]
    targets = (1 - label_smoothing) * targets + label_smoothing / p.shape[-1]
    return -(targets * np.log(p)).sum(-1)


def some_labels(*shape, classes=10):
    return np.random.default_rng(2).integers(0, classes, shape)


def some_probabilities(*shape):
    return softmax(random_logits(*shape, seed=3), -1).astype(np.float32).astype(np.float64)


class TestCrossEntropy:
    def test_golden(self):
        student, _, labels = golden_logits()
        assert_close(losses.mean(losses.cross_entropy(student, labels)), 2.952768238)

    def test_mean_is_sklearns_log_loss(self):
        logits, labels = random_logits(50, 10), some_labels(50)
        expected = sklearn.metrics.log_loss(labels, softmax(logits, -1), labels=np.arange(10))
        assert_close(losses.mean(losses.cross_entropy(logits, labels)), expected)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
    @pytest.mark.parametrize("shape", [(7, 2), (4, 10), (1, 10), (3, 1000), (2, 3, 5), (6,)])
    def test_value(self, shape, smoothing):
        logits = random_logits(*shape)
        for targets in (some_labels(*shape[:-1], classes=shape[-1]), some_probabilities(*shape)):
            expected = reference(logits, np.asarray(targets), smoothing)
            values = compiled(logits, targets, label_smoothing=smoothing)
            assert values.shape == shape[:-1] and values.dtype == jnp.float32
            assert_close(values, expected)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1, jnp.float32(0.1)])
    def test_value_outside_jit(self, smoothing):
        logits = random_logits(4, 10)
        for targets in (some_labels(4), some_probabilities(4, 10)):
            values = losses.cross_entropy(logits, targets, label_smoothing=smoothing)
            assert_close(values, reference(logits, targets, float(smoothing)))

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_gradient(self, smoothing):
        logits = random_logits(3, 5)
        for targets in (some_labels(3, classes=5), some_probabilities(3, 5)):
            slope = jax.grad(
                lambda x, y=targets: losses.cross_entropy(x, y, label_smoothing=smoothing).sum()
            )(jnp.asarray(logits, jnp.float32))
            assert_close(
                slope,
                numeric_gradient(lambda x, y=targets: reference(x, y, smoothing), logits),
            )

    def test_no_gradient_to_soft_targets(self):
        logits, targets = random_logits(3, 5), some_probabilities(3, 5)
        slope = jax.grad(lambda y: losses.cross_entropy(logits, y).sum())(
            jnp.asarray(targets, jnp.float32)
        )
        assert not np.any(slope)

    def test_one_hot_is_id(self):
        logits, labels = random_logits(6, 10), some_labels(6)
        assert_close(
            losses.cross_entropy(logits, np.eye(10)[labels]), losses.cross_entropy(logits, labels)
        )

    def test_mask_is_subset_even_with_ids_that_are_no_class(self):
        logits, labels = random_logits(6, 10), some_labels(6)
        labels[[1, 4]] = [-1, 10]
        where = labels == np.clip(labels, 0, 9)
        value, slope = jax.value_and_grad(
            lambda x: losses.mean(losses.cross_entropy(x, labels), where)
        )(jnp.asarray(logits, jnp.float32))
        assert_close(value, reference(logits[where], labels[where]).mean())
        assert np.all(np.isfinite(slope)) and not np.any(slope[~where])

    def test_id_that_is_no_class_is_seen(self):
        values = losses.cross_entropy(np.zeros((4, 3)), np.array([-1, 0, 2, 3]))
        np.testing.assert_array_equal(np.isnan(values), [True, False, False, True])

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_finite_where_softmax_saturates(self, smoothing):
        logits = np.array([[200.0, -200.0], [200.0, -200.0], [1e4, -1e4], [-1e4, -1e4]])
        labels = np.array([0, 1, 1, 0])
        for targets in (labels, np.eye(2)[labels]):
            values, slope = jax.value_and_grad(
                lambda x, y=targets: losses.cross_entropy(x, y, label_smoothing=smoothing).sum()
            )(jnp.asarray(logits, jnp.float32))
            assert np.isfinite(values) and np.all(np.isfinite(slope))
        expected = (1 - smoothing) * np.array([0, 400, 2e4, np.log(2)]) + smoothing * np.array(
            [200, 200, 1e4, np.log(2)]
        )
        assert_close(losses.cross_entropy(logits, labels, label_smoothing=smoothing), expected)

    def test_bfloat16_is_upcast_first(self):
        logits = jnp.asarray(random_logits(4, 10), jnp.bfloat16)
        values = losses.cross_entropy(logits, some_labels(4))
        assert values.dtype == jnp.float32
        assert_close(values, reference(logits, some_labels(4)))

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(
        row=st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5),
        label=st.integers(0, 4),
    )
    def test_any_logits(self, row, label):
        targets = np.array([label])
        assert_close(compiled(np.array([row]), targets), reference([row], targets))

    @pytest.mark.parametrize(
        "targets",
        [np.zeros((4, 3), int), np.zeros(4), np.zeros((4, 2)), np.zeros(3, int)],
        ids=["ids as probabilities", "probabilities as ids", "classes", "batch"],
    )
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_targets_must_fit(self, targets):
        with pytest.raises(UsageError, match=r"targets .*: expected integers\[4\] or probab.*4, 3"):
            losses.cross_entropy(np.zeros((4, 3)), targets)

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_smoothing_outside_its_range(self):
        with pytest.raises(UsageError, match="label_smoothing=-0.1: expected a number from 0 to 1"):
            losses.cross_entropy(np.zeros((4, 3)), np.zeros(4, int), label_smoothing=-0.1)
