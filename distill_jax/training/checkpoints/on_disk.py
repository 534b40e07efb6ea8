"""The folders of checkpoints on a disk: what `integrity` does by renaming them.

    1200/            a checkpoint; the name appears by one atomic rename, all being on the disk
    1300.unsealed/   being written; what a stopped process left, the next save deletes
    1100.trash/      being deleted; likewise

`in_bucket` has the same functions for gs://.
"""

import hashlib
import os
import pathlib
import re
import shutil

from distill_jax.storage import fsync

MANIFEST = "MANIFEST.sha256"


class Damaged(Exception):
    """A checkpoint that must not be used; the message says why, without naming the checkpoint."""


def exists(path: pathlib.Path) -> bool:
    """Whether there is anything under this name."""
    return os.path.lexists(path)


def names(folder: pathlib.Path) -> list[str]:
    """What is directly in a folder; [] without it."""
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def steps(directory: pathlib.Path) -> list[int]:
    """Every step that has something under a checkpoint's name, in no order."""
    return [int(name) for name in names(directory) if re.fullmatch(r"0|[1-9][0-9]*", name)]


def sealed_steps(directory: pathlib.Path) -> list[int]:
    """Those of `steps` that have a manifest."""
    return [step for step in steps(directory) if (directory / str(step) / MANIFEST).is_file()]


def unsealed(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Where the checkpoint of a step is written before it is sealed."""
    return directory / f"{step}.unsealed"


def leftovers(directory: pathlib.Path) -> list[tuple[str, pathlib.Path, bool]]:
    """What stopped processes have left: step, path, and whether it was being written.

    The folder is made when absent.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = []
    for path in sorted(directory.iterdir()):
        if match := re.fullmatch(r"([0-9]+)\.(unsealed|trash)", path.name):
            found.append((match[1], path, match[2] == "unsealed"))
    return found


def begin(directory: pathlib.Path, step: int) -> None:
    """Makes the folder of an unsealed checkpoint."""
    unsealed(directory, step).mkdir()


def settle(written: pathlib.Path) -> None:
    """Returns when the content of all files in a folder is on the disk."""
    for folder, _, names in os.walk(written):
        for name in names:
            fsync(pathlib.Path(folder, name))


def finish(written: pathlib.Path, content: str, sealed: pathlib.Path) -> None:
    """Writes the manifest, and gives the folder its name when all of it is on the disk."""
    (written / MANIFEST).write_text(content, encoding="utf-8", newline="")
    fsync(written / MANIFEST)
    for folder, _, _ in os.walk(written, topdown=False):
        fsync(pathlib.Path(folder))
    os.rename(written, sealed)
    fsync(sealed.parent)


def manifest(sealed: pathlib.Path) -> bytes:
    """The manifest of a checkpoint.

    Raises:
      Damaged: there is none.
    """
    if sealed.is_symlink() or not sealed.is_dir():
        raise Damaged("it is not a folder")
    path = sealed / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise Damaged("it has no manifest")
    return path.read_bytes()


def files(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Every file below a folder, with its name there; links and devices are refused."""
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


def read(path: pathlib.Path) -> bytes:
    """The content of a file."""
    return path.read_bytes()


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, which `seal` has flushed later."""
    path.write_bytes(content)


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def move(path: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a folder, beside itself."""
    os.rename(path, target)
    fsync(path.parent)


def trash(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Where a checkpoint is that `withdraw` has made none."""
    return directory / f"{step}.trash"


def withdraw(directory: pathlib.Path, step: int) -> None:
    """Makes a checkpoint none, at once, before it is deleted: a crash leaves it whole, or trash."""
    place = trash(directory, step)
    if exists(place):
        remove(place)
    move(directory / str(step), place)


def remove(path: pathlib.Path) -> None:
    """Deletes a folder with all that is in it, or a file or link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
