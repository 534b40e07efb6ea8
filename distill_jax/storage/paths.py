"""Where files lie, on a disk or in a bucket, and writing them so that none is ever half there."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.storage import gcs

# One slash: pathlib makes "gs:/bucket" of "gs://bucket", which would be a folder named "gs:".
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_UPLOAD_SECONDS = 30.0


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file whole or not at all, durably: temporary file, fsync, rename, fsync of folder.

    In a bucket one request does all of it.

    Args:
      path: the file; its folder exists.
      content: bytes, or text that is written as UTF-8.
    """
    content = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        gcs.write(path, content)
        return
    path = pathlib.Path(path)
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
    fsync(path.parent)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether it lies in a bucket: a text, or an `epath.Path`, that starts with gs://."""
    return os.fspath(path).startswith(gcs.SCHEME)


def path_problem(path: str | os.PathLike, *, remote: bool) -> str:
    """What is wrong with a path, by what was expected in its place; empty when it is fine.

    Args:
      path: what a config, a command or a caller names.
      remote: whether it may lie in a bucket.
    """
    if remote and is_remote(path):
        return gcs.path_problem(path)
    if _URL.match(os.fspath(path)):
        return f"a local file or folder{', or gs://' * remote}"
    return ""


def local_path(path: str | os.PathLike, key: str) -> pathlib.Path:
    """The path of a file or folder on a disk.

    Args:
      path: what a config, a command or a caller names.
      key: what an error calls it, such as "data.path" or "--workdir".

    Raises:
      UsageError: it is a URL, which would become a local folder named by its scheme.
    """
    if wrong := path_problem(path, remote=False):
        raise UsageError(f"{key}={os.fspath(path)!r}: expected {wrong}")
    return pathlib.Path(path)


def resolve_path(path: str | os.PathLike, key: str) -> Any:
    """The path of a file or folder on a disk or in a bucket.

    Args:
      path: what a config, a command or a caller names.
      key: what an error calls it.

    Returns:
      A `pathlib.Path`, or the `epath.Path` of gs://bucket/folder.

    Raises:
      UsageError: it is another URL, or gcsfs is not installed for this one.
    """
    if wrong := path_problem(path, remote=True):
        raise UsageError(f"{key}={os.fspath(path)!r}: expected {wrong}")
    return gcs.resolve_path(path, key) if is_remote(path) else pathlib.Path(path)


def reporting_unreachable(path: str | os.PathLike, key: str) -> contextlib.AbstractContextManager:
    """For what is first done in a folder: errors of a bucket are said in one line."""
    return gcs.reporting_unreachable(path, key) if is_remote(path) else contextlib.nullcontext()


def local_copy(
    folder: str | os.PathLike, wanted: Iterable[str]
) -> contextlib.AbstractContextManager[pathlib.Path]:
    """A local folder with the wanted files of a folder, as far as they are there."""
    if is_remote(folder):
        return gcs.local_copy(folder, wanted)
    return contextlib.nullcontext(pathlib.Path(folder))


def staging_folder(
    folder: str | os.PathLike, last: str
) -> contextlib.AbstractContextManager[pathlib.Path]:
    """A local folder to write to: the folder itself, or one that is copied to it at the end.

    Args:
      folder: where the files are to be.
      last: the one without which a reader takes the folder for none.
    """
    if is_remote(folder):
        return gcs.staging_folder(folder, last)
    return contextlib.nullcontext(pathlib.Path(folder))


def free_bytes(path: str | os.PathLike) -> int:
    """Bytes that are free on the disk of a file or folder, which need not exist yet."""
    existing = pathlib.Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder, with those above it; a bucket has none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


class GrowingFiles:
    """The files of a folder that grow while a run goes on, which a bucket does not let them.

    Args:
      folder: where they are to be.
      names: of the files, and of folders of such files.

    Attributes:
      folder: the folder to write them in: the folder itself, or a local one for a bucket.
    """

    def __init__(self, folder: str | os.PathLike, names: Iterable[str]):
        self._mirror = gcs.Mirror(folder, names) if is_remote(folder) else None
        self.folder = self._mirror.local if self._mirror else pathlib.Path(folder)

    def upload(self) -> None:
        """Returns when a bucket has all that was written."""
        if self._mirror:
            self._mirror.upload()

    def upload_periodically(self, warn: Callable[[str], None]) -> None:
        """As `upload`, every so often; a failure is told and tried again."""
        if self._mirror:
            self._mirror.upload_after(_UPLOAD_SECONDS, warn)

    def close(self) -> None:
        """As `upload`, and the local folder of a bucket is removed."""
        if self._mirror:
            self._mirror.close()


def fsync(path: str | os.PathLike) -> None:
    """Has the content of a file, or the names in a folder, written to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def previous_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where the content of a folder lies while `replacing_folder` puts another in its place."""
    return folder.with_name(f".{folder.name}.previous")


@contextlib.contextmanager
def replacing_folder(
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
    saving, previous = folder.with_name(f".{folder.name}.saving"), previous_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    _discard(saving, ours)
    _discard(previous, ours)
    saving.mkdir()
    yield saving
    for file in saving.iterdir():
        fsync(file)
    fsync(saving)
    if folder.exists():
        folder.rename(previous)
    saving.rename(folder)
    fsync(folder.parent)
    _discard(previous, ours)


def _discard(folder: pathlib.Path, ours: Callable[[str], bool]) -> None:
    """Removes a folder of ours. Only files of ours: anything else in it makes `rmdir` refuse."""
    if folder.is_dir():
        for file in folder.iterdir():
            if ours(file.name):
                file.unlink()
        folder.rmdir()
