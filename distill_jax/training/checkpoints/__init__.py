"""Checkpoints that are verified before they are used, on a disk or in a bucket.

`manager` saves and restores with Orbax, `integrity` seals and checks a folder, `on_disk` and
`in_bucket` are the file operations of each kind of storage.
"""

from distill_jax.training.checkpoints.manager import (
    CheckpointError,
    Checkpoints,
    Restored,
    free_space,
)

__all__ = ["CheckpointError", "Checkpoints", "Restored", "free_space"]
