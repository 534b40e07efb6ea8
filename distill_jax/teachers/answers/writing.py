"""Stores a frozen teacher's answers: to every view of every training image, or to whole steps.

    manifest.json                        what the answers were made from, and every file's SHA-256
    test-logits.npy, test-pooled.npy     float32 [M, ...]: the test images as they are
    logits-00000.npy, pooled-00000.npy   [n, V, ...]: n images in the order of the split, all V
    logits-00001.npy, ...                views of each in the order of `schemes.Finite`

A store of steps has [n, B, ...] for n steps of B examples, beside ids-00000.npy, int32 [n, B], and
keys-00000.npy, uint32 [n, words], the key data of the views; and held_out-*.npy, float32 [R, ...]
and int32 [R], the training images that no step uses, as they are. bfloat16 lies as uint16.

Each file is written whole or not at all, and a part counts once the manifest has its hashes: a
writer that was killed leaves whole parts, and the same command goes on after them. The manifest
carries its own SHA-256. One writer a folder, of one process; any number of readers once finished.
Reading is in stored.py.
"""

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Callable, Generator, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax import __version__, data, models
from distill_jax.storage import write_atomically
from distill_jax.teachers.answers import manifest as manifests
from distill_jax.teachers.answers.computing import AnswerComputation
from distill_jax.teachers.answers.manifest import Arrays, refusal
from distill_jax.teachers.answers.schemes import Finite, Seeded, key_implementation

PART_BYTES = 64 * 2**20  # of a part, unless its size is asked for
MOST_FILES = 400  # of a store of any size: every one that is read stays open

_TORN = re.compile(r"\.(manifest\.json|.+\.npy)\..+")

Note = Callable[[str], None]


def precompute_views(
    path: str | os.PathLike,
    *,
    saved: models.Saved,
    train: data.Examples,
    test: data.Examples,
    augment: data.Augment,
    dtype: str = "float16",
    taps: Sequence[str] = ("pooled",),
    batch_size: int = 1024,
    compute_dtype: str = "float32",
    mesh: Mesh | None = None,
    part_size: int = 0,
    note: Note = print,
) -> dict[str, Any]:
    """Stores a teacher's answers to all views of a training split, or goes on where it stopped.

    Args:
      path: the folder: a new one, or a store of the very same answers.
      saved: the teacher.
      train: the full training split.
      test: the test split.
      augment: a crop and a flip, or less.
      dtype: of the stored answers to the training images, one of `computing.DTYPES`.
      taps: which taps to store beside the logits.
      batch_size: views in one call of the teacher.
      compute_dtype: "float32" or "bfloat16", of the teacher's computation.
      mesh: the devices that share a batch; all by default.
      part_size: images a part; 0 for about 64 MiB, or for what an unfinished store has.
      note: called with one line for each part that is written.

    Returns:
      The manifest.

    Raises:
      UsageError: the augmentation has endlessly many views, the folder holds something else, the
        disk is too small, or an answer does not fit `dtype`.
    """
    scheme = Finite.of(augment)
    computation = AnswerComputation(
        saved, train, test, augment, dtype, tuple(taps), compute_dtype, batch_size, mesh
    )
    answers = computation.all_views(scheme)

    def part(first: int, count: int, size: int) -> Arrays:
        images, _ = train.batch(np.arange(first, first + count))
        return answers(np.concatenate([images, images[-1:].repeat(size - count, axis=0)]), count)

    manifest = computation.manifest(
        {"scheme": scheme.kind, "padding": scheme.padding, "flip": scheme.flip},
        items=len(train),
        inner=scheme.count,
        part_size=part_size,
    )
    plain = {"test": lambda: computation.identity(test, np.arange(len(test)))}
    return write_parts(pathlib.Path(path), manifest, part, plain, note)


def precompute_steps(
    path: str | os.PathLike,
    *,
    saved: models.Saved,
    train: data.Examples,
    test: data.Examples,
    augment: data.Augment,
    train_ids: np.ndarray,
    seed: int,
    batch_size: int,
    steps: int,
    dtype: str = "float16",
    taps: Sequence[str] = ("pooled",),
    compute_dtype: str = "float32",
    mesh: Mesh | None = None,
    part_size: int = 0,
    note: Note = print,
) -> dict[str, Any]:
    """Stores a teacher's answers to the first steps of a training, whatever the augmentation.

    Args:
      train_ids: int32 [n], the examples that are trained on, in their order; the rest is held out.
      seed: of the training.
      batch_size: B, of the training.
      steps: S; a training goes over them again and again.
      part_size: steps a part; 0 as in `precompute_views`.

    The other arguments, the result and the errors are those of `precompute_views`.
    """
    scheme = Seeded(steps, batch_size, seed)
    computation = AnswerComputation(
        saved, train, test, augment, dtype, tuple(taps), compute_dtype, batch_size, mesh
    )
    held_out = np.setdiff1d(np.arange(len(train), dtype=np.int32), train_ids)
    answers = computation.steps()
    order = data.Order(train_ids, seed)
    crops = data.Crops.of(augment.resized_crop, seed)
    feed = data.training_feed(train, order, batch_size, resident=False, workers=0, crops=crops)

    def part(first: int, count: int, size: int) -> Arrays:
        ids = order.ids(first * batch_size, count * batch_size).reshape(count, batch_size)
        keys = scheme.keys(first, count)
        with contextlib.closing(feed.at(first * batch_size)) as batches:
            found = answers((batch["image"] for batch in batches), keys)
        return {**found, "ids": ids, "keys": keys}

    manifest = computation.manifest(
        {
            "scheme": scheme.kind,
            **dataclasses.asdict(scheme),
            "train_ids": manifests.hash_of_ids(train_ids),
            "key_implementation": key_implementation(),
            "probe": scheme.probe(augment),
        },
        items=steps,
        inner=batch_size,
        part_size=part_size,
        held_out=len(held_out),
    )
    plain = {
        "test": lambda: computation.identity(test, np.arange(len(test))),
        "held_out": lambda: {"ids": held_out, **computation.identity(train, held_out)},
    }
    return write_parts(pathlib.Path(path), manifest, part, plain, note)


