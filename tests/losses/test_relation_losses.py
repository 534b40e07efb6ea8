"""Relations in a batch: what they do not see, near and coinciding points, memory, and misuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_reference import (
    angles,
    assert_near,
    compute,
    distances,
    gradient,
    neighbour_divergence,
    value_and_gradient,
)
from loss_reference import assert_close, numeric_gradient, random_logits
from scipy.stats import ortho_group

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.losses import vectors

RELATIONS = [
    losses.similarity_preserving,
    losses.relational_distance,
    losses.relational_angle,
    losses.probabilistic_transfer,
]
PAIRWISE = [(losses.relational_distance, distances), (losses.relational_angle, angles)]


@pytest.mark.parametrize("loss", RELATIONS)
def test_rotation_and_size_are_not_seen(loss):
    student = random_logits(5, 4)
    teacher = 3 * student @ ortho_group.rvs(4, random_state=0)
    np.testing.assert_allclose(compute(loss, student, teacher), 0, atol=1e-6)
    assert np.all(compute(loss, student, random_logits(5, 4, seed=1)) > 1e-4)


@pytest.mark.parametrize("loss", [losses.relational_distance, losses.relational_angle])
def test_shift_is_not_seen(loss):
    student = random_logits(5, 4)
    np.testing.assert_allclose(compute(loss, student, student + 2), 0, atol=1e-6)


def test_relations_are_those_of_the_global_batch():
    """On a batch that is spread over eight devices, in value and gradient."""
    student, teacher = (np.float32(random_logits(16, 4, seed=seed)) for seed in (0, 1))
    on_logits = [
        functools.partial(loss, temperature=2.0)
        for loss in (losses.dist, losses.batch_correlation, losses.class_correlation)
    ]
    functions = [*RELATIONS, losses.correlation_congruence, *on_logits]
    evaluate = value_and_gradient(
        lambda s, t: sum((k + 1) * loss(s, t).mean() for k, loss in enumerate(functions))
    )
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()), "data", axis_types=(jax.sharding.AxisType.Auto,)
    )
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    value, slope = evaluate(*(jax.device_put(x, spread) for x in (student, teacher)))
    expected, expected_slope = evaluate(student, teacher)
    assert_close(value, expected)
    assert_close(slope, expected_slope)


@pytest.mark.parametrize("loss", [*RELATIONS, losses.correlation_congruence])
@pytest.mark.usefixtures("unchecked_shapes")
def test_misuse(loss):
    with pytest.raises(UsageError, match=r"student \(4, 3\), teacher \(5, 3\): expected"):
        loss(np.zeros((4, 3)), np.zeros((5, 3)))
    with pytest.raises(UsageError, match=r"student \(4,\)"):
        loss(np.zeros(4), np.zeros(4))


@pytest.mark.parametrize(("loss", "reference"), PAIRWISE)
class TestPairwise:
    def test_two_points(self, loss, reference):
        """Two points have one relative distance and no angle: nothing to learn."""
        student, teacher = random_logits(2, 3), random_logits(2, 3, seed=1)
        np.testing.assert_allclose(compute(loss, student, teacher), 0, atol=1e-6)
        slope = gradient(lambda s: loss(s, teacher).sum())(np.float32(student))
        np.testing.assert_allclose(slope, 0, atol=1e-6)

    def test_near_points_far_from_the_origin(self, loss, reference):
        """Two points 1000 times nearer than the others, at 30: inner products would lose them."""
        student, teacher = 30 + random_logits(5, 3), random_logits(5, 3, seed=1)
        student[1] = student[0] + [2**-9, -(2**-9), 2**-8]
        student = np.float32(student)
        expected = reference(np.float64(student), teacher)
        np.testing.assert_allclose(compute(loss, student, teacher), expected, rtol=1e-4)
        slope = gradient(lambda s: loss(s, teacher).sum())(student)
        numeric = numeric_gradient(lambda x: reference(x, teacher), np.float64(student), 1e-7)
        np.testing.assert_allclose(slope, numeric, rtol=0.01, atol=1e-4 * np.abs(numeric).max())

    def test_all_points_coincide(self, loss, reference):
        student = np.ones((4, 3), np.float32)
        teacher = random_logits(4, 3)
        value, slope = value_and_gradient(lambda s: loss(s, teacher).mean())(student)
        assert_close(value, reference(student, teacher).mean())
        assert value > 0 and not np.any(slope)

    def test_chunks_change_nothing(self, loss, reference, monkeypatch):
        """Large batches go some rows after another; 7 rows in chunks of 2 leave one over."""
        student, teacher = random_logits(7, 3), random_logits(7, 3, seed=1)

        def both():  # a new function each time, so that it is traced again
            return value_and_gradient(lambda s, t: loss(s, t).mean())(
                np.float32(student), np.float32(teacher)
            )

        whole, whole_slope = both()
        monkeypatch.setattr(vectors, "CHUNK", 2 * 7 * (3 if reference is distances else 7))
        parts, parts_slope = both()
        assert_near(parts, whole)
        assert_near(parts_slope, whole_slope)
        assert_close(parts, reference(student, teacher).mean())

    def test_memory_is_bounded(self, loss, reference, monkeypatch):
        """With a chunk of 4096 numbers, a batch of 64 never builds 64^3 or 64^2 * 128 of them."""
        monkeypatch.setattr(vectors, "CHUNK", 4096)
        shape = jax.ShapeDtypeStruct((64, 128), jnp.float32)
        step = jax.jit(jax.grad(lambda s, t: loss(s, t).mean())).lower(shape, shape)
        assert step.compile().memory_analysis().temp_size_in_bytes < 64**3 * 4 / 2


class TestRelationalDistance:
    def test_beyond_the_threshold_it_is_linear(self):
        """Points in one place and one apart, against all at one distance, by hand."""
        student = np.array([[0.0], [0.0], [0.0], [1.0]])
        teacher = np.eye(4)
        # Six of twelve ordered pairs are apart: 2 against 1, and 0 against 1.
        assert_close(compute(losses.relational_distance, student, teacher), [0.5 * 3 / 4] * 4)
        student = np.array([[0.0]] * 9 + [[1.0]])
        # Relative distance 5 against 1.
        values = compute(losses.relational_distance, student, np.eye(10))
        assert_close(values, [(8 * 0.5 + 3.5) / 10] * 9 + [9 * 3.5 / 10])


class TestCorrelationCongruence:
    def test_both_embeddings_can_be_trained_through_the_difference(self):
        student, teacher = (np.float32(random_logits(4, 3, seed=i)) for i in (0, 1))

        def joint(s, t):
            return losses.correlation_congruence(s - t, jnp.zeros_like(t)).mean()

        value, slopes = value_and_gradient(joint, argnums=(0, 1))(student, teacher)
        assert_close(value, compute(losses.correlation_congruence, student, teacher).mean())
        alone = gradient(lambda s: losses.correlation_congruence(s, teacher).mean())(student)
        assert_close(slopes[0], alone)
        assert_close(slopes[1], -alone)

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_code_needs_one_width_and_paper_does_not(self):
        with pytest.raises(UsageError, match=r"expected one shape \[B, D\]"):
            losses.correlation_congruence(np.zeros((4, 3)), np.zeros((4, 2)))
        values = compute(
            losses.correlation_congruence, np.zeros((4, 3)), np.zeros((4, 2)), variant="paper"
        )
        np.testing.assert_array_equal(values, 0)

    def test_paper_is_close_to_the_gaussian_kernel(self):
        """Which it expands: for unit vectors at an angle, to about the third-order term."""
        student, teacher = np.eye(2), np.array([[1.0, 0.0], [np.cos(1), np.sin(1)]])
        exact = np.exp(-0.4 * 2) - np.exp(-0.4 * (2 - 2 * np.cos(1)))
        values = compute(losses.correlation_congruence, student, teacher, variant="paper")
        np.testing.assert_allclose(np.sqrt(2 * values), np.abs([exact] * 2), rtol=0.05)

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_unknown_variant(self):
        with pytest.raises(UsageError, match="variant='rbf': expected 'code' or 'paper'"):
            losses.correlation_congruence(np.zeros((4, 3)), np.zeros((4, 3)), variant="rbf")


class TestProbabilisticTransfer:
    def test_opposite_vectors(self):
        """A probability of 0 for the student where the teacher has one, by hand."""
        student, teacher = np.array([[1.0, 0], [-1.0, 0]]), np.eye(2)
        p = np.array([2 / 3, 1 / 3])
        expected = (p * np.log((p + 1e-7) / (np.array([1.0, 0.0]) + 1e-7))).mean()
        value, slope = value_and_gradient(
            lambda s: losses.probabilistic_transfer(s, teacher).mean()
        )(np.float32(student))
        assert_close(value, expected)
        assert np.all(np.isfinite(slope))

    def test_small_divergence_survives_rounding(self):
        """The plain sum of p (log p - log q) is off by its own size in float32."""
        teacher = random_logits(64, 16)
        student = (teacher + random_logits(64, 16, scale=1e-3, seed=1)).astype(np.float32)
        expected = neighbour_divergence(np.float64(student), teacher)
        assert np.all(expected < 5e-9)
        values = compute(losses.probabilistic_transfer, student, teacher)
        np.testing.assert_allclose(values, expected, rtol=0.01)
