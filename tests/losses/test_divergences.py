"""Every divergence against its float64 reference, in value and gradient, and at the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_reference import (
    ATOL,
    DIVERGENCES,
    assert_close,
    golden_logits,
    kl,
    numeric_gradient,
    random_logits,
)
from scipy.special import softmax

from distill_jax import losses
from distill_jax.errors import UsageError

every_divergence = pytest.mark.parametrize("case", DIVERGENCES, ids=lambda case: case.name)
every_temperature = pytest.mark.parametrize("temperature", [1.0, 4.0])


@every_divergence
class TestEveryDivergence:
    @every_temperature
    @pytest.mark.parametrize("shape", [(4, 2), (4, 10), (10,), (4, 1000), (2, 3, 5)])
    def test_value(self, case, temperature, shape):
        student, teacher = random_logits(*shape), random_logits(*shape, seed=1)
        expected = case.expected(student, teacher, temperature)
        values = case.compiled(student, teacher, temperature)
        assert values.shape == shape[:-1] and values.dtype == jnp.float32
        assert_close(values, expected)

    def test_value_outside_jit(self, case):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        assert_close(case.value(student, teacher, 4.0), case.expected(student, teacher, 4.0))

    @every_temperature
    @pytest.mark.parametrize("shape", [(4, 2), (4, 10)])
    def test_gradient(self, case, temperature, shape):
        student, teacher = random_logits(*shape), random_logits(*shape, seed=1)
        expected = numeric_gradient(lambda x: case.expected(x, teacher, temperature), student)
        assert_close(case.gradient(student, teacher, temperature), expected)

    def test_gradient_of_the_temperature(self, case):
        """A learned temperature: it acts on the teacher's distribution as on the student's."""
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        expected = numeric_gradient(lambda t: case.expected(student, teacher, t), np.array(2.0))
        assert_close(case.gradient(student, teacher, 2.0, argument=2), expected)

    @every_temperature
    def test_no_gradient_to_the_teacher(self, case, temperature):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        assert np.any(case.gradient(student, teacher, temperature))
        assert not np.any(case.gradient(student, teacher, temperature, argument=1))

    @every_temperature
    @pytest.mark.parametrize("classes", [2, 1000])
    def test_zero_with_zero_gradient_where_student_is_teacher(self, case, temperature, classes):
        logits = random_logits(4, classes)
        values = case.compiled(logits, logits, temperature)
        np.testing.assert_allclose(values, 0, atol=ATOL)
        slope = case.gradient(logits, logits, temperature)
        np.testing.assert_allclose(slope, 0, atol=ATOL)

    def test_batch_is_its_rows(self, case):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        rows = [case.compiled(s, t, 2.0) for s, t in zip(student, teacher, strict=True)]
        assert_close(case.compiled(student, teacher, 2.0), np.stack(rows))

    def test_mask_is_subset(self, case):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        where = np.array([True, False, True, True])

        @jax.jit
        @jax.value_and_grad
        def masked(x):
            return losses.mean(case.value(x, teacher, temperature=2.0), where)

        def subset(x):
            return case.expected(x, teacher[where], 2.0).mean()

        value, slope = masked(np.float32(student))
        assert_close(value, subset(student[where]))
        assert_close(slope[where], numeric_gradient(subset, student[where]))
        assert not np.any(slope[~where])

    def test_order_of_classes_is_free(self, case):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        order = np.random.default_rng(2).permutation(10)
        values = case.compiled(student[:, order], teacher[:, order], 1.0)
        assert_close(values, case.expected(student, teacher))

    @every_temperature
    @pytest.mark.parametrize("size", [200.0, 1e4])
    def test_finite_where_softmax_saturates(self, case, temperature, size):
        """Opposed, one side flat, both flat, and two classes sharing all: every row is extreme."""
        student, teacher = np.full((2, 4, 10), -size)
        student[0, 0] = teacher[0, 1] = size
        student[1, 0] = teacher[2, 9] = size
        student[3, :2] = teacher[3, 1:3] = size
        for argument in (0, 1, 2):
            slope = case.gradient(student, teacher, temperature, argument)
            assert np.all(np.isfinite(slope)), argument
        values = case.compiled(student, teacher, temperature)
        assert np.all(np.isfinite(values))
        assert np.all(values >= -ATOL)
        assert np.all(values[:3] > 0.1)

    def test_bfloat16_is_upcast_first(self, case):
        student, teacher = (jnp.asarray(random_logits(4, 10, seed=i), jnp.bfloat16) for i in (0, 1))
        values = case.compiled(student, teacher, 4.0)
        assert values.dtype == jnp.float32
        assert_close(values, case.expected(student, teacher, 4.0))

    @every_temperature
    def test_absent_classes_count_for_nothing(self, case, temperature):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        student[:, 7:] = teacher[:, 7:] = -np.inf

        def present(x):
            return case.expected(x, teacher[:, :7], temperature)

        assert_close(case.compiled(student, teacher, temperature), present(student[:, :7]))
        slope = case.gradient(student, teacher, temperature)
        assert_close(slope[:, :7], numeric_gradient(present, student[:, :7]))
        assert not np.any(slope[:, 7:])
        assert np.isfinite(case.gradient(student, teacher, temperature, argument=2))

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_shapes_must_agree(self, case):
        with pytest.raises(UsageError, match=r"student_logits \(8, 10\), teacher.* \(8, 100\)"):
            case.value(np.zeros((8, 10)), np.zeros((8, 100)))
        with pytest.raises(UsageError, match="expected one shape"):
            case.value(np.zeros((8, 10)), np.zeros((1, 10)))

    @pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_temperature_must_be_positive(self, case, temperature):
        with pytest.raises(UsageError, match="temperature=.*: expected a positive number"):
            case.value(np.zeros((2, 3)), np.zeros((2, 3)), temperature)


@every_divergence
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    scales=st.tuples(st.floats(0.01, 30), st.floats(0.01, 30)),
    shift=st.floats(-20, 20),
    temperature=st.floats(0.5, 20, width=32),
)
def test_any_logits(case, seeds, scales, shift, temperature):
    """One shape for all draws, so that each divergence is compiled once."""
    student, teacher = (
        random_logits(4, 10, scale=c, seed=s) for c, s in zip(scales, seeds, strict=True)
    )
    values = case.compiled(student, teacher, temperature)
    assert np.all(values >= -ATOL)
    assert_close(values, case.expected(student, teacher, temperature))
    shifted = case.compiled(student + shift, teacher, temperature)
    np.testing.assert_allclose(shifted, values, rtol=1e-4, atol=1e-5)


class TestForwardKL:
    def test_golden(self):
        student, teacher, _ = golden_logits()
        assert_close(losses.mean(losses.forward_kl(student, teacher)), 1.852423311)

    def test_direction(self):
        student, teacher = np.zeros(2), np.array([np.log(9.0), 0.0])
        p, q = np.array([0.9, 0.1]), np.array([0.5, 0.5])
        assert_close(losses.forward_kl(student, teacher), kl(p, q))
        assert_close(losses.reverse_kl(student, teacher), kl(q, p))

    @every_temperature
    @pytest.mark.parametrize("classes", [2, 1000])
    def test_gradient_is_difference_of_probabilities(self, temperature, classes):
        student, teacher = random_logits(4, classes), random_logits(4, classes, seed=1)
        expected = softmax(student / temperature, -1) - softmax(teacher / temperature, -1)
        slope = DIVERGENCES[0].gradient(student, teacher, temperature)
        assert_close(slope, expected / temperature)

    @every_temperature
    def test_opposed_and_saturated(self, temperature):
        student, teacher = np.array([200.0, -200.0]), np.array([-200.0, 200.0])
        assert_close(
            losses.forward_kl(student, teacher, temperature=temperature), 400 / temperature
        )
        slope = DIVERGENCES[0].gradient(student, teacher, temperature)
        assert_close(slope, np.array([1, -1]) / temperature)

    @pytest.mark.parametrize("function", [losses.forward_kl, losses.reverse_kl])
    def test_small_divergence_survives_rounding(self, function):
        """At KL = 5e-7 the plain sum of p (log p - log q) is off by a half in float32."""
        teacher = random_logits(4, 1000, seed=1)
        student = (teacher + random_logits(4, 1000, scale=1e-3)).astype(np.float32)
        p, q = softmax(teacher, -1), softmax(student.astype(np.float64), -1)
        expected = kl(p, q) if function is losses.forward_kl else kl(q, p)
        assert np.all(expected < 1e-6)
        np.testing.assert_allclose(function(student, teacher), expected, rtol=0.1)

    def test_class_the_student_lacks_is_seen(self):
        student, teacher = np.array([0.0, -np.inf]), np.zeros(2)
        assert losses.forward_kl(student, teacher) > 1e20


class TestSoftTarget:
    def test_golden(self):
        student, teacher, _ = golden_logits()
        values = losses.soft_target(student, teacher, temperature=4.0)
        assert_close(losses.mean(values), 4.399916405)

    @pytest.mark.parametrize("temperature", [1.0, 3.0, jnp.float32(3.0)])
    def test_is_scaled_forward_kl(self, temperature):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        t = float(temperature)
        values = losses.soft_target(student, teacher, temperature=temperature)
        assert_close(values, t**2 * kl(softmax(teacher / t, -1), softmax(student / t, -1)))

    def test_gradient(self):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        slope = jax.grad(lambda s: losses.soft_target(s, teacher, temperature=4.0).sum())(
            jnp.asarray(student, jnp.float32)
        )
        assert_close(slope, 4 * (softmax(student / 4, -1) - softmax(teacher / 4, -1)))

    def test_temperature_is_required(self):
        with pytest.raises(TypeError, match="temperature"):
            losses.soft_target(np.zeros((2, 3)), np.zeros((2, 3)))


class TestReverseKL:
    @every_temperature
    def test_opposed_and_saturated(self, temperature):
        student, teacher = np.array([200.0, -200.0]), np.array([-200.0, 200.0])
        assert_close(
            losses.reverse_kl(student, teacher, temperature=temperature), 400 / temperature
        )
        assert_close(DIVERGENCES[1].gradient(student, teacher, temperature), np.zeros(2))


class TestJensenShannon:
    def test_half_is_scipys(self):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        distance = scipy.spatial.distance.jensenshannon(
            softmax(student, -1), softmax(teacher, -1), axis=-1
        )
        assert_close(losses.jensen_shannon(student, teacher), distance**2)

    def test_beta_is_the_weight_of_the_teacher(self):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        assert_close(
            losses.jensen_shannon(student, teacher, beta=0.2),
            losses.jensen_shannon(teacher, student, beta=0.8),
        )
        # A student on one class and a uniform teacher, by hand: m = (0.8 + 0.2/2, 0.2/2).
        by_hand = 0.2 * (0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)) + 0.8 * np.log(1 / 0.9)
        assert_close(losses.jensen_shannon(np.array([100.0, 0]), np.zeros(2), beta=0.2), by_hand)

    @pytest.mark.parametrize("beta", [0, 1, 0.0, 1.0, jnp.float32(0), jnp.float32(1)])
    def test_zero_at_the_ends(self, beta):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        value, slope = jax.value_and_grad(
            lambda s: losses.jensen_shannon(s, teacher, beta=beta).sum()
        )(jnp.asarray(student, jnp.float32))
        np.testing.assert_allclose(value, 0, atol=ATOL)
        np.testing.assert_allclose(slope, 0, atol=ATOL)

    def test_rescaled_limits_are_the_two_kls(self):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        p, q = softmax(teacher, -1), softmax(student, -1)
        near_zero = losses.jensen_shannon(student, teacher, beta=1e-4) / 1e-4
        near_one = losses.jensen_shannon(student, teacher, beta=1 - 1e-4) / 1e-4
        np.testing.assert_allclose(near_zero, kl(p, q), rtol=5e-3)
        np.testing.assert_allclose(near_one, kl(q, p), rtol=5e-3)

    @pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
    def test_largest_value_is_the_entropy_of_beta(self, beta):
        student, teacher = np.array([200.0, -200.0]), np.array([-200.0, 200.0])
        entropy = -beta * np.log(beta) - (1 - beta) * np.log(1 - beta)
        assert_close(losses.jensen_shannon(student, teacher, beta=beta), entropy)

    def test_default_is_half(self):
        student, teacher = np.array([200.0, -200.0]), np.array([-200.0, 200.0])
        assert_close(losses.jensen_shannon(student, teacher), np.log(2))

    @pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan"), np.float32(2)])
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_beta_outside_its_range(self, beta):
        with pytest.raises(UsageError, match="beta=.*: expected a number from 0 to 1"):
            losses.jensen_shannon(np.zeros(2), np.zeros(2), beta=beta)


class TestSkewKL:
    @every_temperature
    def test_alpha_zero_is_forward_kl(self, temperature):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        expected = DIVERGENCES[0].expected(student, teacher, temperature)
        values = losses.skew_kl(student, teacher, temperature=temperature, alpha=0)
        assert_close(values, expected)

    def test_alpha_one_is_zero(self):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        value, slope = jax.value_and_grad(lambda s: losses.skew_kl(s, teacher, alpha=1.0).sum())(
            jnp.asarray(student, jnp.float32)
        )
        np.testing.assert_allclose(value, 0, atol=ATOL)
        np.testing.assert_allclose(slope, 0, atol=ATOL)

    @pytest.mark.parametrize("alpha", [0.1, 0.7])
    def test_largest_value(self, alpha):
        student, teacher = np.array([200.0, -200.0]), np.array([-200.0, 200.0])
        assert_close(losses.skew_kl(student, teacher, alpha=alpha), -np.log(alpha))

    def test_default_alpha(self):
        student, teacher = random_logits(4, 10), random_logits(4, 10, seed=1)
        np.testing.assert_array_equal(
            losses.skew_kl(student, teacher), losses.skew_kl(student, teacher, alpha=0.1)
        )

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_alpha_outside_its_range(self):
        with pytest.raises(UsageError, match="alpha=1.5: expected a number from 0 to 1"):
            losses.skew_kl(np.zeros(2), np.zeros(2), alpha=1.5)


class TestTotalVariation:
    def test_is_the_largest_gap_of_any_event(self):
        student, teacher = random_logits(5, 6), random_logits(5, 6, seed=1)
        events = (np.arange(2**6)[:, None] >> np.arange(6)) & 1
        gaps = np.abs((softmax(student, -1) - softmax(teacher, -1)) @ events.T)
        assert_close(losses.total_variation(student, teacher), gaps.max(-1))

    def test_opposed_and_saturated(self):
        student, teacher = np.array([200.0, -200.0]), np.array([-200.0, 200.0])
        assert_close(losses.total_variation(student, teacher), 1.0)
