"""The arrays of a checkpoint: Orbax writes and reads them, each named by its number.

Orbax is used in this module alone. Left out on purpose: hashes, folders, and which checkpoint.
"""

import logging
import math
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

_TIMEOUT_SECONDS = 1200
_READ_AT_ONCE = 2 * 10**9  # bytes that a process holds in addition to its arrays while it restores

# Orbax logs some 200 lines of tracebacks when a disk is full, and then raises the same errors; of
# its other tasks that failed, asyncio logs the tracebacks when it collects them.
logging.getLogger("absl").addFilter(
    lambda record: not (record.exc_info and "orbax" in record.pathname)
)
logging.getLogger("asyncio").addFilter(
    lambda record: not (record.exc_info and "orbax" in record.getMessage())
)


class ArrayWriter:
    """Writes arrays in the background; all hosts call its methods together."""

    def __init__(self) -> None:
        self._checkpointer = ocp.AsyncCheckpointer(_handler(), timeout_secs=_TIMEOUT_SECONDS)

    def start(self, folder: pathlib.Path, leaves: dict[str, jax.Array]) -> None:
        """Starts to write arrays, and returns once they may be changed or donated."""
        arrays = {str(i): _private(leaf) for i, leaf in enumerate(leaves.values())}
        self._checkpointer.save(folder, args=ocp.args.PyTreeSave(arrays))

    def wait(self) -> None:
        """Returns when the arrays of all hosts are in the folder; raises what failed."""
        self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._checkpointer.close()


def read(
    folder: pathlib.Path, saved: dict[str, str], wanted: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads arrays, onto the shardings of `wanted`; without one, onto the first device.

    Args:
      folder: that `ArrayWriter` wrote.
      saved: the names of the arrays, in the order in which they were written.
      wanted: shape, dtype and sharding of each array, by the same names.
    """
    numbers = {name: str(number) for number, name in enumerate(saved)}
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = {
        numbers[name]: leaf if leaf.sharding else leaf.update(sharding=first)
        for name, leaf in wanted.items()
    }
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    with ocp.Checkpointer(_handler(max(map(_shard_bytes, target.values())))) as reader:
        arrays = reader.restore(
            folder, args=ocp.args.PyTreeRestore(target, restore_args=restore_args)
        )
    return {name: arrays[numbers[name]] for name in wanted}


def _handler(largest: int = 0) -> ocp.PyTreeCheckpointHandler:
    """Writes and reads arrays; `largest` is the size in bytes of the largest shard to read."""
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        # Trained weights hardly compress (8 %), and compression takes three times as long.
        use_compression=False,
        # Orbax would read 96 GB at a time, and refuses shards that are near its limit.
        restore_concurrent_gb=max(_READ_AT_ONCE, 4 * largest) / 1e9,
    )


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _private(leaf: jax.Array) -> jax.Array:
    """An array that the caller cannot donate away while it is written.

    Orbax copies from an accelerator to the host before its `save` returns. On a CPU it takes a view
    of the same buffer instead: then JAX refuses to donate it, and would have to copy in the step.
    """
    device: jax.Device = next(iter(leaf.sharding.device_set))
    if device.platform != "cpu":
        return leaf
    return jax.device_put(leaf, leaf.sharding, may_alias=False)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by their path in the tree, such as "['params']['blocks/0/kernel']"."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def describe(leaf: jax.Array | jax.ShapeDtypeStruct) -> str:
    """The dtype and the shape of an array, such as "float32[3, 4]"."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def differences(saved: dict[str, str], wanted: dict[str, jax.ShapeDtypeStruct]) -> str:
    """In what the saved arrays differ from the wanted ones, in a few words; "" when they agree.

    Args:
      saved: what `describe` gave, by name.
      wanted: the arrays, by name.
    """
    described = {name: describe(leaf) for name, leaf in wanted.items()}
    wrong = [
        f"{name} is {saved.get(name, 'missing')}, wanted: {described.get(name, 'nothing')}"
        for name in sorted(saved.keys() | described.keys())
        if saved.get(name) != described.get(name)
    ]
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more
