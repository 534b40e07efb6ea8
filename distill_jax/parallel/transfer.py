"""Transfers between the host and the devices of all processes.

A process can put arrays on its own devices only. Where a mesh includes devices of other processes,
each process puts the shards that its devices hold, from the whole value (the same in every
process) or from its own rows of a batch. In a single process all of this is `jax.device_put` and
`jax.device_get`.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from distill_jax.errors import UsageError
from distill_jax.parallel.mesh import batch_sharding, batch_ways
from distill_jax.processes import coordination

Index = tuple[int, ...]


class FetchFn(Protocol):
    """`fetch_slice` or `fetch_to_first`."""

    def __call__(self, value: Any, index: Index = ()) -> np.ndarray | None: ...


class Sliceable(Protocol):
    """A value computed from arrays, slice by slice, such as a kernel with its adapter merged."""

    def fetch_slice(self, index: Index, fetch: FetchFn) -> np.ndarray | None:
        """The slice at `index`, computed from what `fetch` returns for the arrays."""


def put(tree: Any, sharding: Any) -> Any:
    """Puts whole values, the same in every process, on the devices.

    Args:
      tree: of arrays on the host or the devices.
      sharding: one for all arrays, or a tree of them.
    """
    if isinstance(sharding, Sharding):
        return jax.tree.map(lambda value: _put_array(value, sharding), tree)
    return jax.tree.map(_put_array, tree, sharding)


def _put_array(value: Any, sharding: Sharding) -> jax.Array:
    spans_processes = isinstance(value, jax.Array) and not value.is_fully_addressable
    if sharding.is_fully_addressable or spans_processes:
        return jax.device_put(value, sharding)
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = _put_array(jax.random.key_data(value), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def put_rows(tree: Any, sharding: NamedSharding, *, axis: int = 0) -> Any:
    """Puts batches on the devices; each process has its own rows, see `process_share`.

    Args:
      tree: of arrays on the host.
      sharding: over the rows of the whole batch.
      axis: of the rows in each array.
    """

    def put_array(value: np.ndarray) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        assert isinstance(sharding.mesh, Mesh)
        shape = list(value.shape)
        shape[axis] *= process_share(sharding.mesh)[1]
        return jax.make_array_from_process_local_data(sharding, value, tuple(shape))

    return jax.tree.map(put_array, tree)


def local_rows(rows: jax.Array) -> np.ndarray:
    """The inverse of `put_rows`: the rows that this process has put."""
    if rows.is_fully_addressable:
        return np.asarray(rows)
    shards = {shard.index[0].start or 0: shard.data for shard in rows.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def fetch(tree: Any) -> Any:
    """Whole arrays on the host of every process; all processes call it together."""

    def gather_array(value: Any) -> Any:
        split = isinstance(value, jax.Array) and not (
            value.is_fully_addressable or value.is_fully_replicated
        )
        return multihost_utils.process_allgather(value, tiled=True) if split else value

    return jax.device_get(jax.tree.map(gather_array, tree))


def fetch_slice(value: jax.Array | np.ndarray | Sliceable, index: Index = ()) -> np.ndarray:
    """`value[index]`, whole on the host of every process; all processes call it together.

    Unlike `fetch`, it leaves no copy that lives as long as the array, neither on the host nor on
    the devices.

    Args:
      value: an array on the devices or the host, or a `Sliceable`.
      index: positions along the first axes.
    """
    if isinstance(value, jax.Array | np.ndarray):
        fetched = _fetch(value, index, True)
    else:
        fetched = value.fetch_slice(index, fetch_slice)
    assert fetched is not None  # every process wants it
    return fetched


def fetch_to_first(
    value: jax.Array | np.ndarray | Sliceable, index: Index = ()
) -> np.ndarray | None:
    """As `fetch_slice`, on the host of process 0 only; None in the other processes."""
    if isinstance(value, jax.Array | np.ndarray):
        return _fetch(value, index, coordination.is_first())
    return value.fetch_slice(index, fetch_to_first)


def _fetch(value: jax.Array | np.ndarray, index: Index, wanted: bool) -> np.ndarray | None:
    if isinstance(value, np.ndarray):
        return np.asarray(value[index]) if wanted else None
    whole = None
    if not (value.is_fully_addressable or value.is_fully_replicated):
        assert isinstance(value.sharding, NamedSharding)  # all arrays of a mesh have one
        whole = NamedSharding(value.sharding.mesh, PartitionSpec())
    part = _compile_slice(len(index), whole)(value, *index)
    # The devices would otherwise run ahead and hold many whole tensors at a time.
    jax.block_until_ready(part)
    return np.asarray(part) if wanted else None


@functools.cache
def _compile_slice(axes: int, whole: Sharding | None) -> Callable[..., jax.Array]:
    """A program that makes a new array: JAX keeps the host's copy of an array alive with it."""

    def take(value: jax.Array, *index: jax.Array) -> jax.Array:
        return value[index] if axes else jnp.copy(value)

    return jax.jit(take, out_shardings=whole)


def process_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process reads part `index` of `count` equal parts of a batch.

    There are as many parts as processes, or fewer where the `tensor` axis makes several processes
    compute on the same rows.

    Raises:
      UsageError: the axes of the mesh do not divide the batch between whole processes.
    """
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return 0, 1
    ways = batch_ways(mesh)
    indices = sharding.addressable_devices_indices_map((ways,)).values()
    own = sorted({index[0].start or 0 for index in indices if index is not None})
    first, count = own[0], len(own)
    if own != list(range(first, first + count)) or first % count or ways % count:
        sizes = "x".join(str(size) for size in mesh.devices.shape)
        raise UsageError(
            f"mesh.tensor={mesh.shape['tensor']}: in the mesh {sizes} the process "
            f"{jax.process_index()} of {jax.process_count()} has no share of a batch of its own; "
            "expected a divisor or a multiple of the devices of a process"
        )
    return first // count, ways // count
