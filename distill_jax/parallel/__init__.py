"""The mesh of devices and where arrays live on it.

Axes are `data` (the batch is split), `fsdp` (the batch and the stored parameters are split; these
are put together where they are used) and `tensor` (a layer is computed in parts). The mesh (n,1,1)
keeps whole parameters on every device and splits the batch, which is what `pmap` used to do.
"""

from distill_jax.parallel.mesh import (
    AXES,
    BATCH,
    batch_sharding,
    batch_ways,
    check_divides,
    describe_devices,
    fix_gpu_order,
    make_mesh,
    platform,
    replicated,
)
from distill_jax.parallel.rules import (
    GATHERED,
    PARTS,
    gather,
    gather_tree,
    sharding,
    shardings,
    undivided,
)
from distill_jax.parallel.transfer import (
    fetch,
    fetch_slice,
    fetch_to_first,
    local_rows,
    process_share,
    put,
    put_rows,
)

__all__ = [
    "AXES",
    "BATCH",
    "GATHERED",
    "PARTS",
    "gather_tree",
    "batch_sharding",
    "batch_ways",
    "check_divides",
    "describe_devices",
    "fetch",
    "fetch_slice",
    "fix_gpu_order",
    "gather",
    "shardings",
    "make_mesh",
    "local_rows",
    "put",
    "put_rows",
    "platform",
    "replicated",
    "process_share",
    "sharding",
    "fetch_to_first",
    "undivided",
]
