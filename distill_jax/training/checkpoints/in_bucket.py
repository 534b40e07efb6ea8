"""`layout.Layout` in a bucket, where no folder can be renamed at once.

    1200/MANIFEST.sha256   written last: without it, 1200/ is no checkpoint
    1300/state/...         being written; the next save deletes what a stopped process has left
    1100/...               being deleted, its manifest first; likewise

A checkpoint is written in place: its unsealed, sealed and garbage folders are the same.
"""

import pathlib
import re

from distill_jax.storage import gcs
from distill_jax.training.checkpoints.layout import MANIFEST, Damaged, Leftover


def exists(path: pathlib.Path) -> bool:
    return bool(gcs.list_names(path))


def list_names(folder: pathlib.Path) -> list[str]:
    return gcs.list_names(folder)


def list_files(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    return [(name, folder / name) for name in gcs.list_objects(folder)]


def _is_sealed_by_step(directory: pathlib.Path) -> dict[int, bool]:
    """Every step that has an object, and whether it has a manifest."""
    found = {}
    for name in gcs.list_names(directory):
        if re.fullmatch(r"0|[1-9][0-9]*", name):
            found[int(name)] = MANIFEST in gcs.list_names(directory / name)
    return found


def steps(directory: pathlib.Path) -> list[int]:
    return sealed_steps(directory)


def sealed_steps(directory: pathlib.Path) -> list[int]:
    return [step for step, is_sealed in _is_sealed_by_step(directory).items() if is_sealed]


def leftovers(directory: pathlib.Path) -> list[Leftover]:
    found = _is_sealed_by_step(directory)
    half = [step for step, is_sealed in found.items() if not is_sealed]
    return [Leftover(str(step), directory / str(step), half_written=True) for step in sorted(half)]


def unsealed(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / str(step)


def make_unsealed(directory: pathlib.Path, step: int) -> None:
    pass  # a folder exists as soon as it has an object


def flush_files(unsealed: pathlib.Path) -> None:
    pass  # the bucket acknowledges an object only when it is stored


def commit(unsealed: pathlib.Path, manifest: str, sealed: pathlib.Path) -> None:
    gcs.write(sealed / MANIFEST, manifest.encode())


def retract(directory: pathlib.Path, step: int) -> None:
    gcs.remove_object(directory / str(step) / MANIFEST)


def garbage(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / str(step)


def remove(path: pathlib.Path) -> None:
    gcs.remove_all(path)


def move(path: pathlib.Path, target: pathlib.Path) -> None:
    gcs.move(path, target)


def read_manifest(sealed: pathlib.Path) -> bytes:
    try:
        return gcs.read(sealed / MANIFEST)
    except FileNotFoundError:
        raise Damaged("it has no manifest") from None


def read(path: pathlib.Path) -> bytes:
    return gcs.read(path)


def write(path: pathlib.Path, content: bytes) -> None:
    gcs.write(path, content)


def sha256(path: pathlib.Path) -> str:
    return gcs.sha256(path)
