"""From the host to the devices of all processes, and back.

A process can put arrays on its own devices alone. Where the mesh has those of others, each process
puts the parts that its devices hold; what it is given is the whole value, the same everywhere, or
its own rows of a batch. In a single process all of this is `jax.device_put` and `jax.device_get`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from distill_jax.errors import UsageError
from distill_jax.parallel.mesh import batch_sharding
from distill_jax.processes import coordination


def put(tree: Any, sharding: Any) -> Any:
    """Whole values, the same in every process, on the devices.

    Args:
      tree: of arrays on the host or the devices.
      sharding: one for all, or a tree of them.
    """
    if isinstance(sharding, Sharding):
        return jax.tree.map(lambda value: _placed(value, sharding), tree)
    return jax.tree.map(_placed, tree, sharding)


def _placed(value: Any, sharding: Sharding) -> jax.Array:
    elsewhere = isinstance(value, jax.Array) and not value.is_fully_addressable
    if sharding.is_fully_addressable or elsewhere:
        return jax.device_put(value, sharding)
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = _placed(jax.random.key_data(value), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def put_rows(tree: Any, sharding: Sharding, *, axis: int = 0) -> Any:
    """Batches of which each process has its own rows, of `process_share`, on the devices.

    Args:
      tree: of arrays on the host; the axis holds the rows.
      sharding: over the rows of the whole batch.
      axis: of the rows.
    """

    def placed(value: np.ndarray) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        shape = list(value.shape)
        shape[axis] *= process_share(sharding.mesh)[1]
        return jax.make_array_from_process_local_data(sharding, value, tuple(shape))

    return jax.tree.map(placed, tree)


def local_rows(rows: jax.Array) -> np.ndarray:
    """Back from `put_rows`: the rows that this process has given."""
    if rows.is_fully_addressable:
        return np.asarray(rows)
    parts = {shard.index[0].start or 0: shard.data for shard in rows.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def fetch(tree: Any) -> Any:
    """Arrays from the devices as whole arrays on the host of every process.

    All processes call it together: what is split over processes is gathered.
    """

    def fetched(value: Any) -> Any:
        split = isinstance(value, jax.Array) and not (
            value.is_fully_addressable or value.is_fully_replicated
        )
        return multihost_utils.process_allgather(value, tiled=True) if split else value

    return jax.device_get(jax.tree.map(fetched, tree))


def fetch_slice(value: Any, place: tuple[int, ...] = ()) -> np.ndarray:
    """`value[place]`, whole on the host of every process, which all call it together.

    Nothing of it stays on the host or the devices with the array, as with `fetch`.

    Args:
      value: an array on the devices or the host; or what is made of some, which has a method
        `fetch_slice` with the place and either of these functions as its arguments.
      place: numbers along the first axes.
    """
    if not isinstance(value, jax.Array | np.ndarray):
        return value.fetch_slice(place, fetch_slice)
    return _part(value, place, True)


def fetch_to_first(value: Any, place: tuple[int, ...] = ()) -> np.ndarray | None:
    """As `fetch_slice`, on the host of the first process alone; None on the others."""
    if not isinstance(value, jax.Array | np.ndarray):
        return value.fetch_slice(place, fetch_to_first)
    return _part(value, place, coordination.is_first())


def _part(value: Any, place: tuple[int, ...], wanted: bool) -> np.ndarray | None:
    if isinstance(value, np.ndarray):
        return np.asarray(value[place]) if wanted else None
    split = not (value.is_fully_addressable or value.is_fully_replicated)
    whole = NamedSharding(value.sharding.mesh, PartitionSpec()) if split else None
    part = _taken(len(place), whole)(value, *place)
    # Else the devices run ahead, and have many whole tensors at a time.
    jax.block_until_ready(part)
    return np.asarray(part) if wanted else None


@functools.cache
def _taken(axes: int, whole: Sharding | None) -> Callable[..., jax.Array]:
    """A new array, as the host's copy of one lives as long as it does."""

    def taken(value: jax.Array, *place: jax.Array) -> jax.Array:
        return value[place] if axes else jnp.copy(value)

    return jax.jit(taken, out_shardings=whole)


def process_share(mesh: Mesh) -> tuple[int, int]:
    """Which of how many equal parts of a batch this process reads.

    There are as many parts as processes, or fewer where the `tensor` axis makes several processes
    compute on the same rows.

    Raises:
      UsageError: the axes of the mesh do not divide the batch between whole processes.
    """
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return 0, 1
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    held = sharding.addressable_devices_indices_map((ways,)).values()
    own = sorted({index[0].start or 0 for index in held})
    first, count = own[0], len(own)
    if own != list(range(first, first + count)) or first % count or ways % count:
        sizes = "x".join(str(size) for size in mesh.devices.shape)
        raise UsageError(
            f"mesh.tensor={mesh.shape['tensor']}: in the mesh {sizes} the process "
            f"{jax.process_index()} of {jax.process_count()} has no share of a batch of its own; "
            "expected a divisor or a multiple of the devices of a process"
        )
    return first // count, ways // count
