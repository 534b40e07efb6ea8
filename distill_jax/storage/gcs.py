"""Google Cloud Storage: what `gs://bucket/folder` needs that a local folder does not.

A path is an `etils.epath.Path`, which reads, writes and lists as pathlib does, and which orbax
accepts. gcsfs transfers the objects, except for a checkpoint's arrays, which orbax transfers with
TensorStore. One request writes an object, whole or not at all. There are no folders, only names
with slashes: no folder is renamed at once, and no object is appended to.

Left out on purpose: other clouds, and a cache of what was read.
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
StrPath = str | os.PathLike[str]

_BLOCK = 2**26  # bytes that are read at a time

# epath would read through TensorFlow where it is installed, for preparing data sets. epath reads
# this variable at its first use, which may be by another package.
os.environ.setdefault("EPATH_USE_TF", "false")


class BucketError(RuntimeError):
    """The bucket refuses a request or does not respond; one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def path_problem(path: StrPath) -> str:
    """What an error says was expected instead of a gs:// path; "" for one that can be used."""
    if not os.fspath(path).removeprefix(SCHEME).strip("/"):
        return "gs://bucket/folder"
    if set(os.fspath(path)) & set("*?[]#"):  # orbax and gcsfs would expand these as patterns
        return "a name without any of *?[]#"
    return ""


def resolve_path(path: StrPath, key: str) -> pathlib.Path:
    """The `epath.Path` of gs://bucket/folder, which has the methods of a `pathlib.Path`.

    Raises:
      UsageError: gcsfs is not installed.
    """
    if importlib.util.find_spec("gcsfs") is None:
        raise UsageError(
            f"{key}={os.fspath(path)!r}: the package gcsfs is not installed; expected it "
            "(pip install gcsfs), or a local path"
        )
    _system()
    from etils import epath

    return epath.Path(path)


@functools.cache
def _system() -> Any:
    """The file system of gcsfs; epath uses the same one."""
    # Otherwise gcsfs requests the kind of each bucket by gRPC, and warns each time where that is
    # not permitted; only zonal buckets need it.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    # No cache of listings: TensorStore and other processes write to the same bucket.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # gcsfs logs tracebacks of errors that it then raises.
    logging.getLogger("gcsfs").addFilter(lambda record: not record.exc_info)
    return fsspec.filesystem("gcs", finalize_on_close=True)


@contextlib.contextmanager
def _as_bucket_error(path: StrPath) -> Iterator[None]:
    """Turns every error but FileNotFoundError into a `BucketError` that names the path."""
    try:
        yield
    except (FileNotFoundError, BucketError, UsageError):
        raise
    except Exception as error:
        about = " ".join(str(error).split())[:300]
        raise BucketError(f"{os.fspath(path)}: {type(error).__name__}: {about}") from error


@contextlib.contextmanager
def reporting_unreachable(path: StrPath, key: str) -> Iterator[None]:
    """A context for the first access to a bucket: its errors become a `UsageError`.

    Args:
      path: the folder.
      key: the config key or flag that an error names, such as "--workdir".

    Raises:
      UsageError: there is no such bucket, or it may not be read or written.
    """
    try:
        with _as_bucket_error(path):
            yield
    except (FileNotFoundError, BucketError) as error:
        raise UsageError(
            f"{key}={os.fspath(path)}: cannot be read or written ({error}); expected a "
            "bucket that is there, and credentials (gcloud auth application-default login)"
        ) from error


def list_names(folder: StrPath) -> list[str]:
    """The names directly in a folder; [] for a folder without objects."""
    with _as_bucket_error(folder), contextlib.suppress(FileNotFoundError):
        found = _system().ls(os.fspath(folder), detail=False)
        own = {
            name.rstrip("/").rsplit("/", 1)[1]
            for name in found
            if name.rstrip("/") != _bare(folder)
        }
        return sorted(own)
    return []


def list_objects(folder: StrPath) -> list[str]:
    """The names of all objects below a folder, relative to it."""
    with _as_bucket_error(folder):
        found = _system().find(os.fspath(folder))
    prefix = _bare(folder) + "/"
    return sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix))


def _bare(folder: StrPath) -> str:
    return os.fspath(folder).removeprefix(SCHEME).rstrip("/")


def write(path: StrPath, content: bytes) -> None:
    """Writes an object whole."""
    with _as_bucket_error(path):
        _system().pipe_file(os.fspath(path), content)


def create(path: StrPath, content: bytes) -> bool:
    """Writes an object where there is none, in one request; False where there is one."""
    with _as_bucket_error(path):
        try:
            _system().pipe_file(os.fspath(path), content, mode="create")
        except FileExistsError:
            return False
    return True


def size(path: StrPath) -> int:
    """Bytes of an object."""
    with _as_bucket_error(path):
        return _system().info(os.fspath(path))["size"]


