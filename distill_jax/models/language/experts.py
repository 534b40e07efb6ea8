"""A mixture of experts: of many MLPs a token passes the few that its router chooses.

    p = softmax(x @ router);  y = sum over the k largest p_e of g_e * MLP_e(x)

where g is p, or p divided by the sum of those k (Shazeer et al., 2017; Jiang et al., 2024, Mixtral,
section 2.1). Every token has its k experts: the rows are sorted by expert, and a `ragged_dot`
multiplies each group of them by the matrix of its own. A TPU computes these products alone. What
JAX 0.10 makes of a `ragged_dot` on a CPU is a product of every row with every expert, masked: the
same numbers, for as many times the work as there are experts to a chosen one.

Left out on purpose: a capacity above which tokens are dropped; experts over devices of their own;
and the loss that balances the load of a router in pretraining (Fedus et al., 2021, section 2.2), as
here the teacher's answer is all that a student is to match. A student of experts is trained, its
router through the gates; that starts well from one that was balanced, and may collapse from none.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.layers import ACTIVATIONS, Linear
from distill_jax.models.language.layout import Layout


class Experts(nnx.Module):
    """The experts of a layer and their router; kernels are [*lead, experts, inputs, outputs].

    Args:
      config: its fields dim, mlp_dim, activation and those of experts are read.
      lead: axes of the parameters before those of one layer.
      layout: over a mesh; None leaves it to the compiler.
      param_dtype: of the parameters.
      rngs: of the initial values.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        lead: tuple[int, ...],
        layout: Layout | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def linear(inputs: int, outputs: int, lead: tuple[int, ...]) -> Linear:
            return Linear(
                inputs, outputs, lead=lead, bias=False, param_dtype=param_dtype, rngs=rngs
            )

        each = (*lead, config.experts)
        self.mix = functools.partial(
            mix,
            chosen=config.experts_per_token,
            normalised=config.gates_normalised,
            activation=config.activation,
        )
        self.layout = layout
        self.router = linear(config.dim, config.experts, lead)
        self.gate = linear(config.dim, config.mlp_dim, each)
        self.up = linear(config.dim, config.mlp_dim, each)
        self.down = linear(config.mlp_dim, config.dim, each)

    def __call__(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, D]."""
        # The choice is a step: what rounding moves there is no small change.
        router = self.router.kernel[...].astype(jnp.float32)
        highest = jax.lax.Precision.HIGHEST
        logits = jnp.matmul(x.astype(jnp.float32), router, precision=highest)
        kernels = {}
        for name in ("gate", "up", "down"):
            own = getattr(self, name)
            kernels[f"{name}/kernel"] = own.kernel[...]
            if own.kernel_scale is not None:
                kernels[f"{name}/kernel_scale"] = own.kernel_scale[...]
        if self.layout is None:
            return self.mix(x, logits, kernels)
        return self.layout.experts(self.mix, x, logits, kernels)


def mix(
    x: Array,
    logits: Array,
    kernels: Mapping[str, Array],
    *,
    chosen: int,
    normalised: bool,
    activation: str,
) -> Array:
    """The gated sum of what the chosen experts make of every token.

    Args:
      x: [B, T, D].
      logits: of the router, float32 [B, T, E].
      kernels: "gate/kernel" and "up/kernel" [E, D, M], "down/kernel" [E, M, D]; with the
        "kernel_scale"s [E, M] or [E, D] of each where they are integers.
      chosen: how many experts a token has.
      normalised: whether its gates are divided by their sum.
      activation: a name of `ACTIVATIONS`.

    Returns:
      As x. Of a part of M it is a part of the sum.
    """
    gates, experts = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), chosen)
    if normalised:
        gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    flat = experts.reshape(-1)
    order = jnp.argsort(flat)
    places = jnp.argsort(order)
    sizes = jnp.sum(flat[:, None] == jnp.arange(logits.shape[-1])[None], axis=0, dtype=jnp.int32)

    def product(name: str, rows: Array) -> Array:
        kernel = kernels[f"{name}/kernel"].astype(x.dtype)
        scale = kernels.get(f"{name}/kernel_scale")
        if scale is None:
            return jax.lax.ragged_dot(rows, kernel, sizes)
        # As in `Linear`, the sums are rounded once.
        sums = jax.lax.ragged_dot(rows, kernel, sizes, preferred_element_type=jnp.float32)
        return (sums * scale[flat[order]]).astype(x.dtype)

    repeated = jnp.broadcast_to(x[..., None, :], (*experts.shape, x.shape[-1]))
    rows = _permuted(repeated.reshape(-1, x.shape[-1]), order, places)
    inner = ACTIVATIONS[activation](product("gate", rows)) * product("up", rows)
    answers = _permuted(product("down", inner), places, order).reshape(repeated.shape)
    return jnp.sum(answers * gates[..., None], axis=-2).astype(x.dtype)


@jax.custom_vjp
def _permuted(x: Array, order: Array, places: Array) -> Array:
    """x[order], where places[order[i]] = i: so that the gradient is no scatter either."""
    del places
    return x[order]


def _permuted_forward(x, order, places):
    return x[order], places


def _permuted_backward(places, gradient):
    return gradient[places], None, None


_permuted.defvjp(_permuted_forward, _permuted_backward)
