"""An answer store on disk: a folder of .npy files, written part by part, then read by any number.

    manifest.json                        what the answers were made from, and every file's SHA-256
    test-logits.npy, test-pooled.npy     float32 [M, ...]: the test images, not augmented
    logits-00000.npy, pooled-00000.npy   [n, V, ...]: n images in the order of the split, all V
    logits-00001.npy, ...                views of each in the order of `schemes.Finite`

A store of steps has [n, B, ...] for n steps of B examples, with ids-00000.npy, int32 [n, B], and
keys-00000.npy, uint32 [n, words], the key data of the views; and held_out-*.npy, float32 [R, ...]
and int32 [R], the training images that no step uses, not augmented. A store of text has
[n, T, ...] for n packed rows of T tokens, see `sparse.SparseFormat`. bfloat16 is stored as uint16.

`storage.sharded` writes the parts and resumes after a kill; the manifest holds its own SHA-256.
"""

import io
import math
import os
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import __version__
from distill_jax.errors import UsageError
from distill_jax.storage import free_bytes
from distill_jax.storage.sharded import Manifest, ShardedFolder, find_damage
from distill_jax.teachers.answers import manifest as manifests
from distill_jax.teachers.answers.manifest import Arrays, file_name, part_names, refusal
from distill_jax.training.logging.progress import Progress, Style

ANSWER_PREFIX = "teacher/"  # before the names of stored answers in a batch
PART_BYTES = 64 * 2**20  # of a part, where no size is given
PART_ANSWERS = 2**18  # in a part at most: a kill costs the time of one part
MOST_FILES = 400  # of a store of any size: a reader keeps every file open
VERIFY_BYTES = 8 * 2**30  # a larger store is verified part by part, before a part is first used

Note = Callable[[str], None]


