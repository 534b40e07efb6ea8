"""Google Cloud Storage: what `gs://bucket/folder` needs that a local folder does not.

A path is an `etils.epath.Path`, which reads, writes and lists as pathlib does, and which orbax
takes too; gcsfs does the work, TensorStore (in orbax) that of a checkpoint's arrays. An object is
written by one request, whole or not at all. There are no folders, only names with slashes: nothing
is renamed at once, nothing is appended to.

Left out on purpose: other stores, and keeping what was read.
"""

import contextlib
import functools
import hashlib
import importlib.util
import logging
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from distill_jax.errors import UsageError

SCHEME = "gs://"
_BLOCK = 2**26  # bytes that are read at a time

# Where TensorFlow is installed, for preparing data sets, epath would go through it. Read at epath's
# first use, which may be by another package.
os.environ.setdefault("EPATH_USE_TF", "false")


class BucketError(RuntimeError):
    """The store refuses or does not answer; one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def path_problem(said: str | os.PathLike) -> str:
    """What is wrong with a path of gs://, by what was expected; empty when it is fine."""
    if not os.fspath(said).removeprefix(SCHEME).strip("/"):
        return "gs://bucket/folder"
    if set(os.fspath(said)) & set("*?[]#"):  # orbax and gcsfs take these for patterns
        return "a name without any of *?[]#"
    return ""


def resolve_path(said: str | os.PathLike, key: str) -> Any:
    """The `epath.Path` of gs://bucket/folder.

    Raises:
      UsageError: gcsfs is not installed.
    """
    if importlib.util.find_spec("gcsfs") is None:
        raise UsageError(
            f"{key}={os.fspath(said)!r}: the package gcsfs is not installed; expected it "
            "(pip install gcsfs), or a local path"
        )
    _system()
    from etils import epath

    return epath.Path(said)


@functools.cache
def _system() -> Any:
    """The file system of gcsfs, the one that epath uses too."""
    # Else gcsfs asks for the kind of each bucket by gRPC, for which one may have no right, and says
    # so each time; zonal buckets alone need it.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    # What TensorStore or another process writes must be seen.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # It prints tracebacks, and then raises the same errors.
    logging.getLogger("gcsfs").addFilter(lambda record: not record.exc_info)
    return fsspec.filesystem("gcs", finalize_on_close=True)


@contextlib.contextmanager
def _said(where: str | os.PathLike) -> Iterator[None]:
    """Makes one kind of error of the many: what is not there, or `BucketError`."""
    try:
        yield
    except (FileNotFoundError, BucketError, UsageError):
        raise
    except Exception as error:
        about = " ".join(str(error).split())[:300]
        raise BucketError(f"{os.fspath(where)}: {type(error).__name__}: {about}") from error


@contextlib.contextmanager
def reporting_unreachable(where: str | os.PathLike, key: str) -> Iterator[None]:
    """What is first done in a bucket: an error of the store becomes one of use.

    Args:
      where: the folder.
      key: what an error calls it, such as "--workdir".

    Raises:
      UsageError: there is no such bucket, or it may not be read or written.
    """
    try:
        with _said(where):
            yield
    except (FileNotFoundError, BucketError) as error:
        raise UsageError(
            f"{key}={os.fspath(where)}: cannot be read or written ({error}); expected a "
            "bucket that is there, and credentials (gcloud auth application-default login)"
        ) from error


def list_names(folder: os.PathLike) -> list[str]:
    """The names directly in a folder; [] where there is nothing under its name."""
    with _said(folder), contextlib.suppress(FileNotFoundError):
        found = _system().ls(os.fspath(folder), detail=False)
        own = {
            name.rstrip("/").rsplit("/", 1)[1]
            for name in found
            if name.rstrip("/") != _bare(folder)
        }
        return sorted(own)
    return []


def list_objects(folder: os.PathLike) -> list[str]:
    """The names of all objects below a folder, as they are called there."""
    with _said(folder):
        found = _system().find(os.fspath(folder))
    prefix = _bare(folder) + "/"
    return sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix))


def _bare(folder: os.PathLike) -> str:
    return os.fspath(folder).removeprefix(SCHEME).rstrip("/")


def write(where: os.PathLike, content: bytes) -> None:
    """Writes an object whole."""
    with _said(where):
        _system().pipe_file(os.fspath(where), content)


def size(where: os.PathLike) -> int:
    """Bytes of an object."""
    with _said(where):
        return _system().info(os.fspath(where))["size"]


