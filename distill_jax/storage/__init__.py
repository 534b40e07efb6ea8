"""Where files lie, on a disk or in a bucket, and writing them whole or not at all.

`paths` has what every room uses and this package exports; `gcs` is the bucket's side of it,
`responses` a folder that is written in shards. Left out on purpose: formats, which belong to the
rooms that read and write them.
"""

from distill_jax.storage.paths import (
    Growing,
    expected,
    fetched,
    flush,
    is_remote,
    local,
    make_folder,
    place,
    previous_of,
    published,
    reached,
    replacing,
    write_atomically,
)

__all__ = [
    "Growing",
    "expected",
    "fetched",
    "flush",
    "is_remote",
    "local",
    "make_folder",
    "place",
    "previous_of",
    "published",
    "reached",
    "replacing",
    "write_atomically",
]