def write_parts(
    folder: pathlib.Path,
    manifest: dict[str, Any],
    part: Callable[[int, int, int], Arrays],
    plain: dict[str, Callable[[], Arrays]],
    note: Note,
) -> dict[str, Any]:
    """Writes the parts that a store lacks, one after the other.

    Args:
      folder: of the store.
      manifest: of the store without parts.
      part: (first item, count, items of a whole part) -> its arrays.
      plain: the other parts, by name.
      note: of `precompute_views`.

    Returns:
      The manifest of the finished store.

    Raises:
      UsageError: the folder holds something else, cannot be written, or its disk is too small.
    """
    manifest = _continued(folder, manifest, note)
    planned, parts = manifests.names_of_parts(manifest), manifest["parts"]
    missing = [name for name in planned if name not in parts]
    if not missing:
        note(f"{folder}: finished; all {len(planned)} parts are intact")
        return manifest
    _check_space(folder, manifest, missing)
    software = _software()
    if software not in manifest["software"]:
        manifest["software"].append(software)
    with _writing(folder, manifest, planned):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / manifests.MANIFEST, manifests.rendered(manifest))
    size, items = manifest["part_size"], manifest["items"]
    for name in missing:
        if name in plain:
            arrays, place = plain[name](), {}
        else:
            place = {"first": int(name) * size, "count": min(size, items - int(name) * size)}
            arrays = part(place["first"], place["count"], size)
        with _writing(folder, manifest, planned):
            files = {manifests.file_name(name, key): value for key, value in arrays.items()}
            files = {file: _write_array(folder / file, value) for file, value in files.items()}
            parts[name] = {**place, "files": files}
            manifest["parts"] = parts = {key: parts[key] for key in planned if key in parts}
            write_atomically(folder / manifests.MANIFEST, manifests.rendered(manifest))
        note(f"{folder}: part {name} is written, {len(parts)} of {len(planned)}")
    return manifest


def _continued(folder: pathlib.Path, manifest: dict[str, Any], note: Note) -> dict[str, Any]:
    """The manifest to go on with: that of the folder, less its damaged parts, or the new one.

    Raises:
      UsageError: the folder holds other answers, or something else.
    """
    found = sorted(os.listdir(folder)) if folder.is_dir() else [folder.name] * folder.exists()
    torn = [name for name in found if _TORN.fullmatch(name)]  # of a writer that was killed
    if manifests.MANIFEST not in found:
        if others := [name for name in found if name not in torn]:
            raise refusal(
                folder, f"expected a new folder, or a store to go on with; found {others[0]!r}"
            )
        _remove(folder, torn)
        return {**manifest, "part_size": manifest["part_size"] or default_part_size(manifest)}
    asked, before = manifest, manifests.read_manifest(folder)
    manifests.refuse_other(folder, before, manifests.made_for(asked))
    if asked["part_size"] not in (0, before["part_size"]):
        raise refusal(
            folder, f"has parts of {before['part_size']}; this run has {asked['part_size']}"
        )
    _remove(folder, torn)
    for name, entry in list(before["parts"].items()):
        if fault := manifests.damage(folder, entry, hashes=True):
            note(f"{folder}: {fault}; part {name} is made again")
            del before["parts"][name]
    return before


def _remove(folder: pathlib.Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink()


def default_part_size(manifest: dict[str, Any]) -> int:
    """Items of a part of about PART_BYTES, or of more where that would be too many files."""
    total = manifest["answer_bytes"]
    part = max(PART_BYTES, total * len(manifest["arrays"]) // MOST_FILES)
    return max(1, part * manifest["items"] // total)


def _check_space(folder: pathlib.Path, manifest: dict[str, Any], missing: list[str]) -> None:
    """UsageError when the disk has not the room for the missing parts."""
    sets = manifest["data"]
    plain = {"test": sets["test"]["examples"]} if "test" in sets else {}
    plain["held_out"] = sets.get("held_out", 0)
    numbers = sum(math.prod(shape) for shape in manifest["arrays"].values())
    size, items = manifest["part_size"], manifest["items"]
    needed = 0
    for name in missing:
        if name in plain:
            needed += plain[name] * (4 * numbers + 4)
        else:
            # An id is 4 bytes an answer of a step, and little beside its answer.
            each = manifest["answer_bytes"] // items + 4 * manifest["answers_an_item"]
            needed += min(size, items - int(name) * size) * each
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise refusal(
            folder,
            f"its disk has {free / 1e9:.3g} GB free; expected the {needed / 1e9:.3g} GB that the "
            "answers need",
        )


def _write_array(path: pathlib.Path, array: np.ndarray) -> dict[str, Any]:
    """Writes a .npy file whole or not at all; its size and SHA-256."""
    array = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    write_atomically(path, content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@contextlib.contextmanager
def _writing(
    folder: pathlib.Path, manifest: dict[str, Any], planned: list[str]
) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise refusal(
            folder,
            f"cannot be written: {error.strerror or error}; {len(manifest['parts'])} of "
            f"{len(planned)} parts are whole, and the same command goes on after them",
        ) from error


def _software() -> dict[str, str]:
    libraries = {name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    device = jax.devices()[0]
    return {
        "distill_jax": __version__,
        "python": platform.python_version(),
        **libraries,
        "device": f"{device.platform}:{device.device_kind}",
    }
