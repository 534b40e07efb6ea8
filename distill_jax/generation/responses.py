"""The folder of a teacher's responses: shards of JSON lines, then one file of all of them.

    manifest.json             what they were made from and with, and every shard's SHA-256
    responses-00000.jsonl     the lines of the first prompts, and so on
    responses.jsonl           all of them, in order, once every shard is written

`storage.sharded` writes the shards and resumes after a kill.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.storage import fsync
from distill_jax.storage.sharded import MANIFEST, Manifest, ShardedFolder

FORMAT = 1
JOINED = "responses.jsonl"


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"responses-{number:05d}.jsonl"


class Responses(ShardedFolder):
    """A folder of responses, new, unfinished or finished; opening it writes nothing.

    Args:
      root: the folder.
      made_from: all that decides what the lines are, by the names that an error gives it; values
        that JSON keeps.
      count: how many shards the finished folder has.
      about: what else the manifest of a new folder holds.

    Raises:
      UsageError: the folder holds responses made from something else, other files or a damaged
        manifest, or cannot be written.
    """

    content = "responses"
    parts_key = "shards"
    part_files = r"responses(-\d{5,})?\.jsonl"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        made_from: Mapping[str, Any],
        count: int,
        about: Mapping[str, Any],
    ):
        self.count = count
        settings = json.loads(json.dumps(made_from))
        super().__init__(root, {"format": FORMAT, "made_from": settings, **about, "shards": {}})

    @property
    def began(self) -> bool:
        """Whether an earlier writer has begun the folder."""
        return (self.root / MANIFEST).exists()

    def missing_numbers(self) -> list[int]:
        """The numbers of the shards that are still to be written."""
        return [number for number in range(self.count) if shard_name(number) not in self.parts]

    def add_lines(self, number: int, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes a shard, one line for each response."""
        rendered = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
        name, content = shard_name(number), "".join(rendered).encode()
        self.add(name, [(name, content)], lines=len(rendered))

    def join(self) -> pathlib.Path:
        """Writes all shards, in order, into one file, and returns its path."""
        path, partial = self.root / JOINED, self.root / f".{JOINED}.partial"
        with self.reporting_disk_errors():
            # Shard by shard: all together need not fit into memory.
            with partial.open("wb") as whole:
                for name in self.part_names():
                    with (self.root / name).open("rb") as shard:
                        shutil.copyfileobj(shard, whole)
                whole.flush()
                os.fsync(whole.fileno())
            os.replace(partial, path)
            fsync(self.root)
        return path

    def refusal(self, reason: str) -> UsageError:
        return UsageError(f"--workdir={self.root}: {reason}")

    def read_manifest(self) -> Manifest:
        damaged = self.refusal(f"{MANIFEST} is damaged; expected responses or a new folder")
        try:
            manifest = json.loads((self.root / MANIFEST).read_bytes())
            version = manifest["format"]
        except OSError as error:
            raise self.refusal(f"cannot read {MANIFEST}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError):
            raise damaged from None
        if version != FORMAT:
            raise self.refusal(f"has format {version!r}; this version reads {FORMAT}")
        made_from, shards = manifest.get("made_from"), manifest.get("shards")
        if not isinstance(made_from, dict) or not isinstance(shards, dict):
            raise damaged
        for entry in shards.values():
            if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
                raise damaged
        return manifest

    def render_manifest(self) -> bytes:
        return (json.dumps(self.manifest, indent=2) + "\n").encode()

    def refuse_other_settings(self, new: Manifest) -> None:
        before, now = self.manifest["made_from"], new["made_from"]
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise self.refusal(
                    f"holds responses with {name}={before.get(name)!r}, not {now.get(name)!r}; "
                    "expected the same or a new folder"
                )

    def part_names(self) -> list[str]:
        return [shard_name(number) for number in range(self.count)]

    def files_of(self, part: str) -> dict[str, Mapping[str, Any]]:
        return {part: self.parts[part]}

    def part_entry(
        self, files: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        (file,) = files.values()
        return {**facts, **file}
