"""Absolute values: where two values are equal, the subgradient zero is taken, as promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from distill_jax import losses
from distill_jax.losses.vectors import magnitude

MAP = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))


def test_a_magnitude_is_the_absolute_value_but_for_its_slope_at_zero():
    x = jnp.array([-2.5, -0.0, 0.0, 1e-30, 3.0, jnp.inf])
    np.testing.assert_array_equal(magnitude(x), jnp.abs(x))
    np.testing.assert_array_equal(
        jax.vmap(jax.grad(magnitude))(x[jnp.array([0, 1, 2, 4])]), [-1, 0, 0, 1]
    )
    assert jnp.isnan(magnitude(jnp.float32(jnp.nan)))


@pytest.mark.parametrize(
    ("loss", "student"),
    [
        (losses.total_variation, jnp.array([[0.0, 1.0, 2.0], [3.0, -1.0, 0.5]])),
        (losses.correlation_congruence, jax.random.normal(jax.random.key(1), (4, 5))),
        (losses.factor_transfer, MAP),
        (lambda s, t: losses.factor_transfer(s, t, variant="paper"), MAP),
        (losses.relational_distance, jax.random.normal(jax.random.key(2), (4, 5))),
        (losses.relational_angle, jax.random.normal(jax.random.key(3), (4, 5))),
    ],
)
def test_a_student_that_equals_its_teacher_has_no_gradient(loss, student):
    gradient = jax.grad(lambda s: jnp.sum(loss(s, student)))(student)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(student))


def test_one_tie_among_other_gaps_does_not_move_the_gradient():
    # P = (a, b, c), Q = (b, a, c), c to the last bit: class 2 is a tie, whose |gap| has no slope.
    teacher, student = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[1.0, 2.0, 0.0]])
    gradient = jax.grad(lambda s: losses.total_variation(s, teacher)[0])(student)
    q = softmax(np.float64(student), axis=1)[0]
    signs = np.array([-1.0, 1.0, 0.0])  # of Q - P
    np.testing.assert_allclose(gradient[0], 0.5 * q * (signs - np.sum(signs * q)), atol=1e-6)


def test_neighbours_that_agree_pull_on_nothing():
    student = jnp.array([[1.0], [2.0], [5.0]])
    teacher = jnp.array([[1.0], [0.0], [1.0]])  # gaps 0, 2, 4
    gradient = jax.grad(lambda s: jnp.sum(losses.correlation_congruence(s, teacher)))(student)
    np.testing.assert_allclose(gradient[:, 0], [0.0, 1.5 * 4.0, 1.5 * 2.0], rtol=1e-6)
