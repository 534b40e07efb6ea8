"""Decoupled distillation: its parts, its labels, and where a softmax saturates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_reference import compute, decoupled, value_and_gradient
from loss_reference import assert_close, numeric_gradient, random_logits
from scipy.special import softmax

from distill_jax import losses
from distill_jax.errors import UsageError

LABELS = np.array([1, 0, 3, 3])


def parts(student, teacher, labels, temperature=1.0):
    return losses.decoupled_parts(student, teacher, labels, temperature=temperature)


def slopes(student, teacher, labels, temperature=1.0):
    """Gradients of the two parts, each summed, to the student and to the teacher."""

    def sums(s, t):
        return jnp.stack(parts(s, t, labels, temperature)).sum(1)

    return jax.jacrev(sums, (0, 1))(student, teacher)


parts_of, slopes_of = jax.jit(parts), jax.jit(slopes)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_parts_against_reference(temperature):
    student, teacher = random_logits(4, 5), random_logits(4, 5, seed=1)
    expected = decoupled(student, teacher, LABELS, temperature)
    assert_close(parts_of(student, teacher, LABELS, temperature), expected)
    to_student, to_teacher = slopes_of(
        np.float32(student), np.float32(teacher), LABELS, temperature
    )
    for part, slope in enumerate(to_student):

        def reference(x, part=part):
            return decoupled(x, teacher, LABELS, temperature)[part]

        assert_close(slope, numeric_gradient(reference, student))
    assert not np.any(to_teacher)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_target_is_their_weighted_sum(temperature):
    student, teacher = random_logits(4, 5), random_logits(4, 5, seed=1)
    target, rest = parts_of(student, teacher, LABELS, temperature)
    p_target = softmax(teacher / temperature, -1)[np.arange(4), LABELS]
    expected = compute(losses.soft_target, student, teacher, temperature=temperature)
    assert_close(target + (1 - p_target) * rest, expected)


def test_two_classes_have_no_rest():
    student, teacher = np.float32(random_logits(4, 2)), np.float32(random_logits(4, 2, seed=1))
    target, rest = parts_of(student, teacher, LABELS % 2)
    np.testing.assert_array_equal(rest, 0)
    assert_close(target, compute(losses.forward_kl, student, teacher))
    assert not np.any(slopes_of(student, teacher, LABELS % 2)[0][1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_saturated(temperature):
    """Student sure of class 0, teacher of class 1: by hand, whichever is the label."""
    student, teacher = np.full((3, 4), -1e4, np.float32), np.full((3, 4), -1e4, np.float32)
    student[:, 0] = teacher[:, 1] = 1e4
    target, rest = parts_of(student, teacher, np.array([0, 1, 2]), temperature)
    # Without class 0 the student is flat over three; without class 1 the teacher is.
    sure, flat = 2e4 * temperature, temperature**2 * np.log(3)
    assert_close(target, [sure - flat, sure, 0])
    assert_close(rest, [flat, 2 / 3 * sure - flat, sure])
    for slope in slopes_of(student, teacher, np.array([0, 1, 2]), temperature):
        assert np.all(np.isfinite(slope))


def test_absent_classes_count_for_nothing():
    student, teacher = random_logits(4, 5), random_logits(4, 5, seed=1)
    expected = parts_of(student, teacher, LABELS)
    padding = np.full((4, 2), -np.inf)
    student, teacher = (np.hstack([x, padding]) for x in (student, teacher))
    assert_close(parts_of(student, teacher, LABELS), expected)
    to_student, _ = slopes_of(np.float32(student), np.float32(teacher), LABELS)
    assert np.all(np.isfinite(to_student)) and not np.any(to_student[..., 5:])


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_gives_nan_that_a_mask_removes(label):
    student, teacher = np.float32(random_logits(2, 4)), random_logits(2, 4, seed=1)
    labels = np.array([1, label])

    def masked(x):
        both = losses.decoupled_parts(x, teacher, labels, temperature=1.0)
        return losses.mean(sum(both), np.array([True, False])), jnp.stack(both)

    (value, both), slope = value_and_gradient(masked, has_aux=True)(student)
    assert np.all(np.isnan(both[:, 1]))
    assert_close(value, both[:, 0].sum())
    assert np.all(np.isfinite(slope)) and not np.any(slope[1]) and np.any(slope[0])


def test_weights_and_leading_axes():
    student, teacher = random_logits(4, 5), random_logits(4, 5, seed=1)
    target, rest = decoupled(student, teacher, LABELS, 2.0)
    values = compute(losses.decoupled_kd, student, teacher, LABELS, temperature=2.0)
    assert_close(values, target + 8 * rest)
    values = compute(
        losses.decoupled_kd,
        student.reshape(2, 2, 5),
        teacher.reshape(2, 2, 5),
        LABELS.reshape(2, 2),
        temperature=2.0,
        alpha=0.5,
        beta=3.0,
    )
    assert_close(values, (0.5 * target + 3 * rest).reshape(2, 2))


@pytest.mark.usefixtures("unchecked_shapes")
def test_misuse():
    logits = np.zeros((4, 5))
    with pytest.raises(UsageError, match=r"labels float.*: expected integers\[4\]"):
        losses.decoupled_kd(logits, logits, np.zeros(4), temperature=1.0)
    with pytest.raises(UsageError, match=r"labels int.*\[3\]: expected integers\[4\]"):
        losses.decoupled_parts(logits, logits, np.zeros(3, int), temperature=1.0)
    with pytest.raises(UsageError, match="expected one shape"):
        losses.decoupled_kd(logits, logits[:, :4], LABELS, temperature=1.0)
    with pytest.raises(UsageError, match="temperature=0: expected a positive number"):
        losses.decoupled_kd(logits, logits, LABELS, temperature=0)
    with pytest.raises(TypeError, match="temperature"):
        losses.decoupled_kd(logits, logits, LABELS)