def read(where: os.PathLike, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes [start, end) of an object, or all of them."""
    with _said(where):
        return _system().cat_file(os.fspath(where), start=start, end=end)


def sha256(where: os.PathLike) -> str:
    """SHA-256 of an object, in hex, of which some megabytes are held at a time."""
    sha, total = hashlib.sha256(), size(where)
    for start in range(0, total, _BLOCK):
        sha.update(read(where, start, min(start + _BLOCK, total)))
    return sha.hexdigest()


def remove_all(folder: os.PathLike) -> None:
    """Deletes all objects below a folder; nothing where there are none."""
    whole = [f"{_bare(folder)}/{name}" for name in list_objects(folder)]
    with _said(folder), contextlib.suppress(FileNotFoundError):
        if whole:
            _system().rm(whole)


def remove_object(where: os.PathLike) -> None:
    """Deletes an object."""
    with _said(where):
        _system().rm_file(os.fspath(where))


def move(folder: os.PathLike, target: os.PathLike) -> None:
    """Copies all objects below a folder to another, within the store, and deletes them.

    A stop on the way leaves the folder whole, or both.
    """
    with _said(folder):
        for name in list_objects(folder):
            _system().cp_file(f"{_bare(folder)}/{name}", f"{_bare(target)}/{name}")
    remove_all(folder)


@contextlib.contextmanager
def local_copy(folder: os.PathLike, wanted: Iterable[str]) -> Iterator[pathlib.Path]:
    """Those of the wanted objects below a folder that are there, in a local one for a while."""
    with tempfile.TemporaryDirectory(prefix="distill_jax-") as here:
        for name in wanted:
            target = pathlib.Path(here, name)
            with _said(folder), contextlib.suppress(FileNotFoundError):
                source = f"{_bare(folder)}/{name}"
                if _system().isfile(source):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _system().get_file(source, str(target))
        yield pathlib.Path(here)


@contextlib.contextmanager
def staging_folder(folder: os.PathLike, last: str) -> Iterator[pathlib.Path]:
    """A local folder to write to, whose files are copied to the store at the end.

    Args:
      folder: where to.
      last: the file without which a folder is none: deleted first, and copied last.
    """
    with tempfile.TemporaryDirectory(prefix="distill_jax-") as here:
        local = pathlib.Path(here, "written")
        yield local
        if not local.is_dir():  # another process writes it
            return
        with _said(folder):
            if _system().isfile(f"{_bare(folder)}/{last}"):
                _system().rm_file(f"{_bare(folder)}/{last}")
            files = sorted(local.iterdir(), key=lambda file: (file.name == last, file.name))
            for file in files:
                _system().put_file(str(file), f"{_bare(folder)}/{file.name}")


class Mirror:
    """Files that grow: kept in a local folder, and copied to a folder of the store as a whole.

    What was written after the last `upload` is lost with the machine.

    Args:
      folder: of the store.
      wanted: names of the files, or of folders of files, that are copied from there at first.
    """

    def __init__(self, folder: os.PathLike, wanted: Iterable[str]):
        self._folder, self._wanted = folder, tuple(wanted)
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="distill_jax-"))
        self._uploaded: dict[pathlib.Path, tuple[int, int]] = {}
        self._clock = time.monotonic()
        with _said(folder):
            for name in self._wanted:
                for source in _system().find(f"{_bare(folder)}/{name}"):
                    target = self.local / source.removeprefix(_bare(folder) + "/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _system().get_file(source, str(target))
                    self._uploaded[target] = _state(target)

    def upload(self) -> None:
        """Copies every file that has changed; returns when the store has them.

        Raises:
          BucketError: the store does not take them.
        """
        self._clock = time.monotonic()
        for name in self._wanted:
            place = self.local / name
            for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
                if not file.is_file() or self._uploaded.get(file) == _state(file):
                    continue
                now, relative = _state(file), file.relative_to(self.local).as_posix()
                with _said(self._folder):
                    _system().put_file(str(file), f"{_bare(self._folder)}/{relative}")
                self._uploaded[file] = now

    def upload_after(self, seconds: float, warn: Callable[[str], None]) -> None:
        """As `upload`, if the last one is so long ago; a failure is told, and tried again later."""
        if time.monotonic() - self._clock > seconds:
            try:
                self.upload()
            except BucketError as error:
                warn(f"not copied, to be tried again: {error}")

    def close(self) -> None:
        """Copies what has changed and removes the local folder."""
        try:
            self.upload()
        finally:
            shutil.rmtree(self.local, ignore_errors=True)


def _state(file: pathlib.Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