class AnswerFolder(ShardedFolder):
    """The folder of a store, to write the parts that it lacks.

    Args:
      root: the folder: a new one, or one with answers computed from the same settings.
      new: the manifest without parts; a part_size of 0 stands for that of an unfinished store, or
        for about 64 MiB.
      multiple_of: what a part size that is chosen here is a multiple of.
    """

    content = "a store of answers"
    parts_key = "parts"
    part_files = r".+\.npy"

    def __init__(self, root: str | os.PathLike[str], new: Manifest, *, multiple_of: int = 1):
        super().__init__(root, new)
        self._progress: Progress | None = None
        self._computed = 0
        if not self.manifest["part_size"]:
            size = default_part_size(self.manifest)
            self.manifest["part_size"] = -(-size // multiple_of) * multiple_of

    @property
    def part_size(self) -> int:
        """Items of a whole part: images, steps or rows."""
        return self.manifest["part_size"]

    def write(
        self,
        compute: Callable[[int, int], Arrays],
        *,
        unaugmented: Mapping[str, Callable[[], Arrays]],
        note: Note,
        style: Style = "off",
        unit: str = "views",
    ) -> Manifest:
        """Writes the parts that the store lacks, one after the other.

        Args:
          compute: (first item, count) -> the arrays of a part.
          unaugmented: computes the arrays of each other part: "test" and "held_out".
          note: called with one line for each part that is damaged or written.
          style: how the progress is shown, see `Progress`; `compute` reports it by `computed`.
          unit: what an answer is to, for the progress.

        Returns:
          The manifest of the finished store.

        Raises:
          UsageError: the disk fails or is too small.
        """
        for part, fault in self.repair().items():
            note(f"{self.root}: {fault}; part {part} is made again")
        missing, total = self.missing(), len(self.part_names())
        if not missing:
            note(f"{self.root}: finished; all {total} parts are intact")
            return self.manifest
        self._check_space(missing)
        software = _software()
        if software not in self.manifest["software"]:
            self.manifest["software"].append(software)
        self.begin()
        numbered = [part for part in missing if part not in unaugmented]
        answers = sum(map(self._count, numbered)) * self.manifest["answers_an_item"]
        size = self.manifest["answer_bytes"] / 1e9
        with Progress(
            max(1, answers), title="answers", style=style, unit=unit, counted=unit
        ) as self._progress:
            self._progress.note(
                f"device: {software['device']}; {self.root}: {answers:,} {unit} to answer in "
                f"{len(missing)} of {total} parts; {size:.3g} GB when all are written"
            )
            for part in missing:
                if part in unaugmented:
                    arrays, items = unaugmented[part](), {}
                else:
                    first = int(part) * self.part_size
                    items = {"first": first, "count": self._count(part)}
                    arrays = compute(first, self._count(part))
                files = ((file_name(part, name), _npy(array)) for name, array in arrays.items())
                self.add(part, files, **items)
                note(f"{self.root}: part {part} is written, {len(self.parts)} of {total}")
        return self.manifest

    def record(self, name: str, value: Any) -> None:
        """Adds an entry to the manifest of a finished store.

        Raises:
          UsageError: the disk fails.
        """
        self.manifest[name] = value
        self.begin()

    def computed(self, answers: int) -> None:
        """Reports that as many more answers are computed."""
        if self._progress is not None:
            self._computed += answers
            self._progress.update_rate(self._computed)

    def _count(self, part: str) -> int:
        """Items of a part; the last one has what is left."""
        return min(self.part_size, self.manifest["items"] - int(part) * self.part_size)

    def _check_space(self, missing: Sequence[str]) -> None:
        """UsageError when the disk has not the room for the missing parts."""
        sets = self.manifest["data"]
        unaugmented = {"test": sets["test"]["examples"]} if "test" in sets else {}
        unaugmented["held_out"] = sets.get("held_out", 0)
        numbers = sum(math.prod(shape) for shape in self.manifest["arrays"].values())
        # An id is 4 bytes an answer of a step, and little next to its answer.
        item_bytes = self.manifest["answer_bytes"] // self.manifest["items"]
        item_bytes += 4 * self.manifest["answers_an_item"]
        needed = sum(
            unaugmented[part] * (4 * numbers + 4)
            if part in unaugmented
            else self._count(part) * item_bytes
            for part in missing
        )
        free = free_bytes(self.root)
        if free < needed:
            raise self.refusal(
                f"its disk has {free / 1e9:.3g} GB free; expected the {needed / 1e9:.3g} GB that "
                "the answers need"
            )

    def refusal(self, reason: str) -> UsageError:
        return refusal(self.root, reason)

    def read_manifest(self) -> Manifest:
        return manifests.read_manifest(self.root)

    def render_manifest(self) -> bytes:
        return manifests.render(self.manifest)

    def refuse_other_settings(self, new: Manifest) -> None:
        manifests.refuse_other_settings(self.root, self.manifest, manifests.settings_of(new))
        if new["part_size"] not in (0, self.part_size):
            raise self.refusal(f"has parts of {self.part_size}; this run has {new['part_size']}")

    def part_names(self) -> list[str]:
        return part_names(self.manifest)

    def files_of(self, part: str) -> dict[str, Mapping[str, Any]]:
        return self.parts[part]["files"]

    def part_entry(
        self, files: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {**facts, "files": files}


def default_part_size(manifest: Mapping[str, Any]) -> int:
    """Items of a part of about PART_BYTES and at most PART_ANSWERS; more, not to be many files."""
    total, items = manifest["answer_bytes"], manifest["items"]
    wanted = min(PART_BYTES * items // total, PART_ANSWERS // manifest["answers_an_item"])
    return max(1, wanted, items * len(manifest["arrays"]) // MOST_FILES)


def _npy(array: np.ndarray) -> bytes:
    """The content of a .npy file."""
    buffer = io.BytesIO()
    array = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _software() -> dict[str, str]:
    libraries = {name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    device = jax.devices()[0]
    return {
        "distill_jax": __version__,
        "python": platform.python_version(),
        **libraries,
        "device": f"{device.platform}:{device.device_kind}",
    }


class AnswerStore:
    """The files of a finished store, memory-mapped; it can be sent to another process.

    Args:
      path: the folder.
      manifest: its content.
      verified: whether every part was verified; otherwise each is before it is first used.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest, verified: bool):
        self.path = pathlib.Path(path)
        self.manifest = manifest
        self._verified = set(manifest["parts"]) if verified else set()
        self._maps: Arrays = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}

    def array(self, part: str, name: str) -> np.ndarray:
        """One array of a part, read-only.

        Raises:
          UsageError: the part is damaged.
        """
        file = file_name(part, name)
        if file not in self._maps:
            if part not in self._verified:
                check(self.path, self.manifest, [part], hashes=True)
                self._verified.add(part)
            array = np.load(self.path / file, mmap_mode="r", allow_pickle=False)
            is_answer = part.isdigit() and name in self.manifest["arrays"]
            as_bfloat16 = is_answer and self.manifest["dtype"] == "bfloat16"
            self._maps[file] = array.view(jnp.bfloat16) if as_bfloat16 else array
        return self._maps[file]

    def take(self, name: str, items: np.ndarray, inner: np.ndarray | None = None) -> np.ndarray:
        """Some answers, as stored.

        Args:
          name: of the array.
          items: images, steps or rows, int [n].
          inner: the view of each, int [n]; None for all.

        Returns:
          [n, ...], or [n, V, ...] of all views.
        """
        parts, rows = np.divmod(np.asarray(items), self.manifest["part_size"])
        first = self.array("00000", name)
        shape = first.shape[1:] if inner is None else first.shape[2:]
        out = np.empty((len(parts), *shape), first.dtype)
        for number in np.unique(parts):
            chosen = np.flatnonzero(parts == number)
            source = self.array(f"{number:05d}", name)
            index = rows[chosen] if inner is None else (rows[chosen], inner[chosen])
            out[chosen] = source[index]
        return out


def open_store(
    path: str | os.PathLike[str], manifest: Manifest, verify: bool | None = None
) -> AnswerStore:
    """The files of a finished store.

    Args:
      path: the folder.
      manifest: its content.
      verify: whether to compare the SHA-256 of every file now; None does so up to VERIFY_BYTES.
        Otherwise sizes are compared now, and the hashes of a part before it is first used.

    Raises:
      UsageError: it is not finished, or damaged.
    """
    check_finished(path, manifest)
    total = sum(f["bytes"] for part in manifest["parts"].values() for f in part["files"].values())
    verify = total <= VERIFY_BYTES if verify is None else verify
    check(pathlib.Path(path), manifest, part_names(manifest), hashes=verify)
    return AnswerStore(path, manifest, verify)


def check(
    path: pathlib.Path, manifest: Mapping[str, Any], parts: Sequence[str], *, hashes: bool
) -> None:
    """UsageError when one of the parts is damaged."""
    for part in parts:
        if fault := find_damage(path, manifest["parts"][part]["files"], hashes=hashes):
            raise refusal(path, f"{fault}; storing the answers again repairs that part alone")


def check_finished(path: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
    """UsageError when a store lacks parts."""
    planned = part_names(manifest)
    if missing := len(set(planned) - set(manifest["parts"])):
        raise refusal(
            path,
            f"{missing} of {len(planned)} parts are missing; expected a finished store: the "
            "command that began it goes on where it stopped",
        )
