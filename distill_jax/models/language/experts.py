"""A mixture of experts: a router sends each token to the top k of several MLPs.

    p = softmax(x @ router);  y = sum over the k largest p_e of g_e * MLP_e(x)

The gates g are p, or p divided by the sum of those k (Shazeer et al., 2017; Jiang et al., 2024,
Mixtral, section 2.1). Nothing is dropped: every token passes its k experts. The rows are sorted by
expert, and a `ragged_dot` multiplies each group of rows by the matrix of its expert. A TPU computes
just these products. On a CPU, JAX 0.10 lowers a `ragged_dot` to the product of every row with every
expert, masked: the same numbers, but E / k times the work.

Left out on purpose: a capacity above which tokens are dropped; expert parallelism; and the loss
that balances the load of a router in pretraining (Fedus et al., 2021, section 2.2), since a student
here matches the teacher alone. A student with experts trains its router through the gates; that
starts well from a balanced router, and may collapse from a random one.
"""

import functools
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.layers import (
    ACTIVATIONS,
    Linear,
    decoded,
    quantized_tokens,
)
from distill_jax.models.language.sharding import DecoderSharding


class Experts(nnx.Module):
    """The experts of a layer and their router; kernels are [*lead, experts, inputs, outputs].

    Args:
      config: its fields dim, mlp_dim, activation and those of experts are read.
      lead: shape of the stacked axes, see `layers`.
      sharding: over a mesh; None leaves it to the compiler.
      param_dtype: of the parameters.
      rngs: draws the initial values.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        lead: tuple[int, ...],
        sharding: DecoderSharding | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def linear(inputs: int, outputs: int, lead: tuple[int, ...]) -> Linear:
            return Linear(
                inputs, outputs, lead=lead, bias=False, param_dtype=param_dtype, rngs=rngs
            )

        per_expert = (*lead, config.experts)
        self.mix = functools.partial(
            mix_experts,
            top_k=config.experts_per_token,
            normalised=config.gates_normalised,
            activation=config.activation,
        )
        self.sharding = sharding
        self.router = linear(config.dim, config.experts, lead)
        self.gate = linear(config.dim, config.mlp_dim, per_expert)
        self.up = linear(config.dim, config.mlp_dim, per_expert)
        self.down = linear(config.mlp_dim, config.dim, per_expert)

    def __call__(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, D]."""
        # The choice of experts is discontinuous: rounding could send a token elsewhere.
        router = self.router.kernel[...].astype(jnp.float32)
        highest = jax.lax.Precision.HIGHEST
        logits = jnp.matmul(x.astype(jnp.float32), router, precision=highest)
        kernels: dict[str, Array] = {}
        for name, linear in (("gate", self.gate), ("up", self.up), ("down", self.down)):
            kernel, scale = linear.kernel[...], linear.kernel_scale
            if scale is not None and scale[...].ndim == kernel.ndim:
                # A device may hold other groups than its part of the kernel needs.
                kernel, scale = decoded(kernel, scale[...], x.dtype)[0], None
            kernels[f"{name}/kernel"] = kernel
            if scale is not None:
                kernels[f"{name}/kernel_scale"] = scale[...]
        mix = functools.partial(self.mix, inputs=self.gate.activations, inner=self.down.activations)
        if self.sharding is None:
            return mix(x, logits, kernels)
        return self.sharding.experts(mix, x, logits, kernels)


def mix_experts(
    x: Array,
    logits: Array,
    kernels: Mapping[str, Array],
    *,
    top_k: int,
    normalised: bool,
    activation: str,
    inputs: Literal["int8", "fp8"] | None = None,
    inner: Literal["int8", "fp8"] | None = None,
) -> Array:
    """The gated sum of the outputs of every token's top-k experts.

    Args:
      x: [B, T, D].
      logits: of the router, float32 [B, T, E].
      kernels: "gate/kernel" and "up/kernel" [E, D, M], "down/kernel" [E, M, D]; quantized kernels
        with a scale for an output channel come with their "kernel_scale", [E, M] or [E, D].
      top_k: how many experts a token passes.
      normalised: whether its gates are divided by their sum.
      activation: a name of `ACTIVATIONS`.
      inputs: how x is quantized for "gate" and "up"; None for not.
      inner: how the inputs of "down" are quantized.

    Returns:
      As x. With kernels of a part of the inner width M, that part of the sum.
    """
    gates, experts = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), top_k)
    if normalised:
        gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    flat = experts.reshape(-1)
    order = jnp.argsort(flat)
    inverse = jnp.argsort(order)
    chosen = flat[:, None] == jnp.arange(logits.shape[-1])[None]
    group_sizes = jnp.sum(chosen, axis=0, dtype=jnp.int32)

    def product(name: str, rows: Array) -> Array:
        kernel = kernels[f"{name}/kernel"].astype(x.dtype)
        scale = kernels.get(f"{name}/kernel_scale")
        rows, of_rows = quantized_tokens(rows, inner if name == "down" else inputs)
        if scale is None and of_rows is None:
            return jax.lax.ragged_dot(rows, kernel, group_sizes)
        # As in `Linear`, the sums are rounded once.
        sums = jax.lax.ragged_dot(rows, kernel, group_sizes, preferred_element_type=jnp.float32)
        sums = sums if scale is None else sums * scale[flat[order]]
        return (sums if of_rows is None else sums * of_rows).astype(x.dtype)

    repeated = jnp.broadcast_to(x[..., None, :], (*experts.shape, x.shape[-1]))
    rows = _permute(repeated.reshape(-1, x.shape[-1]), order, inverse)
    hidden = ACTIVATIONS[activation](product("gate", rows)) * product("up", rows)
    outputs = _permute(product("down", hidden), inverse, order).reshape(repeated.shape)
    return jnp.sum(outputs * gates[..., None], axis=-2).astype(x.dtype)


@jax.custom_vjp
def _permute(x: Array, order: Array, inverse: Array) -> Array:
    """x[order], with inverse[order[i]] = i; its gradient is a gather too, not a scatter."""
    del inverse
    return x[order]


def _permute_forward(x: Array, order: Array, inverse: Array) -> tuple[Array, Array]:
    return x[order], inverse


def _permute_backward(inverse: Array, gradient: Array) -> tuple[Array, None, None]:
    return gradient[inverse], None, None


_permute.defvjp(_permute_forward, _permute_backward)