def read(path: StrPath, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes [start, end) of an object, or all of them."""
    with _as_bucket_error(path):
        return _system().cat_file(os.fspath(path), start=start, end=end)


def sha256(path: StrPath) -> str:
    """SHA-256 of an object, in hex; reads some megabytes at a time."""
    sha, total = hashlib.sha256(), size(path)
    for start in range(0, total, _BLOCK):
        sha.update(read(path, start, min(start + _BLOCK, total)))
    return sha.hexdigest()


def remove_all(folder: StrPath) -> None:
    """Deletes all objects below a folder, if there are any."""
    whole = [f"{_bare(folder)}/{name}" for name in list_objects(folder)]
    with _as_bucket_error(folder), contextlib.suppress(FileNotFoundError):
        if whole:
            _system().rm(whole)


def remove_object(path: StrPath) -> None:
    """Deletes an object."""
    with _as_bucket_error(path):
        _system().rm_file(os.fspath(path))


def move(folder: StrPath, target: StrPath) -> None:
    """Copies all objects below a folder to another, within the bucket, then deletes the originals.

    A process that is killed on the way leaves the folder whole, or both.
    """
    with _as_bucket_error(folder):
        for name in list_objects(folder):
            _system().cp_file(f"{_bare(folder)}/{name}", f"{_bare(target)}/{name}")
    remove_all(folder)


@contextlib.contextmanager
def local_copy(folder: StrPath, wanted: Iterable[str]) -> Iterator[pathlib.Path]:
    """A context with a temporary local folder that has the wanted objects, those that exist."""
    with tempfile.TemporaryDirectory(prefix="distill_jax-") as temporary:
        for name in wanted:
            target = pathlib.Path(temporary, name)
            with _as_bucket_error(folder), contextlib.suppress(FileNotFoundError):
                source = f"{_bare(folder)}/{name}"
                if _system().isfile(source):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _system().get_file(source, str(target))
        yield pathlib.Path(temporary)


@contextlib.contextmanager
def staging_folder(folder: StrPath, last: str) -> Iterator[pathlib.Path]:
    """A context with a temporary local folder, whose files are uploaded at the end.

    Args:
      folder: the destination.
      last: the file that a reader requires: deleted first, and uploaded last.
    """
    with tempfile.TemporaryDirectory(prefix="distill_jax-") as temporary:
        local = pathlib.Path(temporary, "written")
        yield local
        if not local.is_dir():  # this process writes nothing
            return
        with _as_bucket_error(folder):
            if _system().isfile(f"{_bare(folder)}/{last}"):
                _system().rm_file(f"{_bare(folder)}/{last}")
            files = sorted(local.iterdir(), key=lambda file: (file.name == last, file.name))
            for file in files:
                _system().put_file(str(file), f"{_bare(folder)}/{file.name}")


class Mirror:
    """Files that grow in a local folder, and that are uploaded as a whole.

    What was written after the last `upload` is lost with the machine.

    Args:
      folder: the destination in a bucket.
      wanted: names of the files, or of folders of files; those that exist are downloaded first.

    Attributes:
      local: the local folder.
    """

    def __init__(self, folder: StrPath, wanted: Iterable[str]):
        self._folder, self._wanted = folder, tuple(wanted)
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="distill_jax-"))
        self._uploaded: dict[pathlib.Path, tuple[int, int]] = {}
        self._clock = time.monotonic()
        with _as_bucket_error(folder):
            for name in self._wanted:
                for source in _system().find(f"{_bare(folder)}/{name}"):
                    target = self.local / source.removeprefix(_bare(folder) + "/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _system().get_file(source, str(target))
                    self._uploaded[target] = _state(target)

    def upload(self) -> None:
        """Uploads every file that has changed, and returns when the bucket has them.

        Raises:
          BucketError: the bucket does not accept one.
        """
        self._clock = time.monotonic()
        for name in self._wanted:
            path = self.local / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if not file.is_file() or self._uploaded.get(file) == _state(file):
                    continue
                now, relative = _state(file), file.relative_to(self.local).as_posix()
                with _as_bucket_error(self._folder):
                    _system().put_file(str(file), f"{_bare(self._folder)}/{relative}")
                self._uploaded[file] = now

    def upload_after(self, seconds: float, warn: Callable[[str], None]) -> None:
        """As `upload`, if the last was more than `seconds` ago; passes a failure to `warn`."""
        if time.monotonic() - self._clock > seconds:
            try:
                self.upload()
            except BucketError as error:
                warn(f"not copied, to be tried again: {error}")

    def close(self) -> None:
        """Uploads what has changed, and removes the local folder."""
        try:
            self.upload()
        finally:
            shutil.rmtree(self.local, ignore_errors=True)


def _state(file: pathlib.Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
