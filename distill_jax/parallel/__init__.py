"""The mesh of devices, the shardings of arrays on it, and transfers from and to the host.

Its axes are `data` (splits the batch), `fsdp` (splits the batch and the parameters, which are
gathered where they are used) and `tensor` (splits the computation of a layer). The mesh (n,1,1) is
data parallelism with replicated parameters.
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
