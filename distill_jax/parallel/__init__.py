"""The mesh of devices and where arrays live on it.

Axes are `data` (the batch is split), `fsdp` (the batch and the stored parameters are split; these
are put together where they are used) and `tensor` (a layer is computed in parts). The mesh (n,1,1)
keeps whole parameters on every device and splits the batch, which is what `pmap` used to do.
"""

from distill_jax.parallel.mesh import (
    AXES,
    BATCH,
    batch_sharding,
    check_divides,
    describe_devices,
    fix_gpu_order,
    make_mesh,
    platform,
    replicated,
    ways,
)
from distill_jax.parallel.placing import (
    fetch,
    fetch_part,
    own_rows,
    place,
    place_rows,
    share,
    to_first,
)
from distill_jax.parallel.rules import (
    GATHERED,
    PARTS,
    assembled,
    gathered,
    layout,
    sharding,
    undivided,
)

__all__ = [
    "AXES",
    "BATCH",
    "GATHERED",
    "PARTS",
    "assembled",
    "batch_sharding",
    "check_divides",
    "describe_devices",
    "fetch",
    "fetch_part",
    "fix_gpu_order",
    "gathered",
    "layout",
    "make_mesh",
    "own_rows",
    "place",
    "place_rows",
    "platform",
    "replicated",
    "share",
    "sharding",
    "to_first",
    "undivided",
    "ways",
]
