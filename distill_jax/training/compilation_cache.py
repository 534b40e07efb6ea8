"""Compiled programs, kept on disk from one start to the next.

    with compilation_cache.opened("auto"):
        ...                                     # JAX reads and writes programs there

A program is found by its content, the versions of JAX and its compiler, and its options (JAX's key
of the persistent compilation cache), in a folder for each kind of CPU and number of threads:
machine code of another CPU may be illegal here, and XLA splits some sums by the number of threads.
So a run computes the same, bit for bit, whether its programs are compiled or read.

JAX writes a file in place and never deletes one; here a file is complete from the moment that it
has its name, and the least recently used ones make room. Left out on purpose: folders in a bucket.
"""

import contextlib
import os
import pathlib
import sys
import time
import unittest.mock
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from distill_jax.processes import coordination, machine

AUTO, OFF = "auto", "off"
#: Bytes of all programs that are kept.
LIMIT = 2**30
#: Programs that compile faster are not kept, in seconds.
LEAST_SECONDS = 0.1
_SUFFIX = "-cache"  # of JAX's files

Note = Callable[[str], None]


class _Watch:
    """Tells the user, once, whether the program of a step is read or compiled."""

    def __init__(self) -> None:
        self._note: Note | None = None
        self._prefix = ""
        self._began = 0.0

    def start(self, name: str, note: Note) -> None:
        self._prefix, self._note, self._began = f"jit_{name}-", note, 0.0

    def looked_up(self, key: str, found: bool, folder: pathlib.Path) -> None:
        if self._note is None or not key.startswith(self._prefix):
            return
        if found:
            self._note(f"step: cached, its program is read from {folder}")
            self._note = None
        elif not self._began:
            self._note("step: compiling")
            self._began = time.perf_counter()

    def written(self, key: str, folder: pathlib.Path) -> None:
        if self._note is None or not key.startswith(self._prefix):
            return
        seconds = time.perf_counter() - self._began
        self._note(f"step: compiled in {seconds:.0f} s; the next start reads it from {folder}")
        self._note = None


_watch = _Watch()


def folder_of(base: str | os.PathLike) -> pathlib.Path:
    """The folder of this machine's programs in a folder of all."""
    return pathlib.Path(base) / f"{machine.cpu_identity()}-{machine.usable_cpus()}"


def default_folder() -> pathlib.Path:
    """The folder of all programs in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "distill_jax" / "programs"


def print_note(line: str) -> None:
    """A note on stderr, once for all processes of a run."""
    if coordination.is_first():
        print(line, file=sys.stderr, flush=True)


def _setting(name: str) -> Any:
    """The value of one of JAX's settings, which has no attribute for type checkers."""
    return getattr(jax.config, name)


@contextlib.contextmanager
def opened(where: str, note: Note = print_note) -> Iterator[None]:
    """A context in which JAX keeps compiled programs; a cache that JAX already has is left alone.

    Args:
      where: "auto" for the user's cache folder, unless the run has several processes, which need a
        folder that all of them see; "off"; or a folder.
      note: called with a line where the folder cannot be used; all goes on without.
    """
    if _setting("jax_compilation_cache_dir"):
        with _complete_files(None):
            yield
        return
    enabled = _setting("jax_enable_compilation_cache")
    if where == OFF or not enabled or (where == AUTO and coordination.is_distributed()):
        yield
        return
    base = default_folder() if where == AUTO else pathlib.Path(where).expanduser().absolute()
    folder = folder_of(base)
    if problem := _unusable(folder):
        note(f"compilation cache: {problem}; programs are compiled at each start")
        yield
        return
    before = _setting("jax_persistent_cache_min_compile_time_secs")
    jax_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min(before, LEAST_SECONDS))
    try:
        with _complete_files(base):
            yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
        jax_cache.reset_cache()


def announce(name: str, note: Note) -> None:
    """Notes, once, whether the next program of this function is read or compiled.

    Args:
      name: of the jitted function.
      note: called with a line, before the compilation begins.
    """
    if _setting("jax_compilation_cache_dir") and _setting("jax_enable_compilation_cache"):
        _watch.start(name, note)
    else:
        note("step: compiling, without a cache")


def _unusable(folder: pathlib.Path) -> str:
    """Why programs cannot be kept in a folder, which is made; "" if they can."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror or error})"
    return ""


@contextlib.contextmanager
def _complete_files(base: pathlib.Path | None) -> Iterator[None]:
    """Lets JAX's cache write whole files, bounds their size and tells `_watch` of programs.

    A version of JAX without these private names keeps its own way of writing.

    Args:
      base: the folder of all programs; None for a cache of the user's, which JAX writes.
    """
    try:
        from jax._src.compilation_cache import decompress_executable as decompress
        from jax._src.lru_cache import LRUCache

        get, put = LRUCache.get, LRUCache.put
    except (ImportError, AttributeError):
        yield
        return

    def get_and_tell(cache: LRUCache, key: str) -> bytes | None:
        value, folder = get(cache, key), pathlib.Path(str(cache.path))
        if value is not None and base is not None:
            value = _checked(folder / f"{key}{_SUFFIX}", value, decompress)
        _watch.looked_up(key, value is not None, folder)
        return value

    def put_whole(cache: LRUCache, key: str, value: bytes) -> None:
        folder = pathlib.Path(str(cache.path))
        if base is None:
            put(cache, key, value)
        elif not write_whole(folder / f"{key}{_SUFFIX}", value):
            return
        else:
            bound(base)
        _watch.written(key, folder)

    with (
        unittest.mock.patch.object(LRUCache, "get", get_and_tell),
        unittest.mock.patch.object(LRUCache, "put", put_whole),
    ):
        yield


def _checked(
    path: pathlib.Path, value: bytes, decompress: Callable[[bytes], bytes]
) -> bytes | None:
    """The content of a file, which is marked as used; None for a damaged one, which is deleted."""
    try:
        decompress(value)
    except Exception:  # of the library that JAX compresses with
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return value


def write_whole(path: pathlib.Path, value: bytes) -> bool:
    """Writes a file that appears complete or not at all; False where that is not possible."""
    unfinished = path.with_name(f".{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(value)
        unfinished.replace(path)
    except OSError:  # such as a full disk: the program is compiled again next time
        with contextlib.suppress(OSError):
            unfinished.unlink()
        return False
    return True


def bound(base: pathlib.Path, limit: int | None = None) -> None:
    """Deletes the least recently used programs below a folder until they take at most `limit`."""
    files = []
    for path in base.rglob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # deleted by another process
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    excess = sum(size for _, size, _ in files) - (LIMIT if limit is None else limit)
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        excess -= size
