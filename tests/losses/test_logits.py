"""Entropy and the mean squared difference of logits against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from loss_reference import assert_close, numeric_gradient, random_logits
from scipy.special import softmax

from distill_jax import losses
from distill_jax.errors import UsageError


def entropy_reference(logits, temperature):
    return scipy.stats.entropy(softmax(np.asarray(logits, np.float64) / temperature, -1), axis=-1)


class TestEntropy:
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    @pytest.mark.parametrize("shape", [(7, 2), (1, 10), (3, 1000), (2, 3, 5), (6,)])
    def test_value(self, shape, temperature):
        logits = random_logits(*shape)
        expected = entropy_reference(logits, temperature)
        values = losses.entropy(logits, temperature)
        assert values.shape == shape[:-1] and values.dtype == jnp.float32
        assert_close(values, expected)
        assert_close(jax.jit(losses.entropy)(logits, temperature), expected)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_gradient(self, temperature):
        logits = random_logits(3, 5)
        slope = jax.grad(lambda x: losses.entropy(x, temperature).sum())(
            jnp.asarray(logits, jnp.float32)
        )
        assert_close(slope, numeric_gradient(lambda x: entropy_reference(x, temperature), logits))

    def test_extremes(self):
        logits = np.array([[200.0, -200.0], [-200.0, -200.0], [1e4, -np.inf]])
        assert_close(losses.entropy(logits), [0, np.log(2), 0])
        slope = jax.grad(lambda x: losses.entropy(x).sum())(jnp.asarray(logits, jnp.float32))
        assert_close(slope, np.zeros((3, 2)))

    def test_bfloat16_is_upcast_first(self):
        logits = jnp.asarray(random_logits(4, 10), jnp.bfloat16)
        assert losses.entropy(logits).dtype == jnp.float32
        assert_close(losses.entropy(logits), entropy_reference(logits, 1.0))

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_temperature_must_be_positive(self):
        with pytest.raises(UsageError, match="temperature=0: expected a positive number"):
            losses.entropy(np.zeros(3), 0)


class TestLogitMSE:
    @pytest.mark.parametrize("shape", [(7, 2), (1, 10), (3, 1000), (2, 3, 5), (6,)])
    def test_value(self, shape):
        student, teacher = random_logits(*shape), random_logits(*shape, seed=1)
        expected = ((student - teacher) ** 2).mean(-1)
        assert_close(losses.logit_mse(student, teacher), expected)
        assert_close(jax.jit(losses.logit_mse)(student, teacher), expected)

    def test_gradient_reaches_the_student_alone(self):
        student, teacher = (jnp.asarray(random_logits(3, 5, seed=i), jnp.float32) for i in (0, 1))
        slopes = jax.grad(lambda s, t: losses.logit_mse(s, t).sum(), argnums=(0, 1))(
            student, teacher
        )
        assert_close(slopes[0], 2 * (np.asarray(student) - np.asarray(teacher)) / 5)
        assert not np.any(slopes[1])

    def test_mask_is_subset(self):
        student, teacher = random_logits(4, 5), random_logits(4, 5, seed=1)
        where = np.array([True, False, False, True])
        expected = ((student - teacher)[where] ** 2).mean()
        assert_close(losses.mean(losses.logit_mse(student, teacher), where), expected)

    def test_zero_where_student_is_teacher_and_finite_where_far(self):
        logits = random_logits(3, 5)
        np.testing.assert_array_equal(losses.logit_mse(logits, logits), 0)
        assert_close(losses.logit_mse(np.full(3, 200.0), np.full(3, -200.0)), 160_000)

    def test_bfloat16_is_upcast_first(self):
        student, teacher = (jnp.asarray(random_logits(4, 10, seed=i), jnp.bfloat16) for i in (0, 1))
        exact = (np.asarray(student, np.float64) - np.asarray(teacher, np.float64)) ** 2
        assert losses.logit_mse(student, teacher).dtype == jnp.float32
        assert_close(losses.logit_mse(student, teacher), exact.mean(-1))

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_shapes_must_agree(self):
        with pytest.raises(UsageError, match="expected one shape"):
            losses.logit_mse(np.zeros((8, 10)), np.zeros((8, 100)))
