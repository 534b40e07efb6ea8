"""Where files lie, on a disk or in a bucket, and writing them whole or not at all.

`paths` has what every room uses and this package exports; `gcs` is the bucket's side of it.
Left out on purpose: formats, which belong to the rooms that read and write them.
"""

from distill_jax.storage.paths import (
    GrowingFiles,
    free_bytes,
    fsync,
    is_remote,
    local_copy,
    local_path,
    make_folder,
    path_problem,
    previous_folder,
    replacing_folder,
    reporting_unreachable,
    resolve_path,
    staging_folder,
    write_atomically,
)

__all__ = [
    "GrowingFiles",
    "free_bytes",
    "fsync",
    "is_remote",
    "local_copy",
    "local_path",
    "make_folder",
    "path_problem",
    "previous_folder",
    "replacing_folder",
    "reporting_unreachable",
    "resolve_path",
    "staging_folder",
    "write_atomically",
]
