"""The masked mean: its values, its gradient, its refusals, and that shards do not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_reference import assert_close

from distill_jax import losses
from distill_jax.errors import UsageError


class TestMean:
    def test_unmasked(self):
        values = np.random.default_rng(0).standard_normal((4, 5))
        assert_close(losses.mean(values), values.mean())
        assert_close(losses.mean(jnp.float32(3.0)), 3.0)

    def test_masked(self):
        random = np.random.default_rng(0)
        values, where = random.standard_normal((4, 5)), random.random((4, 5)) < 0.5
        assert_close(losses.mean(values, where), values[where].mean())
        assert_close(jax.jit(losses.mean)(values, where), values[where].mean())

    def test_zero_with_zero_gradient_where_there_are_none(self):
        none = jnp.zeros(3, bool)
        value, slope = jax.value_and_grad(losses.mean)(jnp.array([1.0, jnp.nan, 2.0]), none)
        assert value == 0 and not np.any(slope)
        assert losses.mean(jnp.zeros(0)) == 0

    def test_masked_values_may_be_anything(self):
        values, where = (
            jnp.array([1.0, jnp.nan, jnp.inf, 3.0]),
            jnp.array([True, False, False, True]),
        )
        value, slope = jax.value_and_grad(losses.mean)(values, where)
        assert value == 2.0
        np.testing.assert_array_equal(slope, [0.5, 0, 0, 0.5])

    def test_unmasked_nan_is_seen(self):
        assert np.isnan(losses.mean(jnp.array([1.0, jnp.nan]), jnp.array([True, True])))

    def test_bfloat16_is_summed_in_float32(self):
        values = jnp.full(1000, 1.0 + 2**-7, jnp.bfloat16)
        assert losses.mean(values).dtype == jnp.float32
        assert losses.mean(values) == 1.0 + 2**-7

    def test_of_the_global_batch(self):
        """Shards with unequal numbers of unmasked values: a mean of their means would be wrong."""
        values, where = np.arange(16.0, dtype=np.float32), np.arange(16) < 5
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), "data")
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        sharded = jax.jit(losses.mean)(*jax.device_put((values, where), sharding))
        assert sharded == 2.0

    @pytest.mark.parametrize("where", [np.ones(4), np.ones(3, bool), np.ones((4, 1), bool)])
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_where_must_fit(self, where):
        with pytest.raises(UsageError, match=r"where .*: expected bool\[4\]"):
            losses.mean(np.zeros(4), where)
