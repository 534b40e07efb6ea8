"""Checkpoints that are verified before they are used, on a disk or in a bucket.

`manager` decides which checkpoints to save, restore and keep; `arrays` writes and reads the arrays
with Orbax; `integrity` seals and checks a folder; `layout` is the protocol of the file operations,
which `on_disk` and `in_bucket` implement.
"""

from distill_jax.training.checkpoints.manager import (
    CheckpointError,
    Checkpoints,
    Restored,
    require_free_space,
)

__all__ = ["CheckpointError", "Checkpoints", "Restored", "require_free_space"]
