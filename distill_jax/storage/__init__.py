"""Where files lie, on a disk or in a bucket, and writing them whole or not at all.

`paths` has what every room uses and this package exports, `locks` keeps a second writer out of a
folder, and `gcs` is the bucket's side of both.
Left out on purpose: formats, which belong to the rooms that read and write them.
"""

from distill_jax.storage.locks import LOCK, find_holder, holding
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
    remove_torn,
    replacing_folder,
    reporting_unreachable,
    resolve_path,
    staging_folder,
    write_atomically,
)

__all__ = [
    "LOCK",
    "GrowingFiles",
    "find_holder",
    "free_bytes",
    "fsync",
    "holding",
    "is_remote",
    "local_copy",
    "local_path",
    "make_folder",
    "path_problem",
    "previous_folder",
    "remove_torn",
    "replacing_folder",
    "reporting_unreachable",
    "resolve_path",
    "staging_folder",
    "write_atomically",
]
