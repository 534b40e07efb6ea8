"""How a decoder is laid out over a mesh while it computes.

The stream of activations is split by rows of the batch over `data` and `fsdp`, and whole over
`tensor`; heads, and what is inside an MLP or an expert, are split over `tensor`. The weights of one
layer at a time are put together over `fsdp`, in the dtype that they are used in, and never kept.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from distill_jax import parallel

_OF_EXPERTS = 3  # dimensions of a layer's kernel: experts, inputs, outputs


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout over the axes `data`, `fsdp` and `tensor` of a mesh."""

    mesh: Mesh

    @property
    def in_shards(self) -> bool:
        """Whether parameters are put together before their use."""
        return self.mesh.shape["fsdp"] > 1

    def _keep(self, x: Array, *spec: str | tuple[str, ...] | None) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def stream(self, x: Array) -> Array:
        """[B, T, D]."""
        return self._keep(x, parallel.BATCH)

    def heads(self, x: Array) -> Array:
        """[B, T, N, H]; heads that do not divide are whole on every device of `tensor`."""
        divides = x.shape[2] % self.mesh.shape["tensor"] == 0
        return self._keep(x, parallel.BATCH, None, "tensor" if divides else None)

    def rows(self, name: str, table: Array, tokens: Array) -> Array:
        """The rows of an embedding, each from the device of `tensor` that has it.

        Args:
          name: of the embedding.
          table: [V, D], in the dtype of its use.
          tokens: int32 [B, T]; the rows of those outside [0, V) are NaN.

        Returns:
          [B, T, D].
        """
        spec = parallel.sharding(name, table.shape, self.mesh).spec
        over_ids, over_width = (*spec, None, None)[:2]
        ids = table.shape[0]

        def here(table: Array, tokens: Array) -> Array:
            if over_width is not None:
                table = jax.lax.all_gather(table, over_width, axis=1, tiled=True)
            first = 0 if over_ids is None else jax.lax.axis_index(over_ids) * table.shape[0]
            local = tokens - first
            own = (local >= 0) & (local < table.shape[0])
            found = jnp.where(own[..., None], table[jnp.where(own, local, 0)], 0)
            if over_ids is not None:
                found = jax.lax.psum(found, over_ids)
            real = (tokens >= 0) & (tokens < ids)
            return jnp.where(real[..., None], found, jnp.nan)

        batch = PartitionSpec(parallel.BATCH)
        return jax.shard_map(here, mesh=self.mesh, in_specs=(spec, batch), out_specs=batch)(
            table, tokens
        )

    def experts(
        self,
        mix: Callable[..., Array],
        x: Array,
        logits: Array,
        kernels: Mapping[str, Array],
    ) -> Array:
        """A mixture of experts: a device sorts its own rows, and has its part of every expert.

        Args:
          mix: (x, logits, kernels) -> as x, a sum over the inner width of the experts.
          x: [B, T, D].
          logits: of the router, [B, T, E].
          kernels: of one layer, by the ends of their names, as they are stored.
        """

        def stored(name: str, kernel: Array) -> PartitionSpec:
            spec = parallel.sharding(f"runs/0/mlp/{name}", (1, *kernel.shape), self.mesh).spec
            return PartitionSpec(*spec[1:])

        specs = {name: stored(name, kernel) for name, kernel in kernels.items()}
        in_parts = "tensor" in specs["down/kernel"]

        def whole(kernel: Array, spec: PartitionSpec) -> Array:
            if "fsdp" not in spec:
                return kernel
            # From here the gradient is scattered over `fsdp` first and summed over `data` in
            # shards; that of a kernel which comes in whole would be summed whole over both.
            kernel = jax.lax.pcast(kernel, "data", to="varying")
            axis = spec.index("fsdp")
            kernel = jax.lax.all_gather(kernel, "fsdp", axis=axis, tiled=True)
            return checkpoint_name(kernel, parallel.GATHERED)

        def here(x: Array, logits: Array, kernels: Mapping[str, Array]) -> Array:
            y = mix(x, logits, {name: whole(k, specs[name]) for name, k in kernels.items()})
            return jax.lax.psum(y, "tensor") if in_parts else y

        batch = PartitionSpec(parallel.BATCH)
        mapped = jax.shard_map(
            here, mesh=self.mesh, in_specs=(batch, batch, specs), out_specs=batch
        )
        return mapped(x, logits, kernels)

    def weights(self, prefix: str, state: nnx.State, dtype: DTypeLike) -> nnx.State:
        """The parameters of one layer, without the axis of layers, put together over `fsdp`.

        Those of experts stay in shards, in `dtype`: `experts` puts them together.

        Args:
          prefix: of their names.
          state: as they are stored.
          dtype: in which kernels are used, unless they are integers.
        """
        if not self.in_shards:
            return state

        def whole(path, value: Array) -> Array:
            name = "/".join((prefix, *(str(key.key) for key in path if hasattr(key, "key"))))
            stored = parallel.sharding(name, (1, *value.shape), self.mesh)
            if "fsdp" not in stored.spec:
                return value
            if jnp.issubdtype(value.dtype, jnp.floating):
                value = value.astype(dtype)
            if value.ndim == _OF_EXPERTS:
                return value
            own = NamedSharding(self.mesh, PartitionSpec(*stored.spec[1:]))
            return parallel.gather(value, own)

        return jax.tree_util.tree_map_with_path(whole, state)
