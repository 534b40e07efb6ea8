"""A folder that is written part by part, so that a killed writer loses at most one part.

    manifest.json   what the folder is made from, and size and SHA-256 of every file of each part
    ...             the files of the parts

Each file is written whole or not at all, and a part counts once the manifest lists it. The next
writer with the same settings verifies the parts that are there and makes the missing ones; one with
other settings is refused. One writer a folder, of one process (`storage.holding`); any number of
readers once all parts are written.

Left out on purpose: what the files hold and what the manifest says of it. A kind of folder is a
subclass of `ShardedFolder`: `generation.responses` and `teachers.answers.store` are the two.
"""

import abc
import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from distill_jax.errors import UsageError
from distill_jax.storage.locks import LOCK
from distill_jax.storage.paths import write_atomically

MANIFEST = "manifest.json"

Manifest = dict[str, Any]


class ShardedFolder(abc.ABC):
    """A folder of parts, new, unfinished or finished. Opening it writes nothing.

    To write: `repair`, `begin`, then `add` for every part in `missing`.

    Args:
      root: the folder; it need not exist.
      new: the manifest of the new folder, without parts.

    Attributes:
      root: the folder.
      manifest: the content of its manifest, to which `add` adds.

    Raises:
      UsageError: the folder was made from other settings, holds other files, has a damaged
        manifest, or cannot be written.
    """

    content: ClassVar[str]  # what such a folder holds, for errors
    parts_key: ClassVar[str]  # of the manifest's entry that lists the parts; also errors' word
    part_files: ClassVar[str]  # a regular expression of the names of the parts' files

    def __init__(self, root: str | os.PathLike[str], new: Manifest):
        self.root = pathlib.Path(root)
        found = sorted(os.listdir(self.root)) if self.root.is_dir() else []
        if MANIFEST in found:
            self.manifest = self.read_manifest()
            self.refuse_other_settings(new)
            return
        others = [name for name in found if not (name == LOCK or self._is_torn(name))]
        if others:
            raise self.refusal(
                f"holds {others[0]!r} but no {MANIFEST}; expected {self.content} or a new folder"
            )
        parent = next(path for path in [self.root, *self.root.absolute().parents] if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise self.refusal("expected a folder that can be written")
        self.manifest = new

    # What a kind of folder decides.

    @abc.abstractmethod
    def refusal(self, reason: str) -> UsageError:
        """The error of a folder that cannot be used; it names the key or flag of its path."""

    @abc.abstractmethod
    def read_manifest(self) -> Manifest:
        """Reads the manifest of the folder.

        Raises:
          UsageError: it is damaged or of another format.
        """

    @abc.abstractmethod
    def render_manifest(self) -> bytes:
        """The bytes of the manifest's file."""

    @abc.abstractmethod
    def refuse_other_settings(self, new: Manifest) -> None:
        """UsageError when the folder is not made from the settings of the manifest `new`."""

    @abc.abstractmethod
    def part_names(self) -> list[str]:
        """The names of all parts of the finished folder, in the manifest's order."""

    @abc.abstractmethod
    def files_of(self, part: str) -> Mapping[str, Mapping[str, Any]]:
        """The files of a finished part: name -> {"bytes", "sha256"}, as the manifest lists them."""

    @abc.abstractmethod
    def part_entry(self, files: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> Any:
        """What the manifest says of a part: its files and other facts."""

    # What all kinds share.

    @property
    def parts(self) -> dict[str, Any]:
        """The manifest's entries of the finished parts, by name."""
        return self.manifest[self.parts_key]

    def missing(self) -> list[str]:
        """The names of the parts that are still to be written."""
        return [name for name in self.part_names() if name not in self.parts]

    def repair(self) -> dict[str, str]:
        """Deletes the torn files of a killed writer, and forgets damaged parts.

        Returns:
          The parts that are damaged or gone, and in which way; they count as missing now.
        """
        with self.reporting_disk_errors():
            for name in os.listdir(self.root) if self.root.is_dir() else ():
                if self._is_torn(name):
                    (self.root / name).unlink()
        damaged = {}
        for part in list(self.parts):
            if fault := find_damage(self.root, self.files_of(part), hashes=True):
                damaged[part] = fault
                del self.parts[part]
        return damaged

    def begin(self) -> None:
        """Makes the folder and writes the manifest."""
        with self.reporting_disk_errors():
            self.root.mkdir(parents=True, exist_ok=True)
            self._write_manifest()

    def add(self, part: str, files: Iterable[tuple[str, bytes]], **facts: Any) -> None:
        """Writes the files of a part, and then the manifest, which makes it one.

        Args:
          part: its name.
          files: names and contents; only one content at a time need be in memory.
          facts: what else the manifest says of the part.

        Raises:
          UsageError: the disk fails or is full.
        """
        with self.reporting_disk_errors():
            written = {}
            for name, content in files:
                write_atomically(self.root / name, content)
                written[name] = {
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
            entries = {**self.parts, part: self.part_entry(written, facts)}
            self.manifest[self.parts_key] = {
                name: entries[name] for name in self.part_names() if name in entries
            }
            self._write_manifest()

    def _write_manifest(self) -> None:
        write_atomically(self.root / MANIFEST, self.render_manifest())

    @classmethod
    def _is_torn(cls, name: str) -> bool:
        """Whether the name is that of a temporary file which a killed `write_atomically` left."""
        return bool(re.fullmatch(rf"\.({re.escape(MANIFEST)}|{cls.part_files})\..+", name))

    @contextlib.contextmanager
    def reporting_disk_errors(self) -> Iterator[None]:
        """Turns an error of the disk into a `refusal`, with how many parts are whole."""
        try:
            yield
        except OSError as error:
            raise self.refusal(
                f"cannot be written: {error.strerror or error}; {len(self.parts)} of "
                f"{len(self.part_names())} {self.parts_key} are whole, and the same command goes "
                "on after them",
            ) from error


def find_damage(root: pathlib.Path, files: Mapping[str, Mapping[str, Any]], *, hashes: bool) -> str:
    """The first fault of a part's files, in words, or "".

    Args:
      root: the folder.
      files: name -> {"bytes", "sha256"}, as the manifest lists them.
      hashes: whether to compare hashes, which reads the files, or sizes alone.
    """
    for name, entry in files.items():
        try:
            if (root / name).stat().st_size != entry["bytes"]:
                return f"{name} is damaged: it has not the size that was written"
            if hashes:
                with open(root / name, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                        return f"{name} is damaged: its SHA-256 is not the one in {MANIFEST}"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""
