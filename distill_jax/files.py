"""Writing small files so that a reader, or a crash, never meets half of one."""

import contextlib
import os
import pathlib
import re
import tempfile

from distill_jax.errors import UsageError

# One slash: pathlib makes "gs:/bucket" of "gs://bucket", which would be a folder named "gs:".
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


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


def local(path: str | os.PathLike, key: str) -> pathlib.Path:
    """The path of a file or folder on a disk.

    Args:
      path: what a config, a command or a caller names.
      key: what an error calls it, such as "data.path" or "--workdir".

    Raises:
      UsageError: it is a URL, which would become a local folder named by its scheme.
    """
    if _URL.match(os.fspath(path)):
        raise UsageError(f"{key}={str(path)!r}: a URL; expected a local file or folder")
    return pathlib.Path(path)


def flush(path: str | os.PathLike) -> None:
    """Has the content of a file, or the names in a folder, written to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
