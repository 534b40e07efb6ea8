"""Losses on maps: values by hand, what they do not see, and misuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_reference import assert_near, compute, gradient, value_and_gradient
from loss_reference import assert_close, random_logits
from scipy.stats import truncnorm

from distill_jax import losses
from distill_jax.errors import UsageError

MAPS = np.zeros((2, 4, 4, 3))
SUMMARIES = [losses.attention_transfer, losses.neuron_selectivity, losses.factor_transfer]
REGRESSIONS = [
    losses.activation_boundary,
    losses.hierarchical_context,
    lambda s, t: losses.overhaul(s, t, np.zeros(np.shape(s)[-1])),
]


@pytest.mark.parametrize("loss", SUMMARIES)
def test_size_of_the_activations_is_not_seen(loss):
    student, teacher = random_logits(2, 3, 3, 4), random_logits(2, 3, 3, 4, seed=1)
    assert_near(compute(loss, 50 * student, teacher / 50), compute(loss, student, teacher))


@pytest.mark.parametrize("loss", SUMMARIES + REGRESSIONS)
@pytest.mark.usefixtures("unchecked_shapes")
def test_maps_are_expected(loss):
    with pytest.raises(UsageError, match=r"student \(2, 3\).*expected maps \[B, H, W, C\]"):
        loss(MAPS[:, 0, 0], MAPS)
    with pytest.raises(UsageError, match="with the same B"):
        loss(MAPS, MAPS[:1])


@pytest.mark.parametrize("loss", REGRESSIONS + [losses.feature_mse])
@pytest.mark.usefixtures("unchecked_shapes")
def test_one_shape_is_expected(loss):
    with pytest.raises(UsageError, match="expected one shape"):
        loss(MAPS, MAPS[:, :2])


@pytest.mark.parametrize("loss", [losses.attention_transfer, losses.factor_transfer])
@pytest.mark.usefixtures("unchecked_shapes")
def test_unknown_variant(loss):
    with pytest.raises(UsageError, match="variant='sum': expected 'code' or 'paper'"):
        loss(MAPS, MAPS, variant="sum")


class TestAttention:
    def test_variants_by_hand(self):
        """Two places against one other: unit vectors at a right angle."""
        student = np.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
        teacher = np.array([0.0, 0.0, -5.0, 0.0]).reshape(1, 2, 2, 1)
        assert_close(compute(losses.attention_transfer, student, teacher), [2 / 4])
        assert_close(
            compute(losses.attention_transfer, student, teacher, variant="paper"), [2**0.5]
        )

    def test_factor_variants_by_hand(self):
        student = np.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 1, 2)
        teacher = np.array([0.0, 0.0, -5.0, 0.0]).reshape(1, 2, 1, 2)
        assert_close(compute(losses.factor_transfer, student, teacher), [1.0])
        assert_close(
            compute(losses.factor_transfer, student, teacher, variant="paper"), [1 + 2**0.5]
        )

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_full_factors_need_one_width(self):
        with pytest.raises(UsageError, match="expected one shape"):
            losses.factor_transfer(MAPS, MAPS[..., :2], variant="paper")


class TestNeuronSelectivity:
    def test_order_and_copies_of_channels_are_not_seen(self):
        student = random_logits(2, 3, 3, 4)
        teacher = np.repeat(student[..., [2, 0, 3, 1]], 2, axis=-1)
        assert_close(compute(losses.neuron_selectivity, student, teacher), [0, 0])

    def test_nothing_larger_than_the_products_of_channels(self):
        """The kernel over all pairs of channels and positions would be 16 times larger."""
        shape = jax.ShapeDtypeStruct((2, 4, 4, 32), jnp.float32)
        traced = jax.make_jaxpr(jax.grad(lambda s, t: losses.neuron_selectivity(s, t).sum()))(
            shape, shape
        )
        assert max(_sizes(traced.jaxpr)) == 2 * 32 * 32


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (x.aval.size for x in equation.outvars)
        for closed in jax.tree.leaves(equation.params):
            if hasattr(closed, "jaxpr"):
                yield from _sizes(closed.jaxpr)


class TestFlowOfSolution:
    def test_by_hand(self):
        """Means over positions: 1 * 2 and 1 * 4, the larger map averaged first."""
        first, small = np.ones((1, 4, 4, 2)), np.ones((1, 2, 2, 3))
        first[:, ::2] = 3  # pooled to 2
        values = compute(losses.flow_of_solution, first, small, first, 4 * small)
        assert_close(values, [(2 - 8) ** 2])

    def test_teachers_maps_may_have_other_sizes(self):
        first, second = np.ones((1, 4, 4, 2)), np.ones((1, 2, 2, 3))
        values = compute(losses.flow_of_solution, first, second, first[:, :3], 2 * second[:, :1])
        assert_close(values, [1.0])

    @pytest.mark.parametrize("which", [2, 3])
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_channels_must_agree(self, which):
        maps = [MAPS] * 4
        maps[which] = MAPS[..., :2]
        with pytest.raises(UsageError, match="channels .* expected the same .first, second."):
            losses.flow_of_solution(*maps)

    @pytest.mark.parametrize("which", range(4))
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_maps_of_one_batch(self, which):
        for wrong in (MAPS[0], MAPS[:1]):
            maps = [MAPS] * 4
            maps[which] = wrong
            with pytest.raises(UsageError, match="expected maps"):
                losses.flow_of_solution(*maps)


class TestActivationBoundary:
    def test_each_case_by_hand(self):
        student = np.array([2.0, 0.5, -3.0, 0.5, -0.5, -2.0, 1.0, -1.0])
        teacher = np.array([0.1, 9.0, 5.0, -0.1, 0.0, -7.0, 2.0, -2.0])
        values = compute(
            losses.activation_boundary, *(x.reshape(8, 1, 1, 1) for x in (student, teacher))
        )
        assert_close(values, [0, 0.25, 16, 2.25, 0.25, 0, 0, 0])

    @pytest.mark.parametrize("margin", [0, -1.0, float("nan")])
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_margin_must_be_positive(self, margin):
        with pytest.raises(UsageError, match="margin=.*: expected a positive number"):
            losses.activation_boundary(MAPS, MAPS, margin=margin)


class TestOverhaul:
    def test_margin_is_the_mean_below_zero(self):
        bias = np.array([0.0, 0.5, -0.5, 3.0, -40.0, 0.1])
        scale = np.array([1.0, 0.25, -2.0, 1.0, 1.5, -1e-1])
        spread = np.abs(scale)
        expected = truncnorm.mean(-np.inf, -bias / spread, loc=bias, scale=spread)
        assert_close(compute(losses.overhaul_margin, bias, scale), expected)

    def test_margin_where_negatives_are_rare_or_none_vary(self):
        bias = np.array([3.2, 100.0, 1e-3, -1e-3, 0.0])
        scale = np.array([-1.0, 2.0, 0.0, 0.0, 0.0])
        assert_close(compute(losses.overhaul_margin, bias, scale), [-3, -6, 0, -1e-3, 0])

    def test_margin_is_a_constant(self):
        slopes = gradient(lambda b, s: losses.overhaul_margin(b, s).sum(), argnums=(0, 1))(
            jnp.zeros(3), jnp.array([1.0, 0.0, -1.0])
        )
        assert not np.any(slopes)
        slope = gradient(lambda m: losses.overhaul(MAPS + 1, MAPS - 2, m).sum())(jnp.full(3, -1.0))
        assert not np.any(slope)

    def test_each_case_by_hand(self):
        student = np.array([2.0, 0.5, -3.0, 0.5, -0.5, -2.0])
        teacher = np.array([1.0, 9.0, -0.5, -0.5, -5.0, -5.0])
        values = compute(
            losses.overhaul, *(x.reshape(6, 1, 1, 1) for x in (student, teacher)), np.array([-1.0])
        )
        assert_close(values, [1, 8.5**2, 0, 1, 0.25, 0])

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_misuse(self):
        with pytest.raises(UsageError, match=r"margin \(1,\): expected \(3,\)"):
            losses.overhaul(MAPS, MAPS, np.zeros(1))
        with pytest.raises(UsageError, match=r"bias \(3,\), scale \(2,\): expected one shape"):
            losses.overhaul_margin(np.zeros(3), np.zeros(2))


class TestHierarchicalContext:
    @pytest.mark.parametrize("height", [1, 2, 4, 5])
    def test_a_constant_gap_is_seen_alike_at_every_size(self, height):
        maps = np.zeros((1, height, height, 2))
        assert_close(compute(losses.hierarchical_context, maps, maps + [3.0, -1.0]), [5.0])

    @pytest.mark.parametrize(("height", "weights"), [(2, 1.5), (4, 1.75), (8, 1.875)])
    def test_a_gap_that_pooling_removes_counts_once(self, height, weights):
        maps = np.zeros((1, height, height, 2))
        stripes = maps + np.resize([1.0, -1.0], (height, 1))
        assert_close(compute(losses.hierarchical_context, maps, stripes), [1 / weights])


class TestVariationalInformation:
    def test_gradient_of_the_scale(self):
        """Zero where the variance is the mean squared error of its channel."""
        mean, target = random_logits(1, 50, 3), random_logits(1, 50, 3, seed=1)
        error = ((mean - target) ** 2).mean((0, 1))
        raw = np.log(np.expm1(error - 1e-5))

        def value(a):
            return losses.variational_information(mean, target, a).sum()

        assert_close(gradient(value)(np.float32(raw)), np.zeros(3))
        slope = gradient(value)(np.float32(raw + 1))
        assert np.all(slope > 0)
        assert_close(value(raw), (1 + np.log(error)).mean() / 2)

    @pytest.mark.parametrize("raw", [-1e4, 1e4])
    def test_extreme_scales(self, raw):
        value, slope = value_and_gradient(
            lambda a: losses.variational_information(np.ones((1, 3)), np.zeros((1, 3)), a).sum()
        )(jnp.full(3, raw))
        variance = max(raw, 0) + 1e-5
        np.testing.assert_allclose(value, (1 / variance + np.log(variance)) / 2, rtol=1e-5)
        assert np.all(np.isfinite(slope))

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_misuse(self):
        with pytest.raises(UsageError, match=r"raw_scale \(2,\): expected \(3,\)"):
            losses.variational_information(MAPS, MAPS, np.zeros(2))
        with pytest.raises(UsageError, match="expected one shape"):
            losses.variational_information(MAPS, MAPS[..., :2], np.zeros(3))
