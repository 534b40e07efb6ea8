"""The folder of responses: shards of lines that are whole or absent, then one file of all.

    manifest.json             what they were made from and with, and every shard's SHA-256
    responses-00000.jsonl     the lines of the first prompts, and so on
    responses.jsonl           all of them, in order, once there is nothing left to do

A shard counts once the manifest has its hash: a writer that was killed leaves whole shards, and
the next one makes the others. One writer a folder.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.storage import fsync, write_atomically

FORMAT = 1
MANIFEST = "manifest.json"
JOINED = "responses.jsonl"

_TORN = re.compile(r"\.(manifest\.json|responses(-\d{5,})?\.jsonl)\..+")


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"responses-{number:05d}.jsonl"


@dataclasses.dataclass(frozen=True)
class Responses:
    """A folder of responses; `open` makes it.

    Attributes:
      root: the folder.
      count: of the shards.
      manifest: its content, which grows with every shard.
    """

    root: pathlib.Path
    count: int
    manifest: dict[str, Any]

    @classmethod
    def open(
        cls,
        root: str | os.PathLike,
        *,
        made_from: Mapping[str, Any],
        count: int,
        about: Mapping[str, Any],
    ) -> "Responses":
        """The folder, new or to go on with; writes nothing.

        Args:
          root: the folder.
          made_from: all that decides what the lines are, by the names that an error gives it;
            values that JSON keeps.
          count: of the shards.
          about: what else the manifest of a new folder says.

        Raises:
          UsageError: the folder holds responses of something else, other files or a damaged
            manifest, or cannot be written.
        """
        root = pathlib.Path(root)
        made_from = json.loads(json.dumps(made_from))
        found = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
        if MANIFEST in found:
            manifest = _read(root)
            before = manifest["made_from"]
            for name in sorted(before.keys() | made_from.keys()):
                if before.get(name) != made_from.get(name):
                    raise _refusal(
                        root,
                        f"holds responses with {name}={before.get(name)!r}, not "
                        f"{made_from.get(name)!r}; expected the same or a new folder",
                    )
            return cls(root, count, manifest)
        others = [name for name in found if not _TORN.fullmatch(name)]
        if others:
            raise _refusal(
                root, f"holds {others[0]!r} but no {MANIFEST}; expected responses or a new folder"
            )
        parent = next(p for p in [root, *root.absolute().parents] if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise _refusal(root, "expected a folder that can be written")
        return cls(root, count, {"format": FORMAT, "made_from": made_from, **about, "shards": {}})

    @property
    def began(self) -> bool:
        """Whether an earlier writer was here."""
        return (self.root / MANIFEST).exists()

    def begin(self) -> list[str]:
        """Makes the folder, clears what a killed writer left half done, and writes the manifest.

        Returns:
          The shards that are damaged or gone, and will be made again.
        """
        shards, damaged = self.manifest["shards"], []
        for name in list(shards):
            if _sha256(self.root / name) != shards[name]["sha256"]:
                damaged.append(name)
                del shards[name]
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            for path in self.root.iterdir():
                if _TORN.fullmatch(path.name):
                    path.unlink()
            self._write_manifest()
        return damaged

    def missing(self) -> list[int]:
        """The numbers of the shards that are not there yet."""
        return [n for n in range(self.count) if shard_name(n) not in self.manifest["shards"]]

    def add(self, number: int, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes a shard."""
        rendered = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
        content = "".join(rendered).encode()
        shards = self.manifest["shards"]
        with self._writing():
            write_atomically(self.root / shard_name(number), content)
            shards[shard_name(number)] = {
                "lines": len(rendered),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            self.manifest["shards"] = dict(sorted(shards.items()))
            self._write_manifest()

    def join(self) -> pathlib.Path:
        """Writes all shards, in order, into one file, and returns its path."""
        path, partial = self.root / JOINED, self.root / f".{JOINED}.partial"
        with self._writing():
            # Piece by piece: all together need not fit into memory.
            with partial.open("wb") as whole:
                for number in range(self.count):
                    with (self.root / shard_name(number)).open("rb") as shard:
                        shutil.copyfileobj(shard, whole)
                whole.flush()
                os.fsync(whole.fileno())
            os.replace(partial, path)
            fsync(self.root)
        return path

    def _write_manifest(self) -> None:
        write_atomically(self.root / MANIFEST, json.dumps(self.manifest, indent=2) + "\n")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            done = len(self.manifest["shards"])
            raise _refusal(
                self.root,
                f"cannot be written: {error.strerror or error}; {done} of {self.count} shards are "
                "whole, and the same command goes on after them",
            ) from error


def _read(root: pathlib.Path) -> dict[str, Any]:
    damaged = _refusal(root, f"{MANIFEST} is damaged; expected responses or a new folder")
    try:
        manifest = json.loads((root / MANIFEST).read_bytes())
        written = manifest["format"]
    except OSError as error:
        raise _refusal(root, f"cannot read {MANIFEST}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged from None
    if written != FORMAT:
        raise _refusal(root, f"has format {written!r}; this version reads {FORMAT}")
    parts = [manifest.get("made_from"), manifest.get("shards")]
    if not all(isinstance(part, dict) for part in parts):
        raise damaged
    if not all(isinstance(e, dict) and "sha256" in e for e in manifest["shards"].values()):
        raise damaged
    return manifest


def _sha256(path: pathlib.Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _refusal(root: pathlib.Path, reason: str) -> UsageError:
    return UsageError(f"--workdir={root}: {reason}")
