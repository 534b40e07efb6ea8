"""How a decoder is laid out over a mesh while it computes.

The stream of activations is split by rows of the batch over `data` and `fsdp`, and whole over
`tensor`; heads, and what is inside an MLP, are split over `tensor`. The weights of one layer at a
time are put together over `fsdp`, in the dtype that they are used in, and never kept.
"""

import dataclasses

import jax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from distill_jax import parallel


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

    def table(self, name: str, table: Array) -> Array:
        """An embedding [V, D], in the dtype of its use."""
        return parallel.gathered(table, parallel.sharding(name, table.shape, self.mesh))

    def weights(self, prefix: str, state: nnx.State, dtype: DTypeLike) -> nnx.State:
        """The parameters of one layer, without the axis of layers.

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
            if jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
                value = value.astype(dtype)
            own = NamedSharding(self.mesh, PartitionSpec(*stored.spec[1:]))
            return parallel.gathered(value, own)

        return jax.tree_util.tree_map_with_path(whole, state)
