"""How a decoder computes on a mesh: the sharding of its activations, and gathered parameters.

The residual stream is sharded by rows of the batch over `data` and `fsdp` and replicated over
`tensor`; heads, and the inner width of an MLP or an expert, are sharded over `tensor`. The stored
parameters are sharded over `fsdp` too: they are gathered one layer at a time, in the dtype in which
they are used, and never kept.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from distill_jax import parallel

_EXPERT_KERNEL_NDIM = 3  # of one layer: experts, inputs, outputs


@dataclasses.dataclass(frozen=True)
class DecoderSharding:
    """Sharding constraints and sharded computations over the axes `data`, `fsdp` and `tensor`."""

    mesh: Mesh

    @property
    def gathers(self) -> bool:
        """Whether parameters are sharded over `fsdp` and gathered for their use."""
        return self.mesh.shape["fsdp"] > 1

    def _constrain(self, x: Array, *spec: str | tuple[str, ...] | None) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def stream(self, x: Array) -> Array:
        """Constrains the residual stream, [B, T, D]."""
        return self._constrain(x, parallel.BATCH)

    def heads(self, x: Array) -> Array:
        """Constrains heads, [B, T, N, H]; replicated over `tensor` where that does not divide N."""
        divides = x.shape[2] % self.mesh.shape["tensor"] == 0
        return self._constrain(x, parallel.BATCH, None, "tensor" if divides else None)

    def embed(self, name: str, table: Array, tokens: Array) -> Array:
        """Looks up the rows of a sharded embedding.

        Args:
          name: the flat name of the embedding.
          table: [V, D], in the dtype of its use.
          tokens: int32 [B, T]; the row of a token outside [0, V) is NaN.

        Returns:
          [B, T, D].
        """
        spec = parallel.sharding(name, table.shape, self.mesh).spec
        ids_axis, width_axis = (*spec, None, None)[:2]
        vocab_size = table.shape[0]

        def on_device(table: Array, tokens: Array) -> Array:
            if width_axis is not None:
                table = jax.lax.all_gather(table, width_axis, axis=1, tiled=True)
            first = 0 if ids_axis is None else jax.lax.axis_index(ids_axis) * table.shape[0]
            local = tokens - first
            own = (local >= 0) & (local < table.shape[0])
            rows = jnp.where(own[..., None], table[jnp.where(own, local, 0)], 0)
            if ids_axis is not None:
                rows = jax.lax.psum(rows, ids_axis)
            valid = (tokens >= 0) & (tokens < vocab_size)
            return jnp.where(valid[..., None], rows, jnp.nan)

        batch = PartitionSpec(parallel.BATCH)
        return jax.shard_map(on_device, mesh=self.mesh, in_specs=(spec, batch), out_specs=batch)(
            table, tokens
        )

    def experts(
        self,
        mix: Callable[..., Array],
        x: Array,
        logits: Array,
        kernels: Mapping[str, Array],
    ) -> Array:
        """A mixture of experts: each device routes its own rows to its part of every expert.

        Args:
          mix: (x, logits, kernels) -> as x, a sum over the inner width of the experts.
          x: [B, T, D].
          logits: of the router, [B, T, E].
          kernels: of one layer, by the ends of their names, as they are stored.

        Returns:
          [B, T, D].
        """

        def stored_spec(name: str, kernel: Array) -> PartitionSpec:
            spec = parallel.sharding(f"runs/0/mlp/{name}", (1, *kernel.shape), self.mesh).spec
            return PartitionSpec(*spec[1:])

        specs = {name: stored_spec(name, kernel) for name, kernel in kernels.items()}
        split_inner = "tensor" in specs["down/kernel"]

        def gather(kernel: Array, spec: PartitionSpec) -> Array:
            if "fsdp" not in spec:
                return kernel
            # So the gradient is first scattered over `fsdp`, then its shards are summed over
            # `data`. Without the cast the whole gradient would be summed over both.
            kernel = jax.lax.pcast(kernel, "data", to="varying")
            axis = spec.index("fsdp")
            kernel = jax.lax.all_gather(kernel, "fsdp", axis=axis, tiled=True)
            return checkpoint_name(kernel, parallel.GATHERED)

        def on_device(x: Array, logits: Array, kernels: Mapping[str, Array]) -> Array:
            y = mix(x, logits, {name: gather(k, specs[name]) for name, k in kernels.items()})
            return jax.lax.psum(y, "tensor") if split_inner else y

        batch = PartitionSpec(parallel.BATCH)
        mapped = jax.shard_map(
            on_device, mesh=self.mesh, in_specs=(batch, batch, specs), out_specs=batch
        )
        return mapped(x, logits, kernels)

    def gather_layer(self, prefix: str, state: nnx.State, dtype: DTypeLike) -> nnx.State:
        """The parameters of one layer (without the axis of layers), gathered over `fsdp`.

        Those of experts stay sharded, in `dtype`: `experts` gathers them.

        Args:
          prefix: of their flat names, such as "runs/0".
          state: the stored parameters.
          dtype: in which floating-point parameters are used; integers stay as they are.
        """
        if not self.gathers:
            return state

        def gather(path: tuple[Any, ...], value: Array) -> Array:
            name = "/".join((prefix, *(str(key.key) for key in path if hasattr(key, "key"))))
            stored = parallel.sharding(name, (1, *value.shape), self.mesh)
            if "fsdp" not in stored.spec:
                return value
            if jnp.issubdtype(value.dtype, jnp.floating):
                value = value.astype(dtype)
            if value.ndim == _EXPERT_KERNEL_NDIM:
                return value
            layer = NamedSharding(self.mesh, PartitionSpec(*stored.spec[1:]))
            return parallel.gather(value, layer)

        return jax.tree_util.tree_map_with_path(gather, state)
