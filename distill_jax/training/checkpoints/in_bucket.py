"""The folders of checkpoints in a bucket, where nothing is renamed at once.

    1200/MANIFEST.sha256   written last: without it 1200/ is no checkpoint
    1300/state/...         being written; what a stopped process left, the next save deletes
    1100/...               being deleted, its manifest first; likewise

`on_disk` has the same functions for disks, and says what they do.
"""

import re
from typing import Any

from distill_jax.storage import gcs
from distill_jax.training.checkpoints.on_disk import MANIFEST, Damaged


def exists(path: Any) -> bool:
    return bool(gcs.list_names(path))


def _numbered(directory: Any) -> dict[int, bool]:
    """The steps that have anything, and whether that is a checkpoint."""
    found: dict[int, bool] = {}
    for name in gcs.list_names(directory):
        if re.fullmatch(r"0|[1-9][0-9]*", name):
            found[int(name)] = MANIFEST in gcs.list_names(directory / name)
    return found


def steps(directory: Any) -> list[int]:
    return [step for step, sealed in _numbered(directory).items() if sealed]


sealed_steps = steps


def unsealed(directory: Any, step: int) -> Any:
    return directory / str(step)


def leftovers(directory: Any) -> list[tuple[str, Any, bool]]:
    half = [step for step, sealed in _numbered(directory).items() if not sealed]
    return [(str(step), directory / str(step), True) for step in sorted(half)]


def begin(directory: Any, step: int) -> None:
    pass  # a folder is there with its first object


def settle(written: Any) -> None:
    pass  # an object that is there is stored


def finish(written: Any, content: str, sealed: Any) -> None:
    gcs.write(sealed / MANIFEST, content.encode())


def manifest(sealed: Any) -> bytes:
    try:
        return gcs.read(sealed / MANIFEST)
    except FileNotFoundError:
        raise Damaged("it has no manifest") from None


def files(folder: Any) -> list[tuple[str, Any]]:
    return [(name, folder / name) for name in gcs.list_objects(folder)]


names = gcs.list_names
read = gcs.read
write = gcs.write
digest = gcs.sha256
move = gcs.move
remove = gcs.remove_all


def trash(directory: Any, step: int) -> Any:
    return directory / str(step)


def withdraw(directory: Any, step: int) -> None:
    gcs.remove_object(directory / str(step) / MANIFEST)
