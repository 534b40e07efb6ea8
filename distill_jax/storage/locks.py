"""One writer a folder: a lock file that names its holder, on disks, shared disks and in buckets.

    with storage.holding("runs/a", "--workdir"):  # another process is refused, and told by whom
        ...

The lock file holds a record: process, host, since when, and a counter that the holder increases
every `BEAT` seconds. On a file system with kernel locks (`flock`) the kernel releases the lock of a
process that dies, however it dies. Where another machine wrote the record, which its kernel's lock
may not reach, and in a bucket, a record counts as left behind when its counter has not moved for
`STALE` seconds; a process that starts meanwhile waits that long. No clocks are compared.

A holder whose record is replaced all the same (it was suspended for longer) ends its process at
once: two writers would damage what both write.

Left out on purpose: locks for readers; every file is written whole, so a reader needs none.
"""

import abc
import contextlib
import dataclasses
import datetime
import errno
import json
import os
import pathlib
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from distill_jax.errors import UsageError
from distill_jax.storage import gcs
from distill_jax.storage.paths import is_remote, reporting_unreachable, resolve_path

try:
    import fcntl
except ImportError:  # no POSIX: the process id and the counter have to do
    fcntl = None  # type: ignore[assignment]

#: The name of the lock file in a folder.
LOCK = ".lock"
#: Seconds between two changes of the holder's counter.
BEAT = 10.0
#: Seconds without a change after which the holder counts as gone.
STALE = 60.0

_SIZE = 512  # bytes of a record, so that a later one replaces all of an earlier one


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a folder.

    Attributes:
      pid: of the process.
      host: its name.
      since: when it took the folder, in UTC.
      machine: the boot of its machine, and its namespace of process ids.
      born: when the process started, on its machine's clock; "" where that is not known.
      token: of this record alone.
      beat: the counter.
    """

    pid: int
    host: str
    since: str
    machine: str
    born: str
    token: str
    beat: int = 0

    def render(self) -> bytes:
        """The record's bytes."""
        return json.dumps(dataclasses.asdict(self)).encode().ljust(_SIZE - 1) + b"\n"

    @classmethod
    def parse(cls, content: bytes) -> "Owner | None":
        """The owner in a record; None for an empty or torn one."""
        try:
            values = json.loads(content)
            return cls(**values) if isinstance(values.get("beat"), int) else None
        except (ValueError, TypeError, AttributeError):
            return None


def _own() -> Owner:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    pid = os.getpid()
    return Owner(pid, platform.node(), now, _machine(), _born(pid), uuid.uuid4().hex)


def _machine() -> str:
    """What tells whether a process id of another record means something here."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _born(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _runs_here(owner: Owner) -> bool | None:
    """Whether the owner is a living process of this machine; None where that cannot be known."""
    if owner.machine != _machine():
        return None
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, as another user
        pass
    return _born(owner.pid) == owner.born


def find_holder(folder: str | os.PathLike) -> tuple[Owner, bool | None] | None:
    """Who holds a folder, for a reader: takes no lock, and waits for nothing.

    Args:
      folder: local, or in a bucket.

    Returns:
      The owner in the lock file, and whether that process runs: None where only its own machine can
      tell. None in place of both where the folder has no readable lock file.
    """
    path = resolve_path(folder, "folder") / LOCK
    try:
        owner = Owner.parse(gcs.read(path) if is_remote(path) else path.read_bytes()[:_SIZE])
    except OSError:
        return None
    return (owner, _runs_here(owner)) if owner else None


class _Lock(abc.ABC):
    """A lock file, on a disk or in a bucket."""

    def __init__(self, path: pathlib.Path, subject: str, note: Callable[[str], None]):
        self.path, self.note = path, note
        self.own = _own()
        self._subject = subject

    @abc.abstractmethod
    def take(self) -> None:
        """Takes the lock; UsageError when another process holds it."""

    @abc.abstractmethod
    def read(self) -> Owner | None:
        """The record in the file."""

    @abc.abstractmethod
    def write(self) -> None:
        """Writes the own record."""

    @abc.abstractmethod
    def release(self) -> None:
        """Gives the lock back."""

    def in_use(self, owner: Owner | None) -> UsageError:
        """The error for a lock that another process holds."""
        who = "another process"
        if owner:
            who = f"process {owner.pid} on {owner.host}, since {owner.since}"
        return UsageError(
            f"{self._subject}: in use by {who}; expected a folder that no other process writes, "
            "or that this one ends first"
        )

    def wait_for_a_beat(self, owner: Owner) -> None:
        """Returns when the owner shows no life for `STALE` seconds; UsageError when it does."""
        self.note(
            f"{self.path}: held by process {owner.pid} on {owner.host} since {owner.since}; "
            f"waiting up to {STALE:.0f} s to see whether it still runs"
        )
        deadline = time.monotonic() + STALE
        while time.monotonic() < deadline:
            time.sleep(min(1.0, STALE / 10))
            now = self.read()
            if now is None:
                return
            if now != owner:
                raise self.in_use(now)

    def beat(self) -> bool:
        """Increases the counter; False when the record is another process's."""
        found = self.read()
        if found is not None and found.token != self.own.token:
            return False
        self.own = dataclasses.replace(self.own, beat=self.own.beat + 1)
        self.write()
        return True


