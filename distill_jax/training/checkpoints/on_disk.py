"""`layout.Layout` on a disk, where a checkpoint is committed by a rename.

1200/            a checkpoint; the name appears by one atomic rename, when all is on the disk
1300.unsealed/   being written; the next save deletes what a stopped process has left
1100.trash/      being deleted; likewise
"""

import hashlib
import os
import pathlib
import re
import shutil

from distill_jax.storage import fsync
from distill_jax.training.checkpoints.layout import MANIFEST, Damaged, Leftover


def exists(path: pathlib.Path) -> bool:
    return os.path.lexists(path)


def list_names(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def list_files(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    found = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for name in (*folders, *names):
            path = pathlib.Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise Damaged(f"{relative!r} is a symbolic link")
            if name in names:
                if not path.is_file():
                    raise Damaged(f"{relative!r} is neither a file nor a folder")
                found.append((relative, path))
    return found


def _raise(error: OSError) -> None:
    raise error


def steps(directory: pathlib.Path) -> list[int]:
    return [int(name) for name in list_names(directory) if re.fullmatch(r"0|[1-9][0-9]*", name)]


def sealed_steps(directory: pathlib.Path) -> list[int]:
    return [step for step in steps(directory) if (directory / str(step) / MANIFEST).is_file()]


def leftovers(directory: pathlib.Path) -> list[Leftover]:
    directory.mkdir(parents=True, exist_ok=True)
    found = []
    for path in sorted(directory.iterdir()):
        if match := re.fullmatch(r"([0-9]+)\.(unsealed|trash)", path.name):
            found.append(Leftover(match[1], path, half_written=match[2] == "unsealed"))
    return found


def unsealed(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / f"{step}.unsealed"


def make_unsealed(directory: pathlib.Path, step: int) -> None:
    unsealed(directory, step).mkdir()


def flush_files(unsealed: pathlib.Path) -> None:
    for folder, _, names in os.walk(unsealed):
        for name in names:
            fsync(pathlib.Path(folder, name))


def commit(unsealed: pathlib.Path, manifest: str, sealed: pathlib.Path) -> None:
    (unsealed / MANIFEST).write_text(manifest, encoding="utf-8", newline="")
    fsync(unsealed / MANIFEST)
    # The names in every folder, innermost first, must be on the disk before the rename.
    for folder, _, _ in os.walk(unsealed, topdown=False):
        fsync(pathlib.Path(folder))
    os.rename(unsealed, sealed)
    fsync(sealed.parent)


def retract(directory: pathlib.Path, step: int) -> None:
    target = garbage(directory, step)
    if exists(target):
        remove(target)
    move(directory / str(step), target)


def garbage(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / f"{step}.trash"


def remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def move(path: pathlib.Path, target: pathlib.Path) -> None:
    os.rename(path, target)
    fsync(path.parent)


def read_manifest(sealed: pathlib.Path) -> bytes:
    if sealed.is_symlink() or not sealed.is_dir():
        raise Damaged("it is not a folder")
    path = sealed / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise Damaged("it has no manifest")
    return path.read_bytes()


def read(path: pathlib.Path) -> bytes:
    return path.read_bytes()


def write(path: pathlib.Path, content: bytes) -> None:
    path.write_bytes(content)


def sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
