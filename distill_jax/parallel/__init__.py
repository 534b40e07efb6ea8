"""The mesh of devices and where arrays live on it.

Axes are `data` (the batch is split), `fsdp` (the batch and, by sharding rules, the parameters are
split) and `tensor` (a layer is split). Rules that shard parameters are left out so far: parameters
are whole on every device, which is what `pmap` used to do.
"""

from distill_jax.parallel.mesh import (
    AXES,
    batch_sharding,
    check_divides,
    describe_devices,
    fix_gpu_order,
    make_mesh,
    replicated,
)
from distill_jax.parallel.placing import fetch, own_rows, place, place_rows, share

__all__ = [
    "AXES",
    "batch_sharding",
    "check_divides",
    "describe_devices",
    "fetch",
    "fix_gpu_order",
    "make_mesh",
    "own_rows",
    "place",
    "place_rows",
    "replicated",
    "share",
]
