"""Paths on a disk or in a bucket, and writing files and folders whole or not at all."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator

from distill_jax.errors import UsageError
from distill_jax.storage import gcs
from distill_jax.storage.gcs import StrPath

# One slash: pathlib turns "gs://bucket" into "gs:/bucket", which would be a folder named "gs:".
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_UPLOAD_SECONDS = 30.0


def write_atomically(path: StrPath, content: bytes | str) -> None:
    """Writes a file whole or not at all, durably: temporary file, fsync, rename, fsync of folder.

    In a bucket, one request does all of this.

    Args:
      path: the file; its folder exists.
      content: bytes, or text that is written as UTF-8; half a surrogate pair, as in a file name
        that is no UTF-8, is written as its escape.
    """
    content = content.encode(errors="backslashreplace") if isinstance(content, str) else content
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


def remove_torn(folder: StrPath, names: Iterable[str]) -> None:
    """Removes the temporary files that a killed `write_atomically` left of these files.

    Args:
      folder: which no other process writes meanwhile.
      names: of the files.
    """
    if is_remote(folder):  # one request writes an object
        return
    torn = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.[a-z0-9_]{{8}}")
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if torn.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def is_remote(path: StrPath) -> bool:
    """Whether a path is in a bucket: a string, or an `epath.Path`, that starts with gs://."""
    return os.fspath(path).startswith(gcs.SCHEME)


def path_problem(path: StrPath, *, remote: bool) -> str:
    """What an error says was expected instead of a path; "" for a path that can be used.

    Args:
      path: as a config, a command or a caller gives it.
      remote: whether the path may be in a bucket.
    """
    if remote and is_remote(path):
        return gcs.path_problem(path)
    if _URL.match(os.fspath(path)):
        return f"a local file or folder{', or gs://' * remote}"
    return ""


def local_path(path: StrPath, key: str) -> pathlib.Path:
    """The path of a file or folder on a disk.

    Args:
      path: as a config, a command or a caller gives it.
      key: the config key or flag that an error names, such as "data.path" or "--workdir".

    Raises:
      UsageError: it is a URL, which would become a local folder named after its scheme.
    """
    if wrong := path_problem(path, remote=False):
        raise UsageError(f"{key}={os.fspath(path)!r}: expected {wrong}")
    return pathlib.Path(path)


def resolve_path(path: StrPath, key: str) -> pathlib.Path:
    """The path of a file or folder on a disk or in a bucket.

    Args:
      path: as a config, a command or a caller gives it.
      key: the config key or flag that an error names.

    Returns:
      A `pathlib.Path`, or for gs://bucket/folder an `epath.Path`, which has the same methods.

    Raises:
      UsageError: it is another URL, or gcsfs is needed and not installed.
    """
    if wrong := path_problem(path, remote=True):
        raise UsageError(f"{key}={os.fspath(path)!r}: expected {wrong}")
    return gcs.resolve_path(path, key) if is_remote(path) else pathlib.Path(path)


def reporting_unreachable(path: StrPath, key: str) -> contextlib.AbstractContextManager:
    """A context for the first access to a folder: a bucket's error becomes a `UsageError`."""
    return gcs.reporting_unreachable(path, key) if is_remote(path) else contextlib.nullcontext()


def local_copy(
    folder: StrPath, wanted: Iterable[str]
) -> contextlib.AbstractContextManager[pathlib.Path]:
    """A context with a local folder that has the wanted files of a folder, those that exist."""
    if is_remote(folder):
        return gcs.local_copy(folder, wanted)
    return contextlib.nullcontext(pathlib.Path(folder))


def staging_folder(folder: StrPath, last: str) -> contextlib.AbstractContextManager[pathlib.Path]:
    """A context with a local folder to write to: the folder itself, or one to be uploaded.

    Args:
      folder: the destination.
      last: the file that a reader requires: a bucket gets it last, so that a folder is complete for
        its readers or not there.
    """
    if is_remote(folder):
        return gcs.staging_folder(folder, last)
    return contextlib.nullcontext(pathlib.Path(folder))


def free_bytes(path: StrPath) -> int:
    """Bytes that are free on the disk of a file or folder, which need not exist yet."""
    existing = pathlib.Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder and its parents; a bucket needs none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


class GrowingFiles:
    """Files that a run appends to. A bucket cannot append: it gets a copy of each now and then.

    Args:
      folder: the destination.
      names: of the files, and of folders of such files.

    Attributes:
      folder: where to write them: the destination itself, or a local folder for a bucket.
    """

    def __init__(self, folder: StrPath, names: Iterable[str]):
        self._mirror = gcs.Mirror(folder, names) if is_remote(folder) else None
        self.folder = self._mirror.local if self._mirror else pathlib.Path(folder)

    def upload(self) -> None:
        """Returns when a bucket has everything that was written."""
        if self._mirror:
            self._mirror.upload()

    def upload_periodically(self, warn: Callable[[str], None]) -> None:
        """As `upload`, but at most every 30 s; a failure goes to `warn` and is tried again."""
        if self._mirror:
            self._mirror.upload_after(_UPLOAD_SECONDS, warn)

    def close(self) -> None:
        """As `upload`; then removes the local folder of a bucket."""
        if self._mirror:
            self._mirror.close()


def fsync(path: StrPath) -> None:
    """Returns when the content of a file, or the names in a folder, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def previous_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where the old content of a folder is while `replacing_folder` renames the new one."""
    return folder.with_name(f".{folder.name}.previous")


@contextlib.contextmanager
def replacing_folder(
    path: StrPath, ours: Callable[[str], bool], what: str, key: str = "path"
) -> Iterator[pathlib.Path]:
    """A context with a new folder to write files to, which then replaces the one that may exist.

    The new folder is next to the target, as ".NAME.saving". At the end its files are flushed to the
    disk; then the target is renamed to ".NAME.previous", the new folder to the target's name, and
    the old one is removed. A process that is killed on the way leaves a whole folder under one of
    these names, and the next writer restores the target's name. One writer a folder.

    Args:
      path: the target; it need not exist.
      ours: whether a name is that of a file that is written here.
      what: what such a folder holds, for the error.
      key: the config key or flag that an error names.

    Raises:
      UsageError: the target holds other files, which replacing it would delete.
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
    try:
        saving.mkdir()
        yield saving
        for file in saving.iterdir():
            fsync(file)
    except BaseException:
        with contextlib.suppress(OSError):
            _discard(saving, ours)
        raise
    fsync(saving)
    if folder.exists():
        folder.rename(previous)
    saving.rename(folder)
    fsync(folder.parent)
    _discard(previous, ours)


def _discard(folder: pathlib.Path, ours: Callable[[str], bool]) -> None:
    """Removes a folder with only our files; any other file in it makes `rmdir` fail."""
    if folder.is_dir():
        for file in folder.iterdir():
            if ours(file.name):
                file.unlink()
        folder.rmdir()
