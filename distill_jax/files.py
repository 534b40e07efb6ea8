"""Writing files and folders so that a reader, or a crash, never meets half of one."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

from distill_jax.errors import UsageError


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file whole or not at all, durably: temporary file, fsync, rename, fsync of folder.

    Args:
      path: the file; its folder exists.
      content: bytes, or text that is written as UTF-8.
    """
    path = pathlib.Path(path)
    content = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    flush(path.parent)


def flush(path: str | os.PathLike) -> None:
    """Has the content of a file, or the names in a folder, written to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def previous_of(folder: pathlib.Path) -> pathlib.Path:
    """Where the content of a folder lies while `replacing` puts another in its place."""
    return folder.with_name(f".{folder.name}.previous")


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, ours: Callable[[str], bool], what: str, key: str = "path"
) -> Iterator[pathlib.Path]:
    """A folder to write files to, which then takes the place of the one that may be there.

    It lies beside the target as ".NAME.saving". At the end its files are flushed to the disk; then
    the target is renamed to ".NAME.previous", the new folder to the target's name, and the old one
    removed. A process killed on the way leaves a whole folder under one of these names, and the
    next one that comes here puts it right. One writer a folder.

    Args:
      path: the folder; made if need be.
      ours: whether a name is that of a file that is written here.
      what: such a folder holds, for the error.
      key: what an error calls the path.

    Raises:
      UsageError: the folder holds other files, which replacing it would delete.
    """
    folder = pathlib.Path(path).resolve()
    found = os.listdir(folder) if folder.is_dir() else [folder.name] if folder.exists() else []
    others = sorted(name for name in found if not (folder.is_dir() and ours(name)))
    if others:
        raise UsageError(
            f"{key}={str(path)!r}: expected a new folder or one with nothing but {what}; "
            f"found {others[0]!r}, which replacing it would delete"
        )
    saving, previous = folder.with_name(f".{folder.name}.saving"), previous_of(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    _discard(saving, ours)
    _discard(previous, ours)
    saving.mkdir()
    yield saving
    for file in saving.iterdir():
        flush(file)
    flush(saving)
    if folder.exists():
        folder.rename(previous)
    saving.rename(folder)
    flush(folder.parent)
    _discard(previous, ours)


def _discard(folder: pathlib.Path, ours: Callable[[str], bool]) -> None:
    """Removes a folder of ours. Only files of ours: anything else in it makes `rmdir` refuse."""
    if folder.is_dir():
        for file in folder.iterdir():
            if ours(file.name):
                file.unlink()
        folder.rmdir()