class _FileLock(_Lock):
    """A lock file on a disk, which may be shared with other machines."""

    _handle = -1

    def take(self) -> None:
        kernel = False
        while not (self._handle >= 0 and self._is_the_file()):
            self._close()
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            kernel = self._take_kernel_lock()
        owner = self.read()
        if owner is not None:
            runs = _runs_here(owner)
            if runs and not kernel:
                raise self.in_use(owner)
            if runs is None and not (kernel and owner.machine.split()[0] == _machine().split()[0]):
                self.wait_for_a_beat(owner)
        self.write()

    def _is_the_file(self) -> bool:
        """Whether the open file is still the one of this name; its last holder may remove it."""
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _take_kernel_lock(self) -> bool:
        """True for a lock of the kernel, False where the file system has none."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise self._refuse() from None
            return False
        return True

    def _refuse(self) -> UsageError:
        for _ in range(20):  # the holder may be about to write its record
            owner = self.read()
            if owner is not None and _runs_here(owner) is not False:
                return self.in_use(owner)
            time.sleep(0.05)
        return self.in_use(owner)

    def read(self) -> Owner | None:
        return Owner.parse(os.pread(self._handle, _SIZE, 0))

    def write(self) -> None:
        os.pwrite(self._handle, self.own.render(), 0)
        os.fsync(self._handle)

    def beat(self) -> bool:
        # Where kernel locks do not reach other machines, one of them may have made a new file.
        if not self._is_the_file():
            return not self.path.exists()
        return super().beat()

    def release(self) -> None:
        """Gives the lock back; without having taken it, only closes the file."""
        if self._handle < 0:
            return
        with contextlib.suppress(OSError):
            if (found := self.read()) and found.token == self.own.token and self._is_the_file():
                self.path.unlink()
        self._close()

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class _ObjectLock(_Lock):
    """A lock in a bucket: an object that is made where there is none, which is one request."""

    def take(self) -> None:
        replaced = False
        while not gcs.create(self.path, self.own.render()):
            owner = self.read()
            if owner is None:
                continue
            if owner.token == self.own.token:  # the reply to an earlier request was lost
                return
            runs = _runs_here(owner)
            if runs:
                raise self.in_use(owner)
            if runs is None:
                self.wait_for_a_beat(owner)
            with contextlib.suppress(FileNotFoundError):
                gcs.remove_object(self.path)
            replaced = True
        if replaced:
            time.sleep(1.0)  # another process may have removed this one in place of the old one
            owner = self.read()
            if owner is None or owner.token != self.own.token:
                raise self.in_use(owner)

    def read(self) -> Owner | None:
        try:
            return Owner.parse(gcs.read(self.path))
        except FileNotFoundError:
            return None

    def write(self) -> None:
        gcs.write(self.path, self.own.render())

    def release(self) -> None:
        with contextlib.suppress(FileNotFoundError, gcs.BucketError):
            if (found := self.read()) and found.token == self.own.token:
                gcs.remove_object(self.path)


def _beat_until(stopped: threading.Event, lock: _Lock, subject: str) -> None:
    """In the background: shows that this process lives, and ends it when its lock is lost."""
    while not stopped.wait(BEAT):
        try:
            kept = lock.beat()
        except (OSError, gcs.BucketError):  # a disk or a network that fails for a while
            continue
        if not kept and not stopped.is_set():
            line = f"{subject}: another process took it over while this one was suspended"
            print(f"distill-jax: failed: {line}", file=sys.stderr, flush=True)
            os._exit(1)


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def holding(
    folder: str | os.PathLike[str],
    key: str,
    *,
    beside: bool = False,
    note: Callable[[str], None] = _warn,
) -> Iterator[None]:
    """A context in which this process alone writes a folder.

    The folder is made; where it is still empty at the end, it is removed again.

    Args:
      folder: local, or in a bucket.
      key: the config key or flag that an error names.
      beside: the lock file is next to the folder, as ".NAME.lock", and not in it: for a folder that
        is replaced as a whole.
      note: called with a line before this waits.

    Raises:
      UsageError: another process holds the folder, or it cannot be written.
    """
    subject = f"{key}={os.fspath(folder)}"
    root = resolve_path(folder, key)
    path = root.with_name(f".{root.name}.lock") if beside else root / LOCK
    lock = (_ObjectLock if is_remote(root) else _FileLock)(path, subject, note)
    stopped = threading.Event()
    with contextlib.ExitStack() as undo:
        with reporting_unreachable(root, key):
            _take(lock, subject, undo)
        undo.callback(stopped.set)
        threading.Thread(
            target=_beat_until, args=(stopped, lock, subject), name="lock", daemon=True
        ).start()
        yield


def _take(lock: _Lock, subject: str, undo: contextlib.ExitStack) -> None:
    """Makes the lock's folder and takes the lock; `undo` gets what releases both."""
    for attempt in range(10):
        try:
            if not is_remote(lock.path):
                _make_folders(lock.path.parent, undo)
            undo.callback(lock.release)
            lock.take()
            return
        except OSError as error:
            if is_remote(lock.path):
                raise
            if isinstance(error, FileNotFoundError) and attempt < 9:
                continue  # its last holder has just removed the folder
            reason = error.strerror or str(error)
            raise UsageError(
                f"{subject}: cannot be written ({reason}); expected a folder that can be written"
            ) from error


def _make_folders(folder: pathlib.Path, undo: contextlib.ExitStack) -> None:
    """Makes a folder with its parents; `undo` removes those that it made and that are empty."""
    missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        undo.callback(_remove_empty, path)


def _remove_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
