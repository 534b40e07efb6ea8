"""Parameters that a scan takes as bits: values, gradients, and no wider copy of all layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models.language.stacked import of_row, to_bits

SHAPE = (7, 24, 24)


def through(x, params, *, as_bits):
    rows = to_bits(params) if as_bits else params

    def layer(x, row):
        row = of_row(row) if as_bits else row
        return jnp.tanh(x @ row["kernel"].astype(x.dtype)) * row["scale"].astype(x.dtype), None

    return jax.lax.scan(layer, x, rows)[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_values_and_gradients_are_those_of_the_parameters(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "kernel": jax.random.normal(keys[0], SHAPE, dtype),
        "scale": jax.random.normal(keys[1], (7, 24), jnp.float32),
    }
    x = jax.random.normal(keys[2], (5, 24), dtype)

    def loss(params, as_bits):
        return jnp.sum(jnp.square(through(x, params, as_bits=as_bits).astype(jnp.float32)))

    bits, plain = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, b) for b in (1, 0))
    assert np.any(np.asarray(plain[1]["kernel"], np.float32))
    for found, wanted in zip(jax.tree.leaves(bits), jax.tree.leaves(plain), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(
            np.asarray(found, np.float32), np.asarray(wanted, np.float32), rtol=2e-2, atol=1e-2
        )


def test_no_float32_copy_of_all_bfloat16_layers_is_made():
    x = jax.ShapeDtypeStruct((8, 24), jnp.bfloat16)
    params = {
        "kernel": jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16),
        "scale": jax.ShapeDtypeStruct((7, 24), jnp.bfloat16),
    }
    program = jax.jit(through, static_argnames="as_bits").lower(x, params, as_bits=True).compile()
    assert "f32[7,24,24]" not in program.as_text()
