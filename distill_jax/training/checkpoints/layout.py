"""The file operations of checkpoints, which a disk and a bucket provide in different ways.

A disk commits a checkpoint by one atomic rename (`on_disk`), a bucket by one object that is written
last (`in_bucket`). Each of the two modules implements `Layout`.
"""

import pathlib
from typing import NamedTuple, Protocol

MANIFEST = "MANIFEST.sha256"


class Damaged(Exception):
    """A checkpoint that must not be used; the message says why, without naming the checkpoint."""


class Leftover(NamedTuple):
    """What a process that was stopped has left in the folder of all checkpoints.

    Attributes:
      step: of the checkpoint, as text.
      path: what to delete.
      half_written: whether it was being written; otherwise it was being deleted.
    """

    step: str
    path: pathlib.Path
    half_written: bool


class Layout(Protocol):
    """How checkpoints are written, listed and deleted on one kind of storage.

    `directory` is the folder of all checkpoints, and `sealed` is directory/<step>.
    """

    # Listing.

    def exists(self, path: pathlib.Path) -> bool:
        """Whether there is anything under this name."""

    def list_names(self, folder: pathlib.Path) -> list[str]:
        """The names directly in a folder; [] without it."""

    def list_files(self, folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
        """Every file below a folder, with its name relative to the folder.

        Raises:
          Damaged: there is anything but files and folders, such as a link.
        """

    def steps(self, directory: pathlib.Path) -> list[int]:
        """Every step that has anything under a checkpoint's name, in no order."""

    def sealed_steps(self, directory: pathlib.Path) -> list[int]:
        """Every step whose checkpoint has a manifest, in no order."""

    def leftovers(self, directory: pathlib.Path) -> list[Leftover]:
        """The garbage of stopped processes; makes the folder when it is absent."""

    # Writing.

    def unsealed(self, directory: pathlib.Path, step: int) -> pathlib.Path:
        """The folder in which the files of a checkpoint are written before it is sealed."""

    def make_unsealed(self, directory: pathlib.Path, step: int) -> None:
        """Makes that folder."""

    def flush_files(self, unsealed: pathlib.Path) -> None:
        """Returns when the content of all files in a folder is on stable storage."""

    def commit(self, unsealed: pathlib.Path, manifest: str, sealed: pathlib.Path) -> None:
        """Writes the manifest, and makes the folder a checkpoint, atomically."""

    # Deleting.

    def retract(self, directory: pathlib.Path, step: int) -> None:
        """Makes a sealed checkpoint garbage, atomically: a crash leaves it whole, or as garbage."""

    def garbage(self, directory: pathlib.Path, step: int) -> pathlib.Path:
        """The path of a checkpoint after `retract`."""

    def remove(self, path: pathlib.Path) -> None:
        """Deletes a folder with everything in it, or a file or link."""

    def move(self, path: pathlib.Path, target: pathlib.Path) -> None:
        """Renames a folder within its parent."""

    # Files.

    def read_manifest(self, sealed: pathlib.Path) -> bytes:
        """The manifest of a checkpoint.

        Raises:
          Damaged: there is none.
        """

    def read(self, path: pathlib.Path) -> bytes:
        """The content of a file."""

    def write(self, path: pathlib.Path, content: bytes) -> None:
        """Writes a file of an unsealed checkpoint, which `flush_files` flushes."""

    def sha256(self, path: pathlib.Path) -> str:
        """SHA-256 of a file, in hex."""
