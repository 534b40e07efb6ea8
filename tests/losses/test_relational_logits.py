"""Standardised logits, and what the losses on relations between logits do and do not see."""

import jax.numpy as jnp
import numpy as np
import pytest
from feature_reference import compute, gradient, value_and_gradient
from loss_reference import assert_close, numeric_gradient, random_logits

from distill_jax import losses
from distill_jax.errors import UsageError


def standard_scores(logits, epsilon=1e-7):
    rows = [(z - np.mean(z)) / (epsilon + np.std(z, ddof=1)) for z in logits.reshape(-1, 5)]
    return np.array(rows).reshape(logits.shape)


class TestStandardise:
    @pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
    def test_value(self, shape):
        logits = random_logits(*shape)
        assert_close(compute(losses.standardise, logits), standard_scores(logits))
        assert_close(compute(losses.standardise, logits, epsilon=0.5), standard_scores(logits, 0.5))

    @pytest.mark.parametrize("scale", [0.01, 1.0])
    def test_gradient_flows_through_mean_and_deviation(self, scale):
        logits, weights = random_logits(4, 5, scale=scale), random_logits(4, 5, seed=1)
        slope = gradient(lambda x: (losses.standardise(x) * weights).sum())(np.float32(logits))
        numeric = numeric_gradient(lambda x: standard_scores(x) * weights, logits, 1e-6 * scale)
        np.testing.assert_allclose(slope, numeric, rtol=1e-4, atol=1e-5 / scale)

    @pytest.mark.parametrize("size", [0.0, 3.3, -1e4])
    def test_equal_logits_become_zero_with_zero_gradient(self, size):
        logits = np.full((3, 10), size, np.float32)
        logits[0, 0] += 1
        value, slope = value_and_gradient(
            lambda x: (losses.standardise(x) * jnp.arange(10.0)[None]).sum()
        )(logits)
        assert np.isfinite(value) and np.all(np.isfinite(slope))
        assert not np.any(slope[1:]) and not np.any(compute(losses.standardise, logits)[1:])

    def test_huge_and_single(self):
        assert_close(
            compute(losses.standardise, np.array([1e4, -1e4])), [np.sqrt(0.5), -np.sqrt(0.5)]
        )
        np.testing.assert_array_equal(compute(losses.standardise, np.array([[7.0]])), 0)

    def test_shift_and_scale_are_lost(self):
        logits = random_logits(4, 5)
        np.testing.assert_allclose(
            compute(losses.standardise, 7 * logits + 20),
            compute(losses.standardise, logits),
            rtol=1e-4,
            atol=1e-4,
        )

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_needs_classes(self):
        with pytest.raises(UsageError, match=r"logits \(\): expected \[..., classes\]"):
            losses.standardise(np.float32(1))


class TestDist:
    def test_parts(self):
        """A batch that is the same row twice has no correlation over examples, by hand."""
        student = np.log(np.array([[0.5, 0.3, 0.2]] * 2))
        teacher = np.log(np.array([[0.3, 0.5, 0.2]] * 2))
        rho = np.corrcoef([0.5, 0.3, 0.2], [0.3, 0.5, 0.2])[0, 1]
        assert_close(compute(losses.dist, student, teacher), [2 - rho] * 2)
        values = compute(losses.dist, student, teacher, beta=3.0, gamma=0.25)
        assert_close(values, [3 * (1 - rho) + 0.25] * 2)

    def test_intra_class_part_by_hand(self):
        student = np.log(np.array([[0.6, 0.4], [0.1, 0.9], [0.5, 0.5]]))
        teacher = np.log(np.array([[0.2, 0.8], [0.3, 0.7], [0.9, 0.1]]))
        rho = np.corrcoef([0.6, 0.1, 0.5], [0.2, 0.3, 0.9])[0, 1]
        assert_close(compute(losses.dist, student, teacher, beta=0.0), [1 - rho] * 3)

    @pytest.mark.parametrize("size", [0.0, 3.3])
    def test_a_flat_student_has_no_gradient(self, size):
        """Not the one of the quotient, which is that of the numerator over 1e-8."""
        teacher, student = random_logits(3, 5), np.full((3, 5), size, np.float32)
        value, slope = value_and_gradient(lambda s: losses.dist(s, teacher).mean())(student)
        assert_close(value, 2.0)
        assert not np.any(slope)

    def test_temperature_only_divides(self):
        student, teacher = random_logits(4, 5), random_logits(4, 5, seed=1)
        values = compute(losses.dist, student, teacher, temperature=4.0)
        assert_close(values, compute(losses.dist, student / 4, teacher / 4))

    def test_equal_batch_is_zero(self):
        logits = random_logits(4, 5)
        np.testing.assert_allclose(compute(losses.dist, logits, logits), 0, atol=1e-5)


@pytest.mark.parametrize("loss", [losses.dist, losses.batch_correlation, losses.class_correlation])
@pytest.mark.usefixtures("unchecked_shapes")
def test_misuse(loss):
    logits = np.zeros((4, 5))
    with pytest.raises(UsageError, match=r"expected one shape \[B, classes\] for both"):
        loss(logits, logits[:, :4], temperature=1.0)
    with pytest.raises(UsageError, match=r"student_logits \(1, 4, 5\)"):
        loss(logits[None], logits[None], temperature=1.0)
    with pytest.raises(UsageError, match="temperature=-1.0: expected a positive number"):
        loss(logits, logits, temperature=-1.0)


def test_batch_and_class_correlation_by_hand():
    """One-hot rows: the Gram matrices are those of counting."""
    student = 1e4 * np.eye(3)[[0, 1, 1, 2]]
    teacher = 1e4 * np.eye(3)[[0, 0, 1, 2]]
    batch = compute(losses.batch_correlation, student, teacher, temperature=1.0)
    # The student pairs examples 1 and 2, the teacher 0 and 1.
    assert_close(batch, [1, 2, 1, 0])
    # Counts (1, 2, 1) against (2, 1, 1) on the diagonal.
    assert_close(compute(losses.class_correlation, student, teacher, temperature=1.0), [2 / 3] * 4)
