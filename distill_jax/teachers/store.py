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
import functools
import hashlib
import io
import math
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from distill_jax import __version__, data, models, parallel
from distill_jax.errors import UsageError, unknown
from distill_jax.files import write_atomically
from distill_jax.teachers import stored
from distill_jax.teachers.schemes import Finite, Seeded, key_implementation
from distill_jax.teachers.stored import Arrays, refusal

DTYPES = ("bfloat16", "float16", "float32")
PART_BYTES = 64 * 2**20  # of a part, unless its size is asked for
MOST_FILES = 400  # of a store of any size: every one that is read stays open

_TORN = re.compile(r"\.(manifest\.json|.+\.npy)\..+")

Note = Callable[[str], None]


def write(
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
      dtype: of the stored answers to the training images, one of DTYPES; float16 keeps 11 bits.
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
    asked = _Asked(saved, train, test, augment, dtype, tuple(taps), compute_dtype, batch_size, mesh)
    answers = asked.all_views(scheme)

    def part(first: int, count: int, size: int) -> Arrays:
        images, _ = train.batch(np.arange(first, first + count))
        return answers(np.concatenate([images, images[-1:].repeat(size - count, axis=0)]), count)

    manifest = asked.manifest(
        {"scheme": scheme.kind, "padding": scheme.padding, "flip": scheme.flip},
        items=len(train),
        inner=scheme.count,
        part_size=part_size,
    )
    plain = {"test": lambda: asked.identity(test, np.arange(len(test)))}
    return _write(pathlib.Path(path), manifest, part, plain, note)


def write_seeded(
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
      part_size: steps a part; 0 as in `write`.

    The other arguments, the result and the errors are those of `write`.
    """
    scheme = Seeded(steps, batch_size, seed)
    asked = _Asked(saved, train, test, augment, dtype, tuple(taps), compute_dtype, batch_size, mesh)
    held_out = np.setdiff1d(np.arange(len(train), dtype=np.int32), train_ids)
    answers = asked.steps()
    order = data.Order(train_ids, seed)
    feed = data.training(train, order, batch_size, resident=False, workers=0)

    def part(first: int, count: int, size: int) -> Arrays:
        ids = order.ids(first * batch_size, count * batch_size).reshape(count, batch_size)
        keys = scheme.keys(first, count)
        with contextlib.closing(feed.at(first * batch_size)) as batches:
            found = answers((batch["image"] for batch in batches), keys)
        return {**found, "ids": ids, "keys": keys}

    manifest = asked.manifest(
        {
            "scheme": scheme.kind,
            **dataclasses.asdict(scheme),
            "train_ids": stored.hash_of_ids(train_ids),
            "key_implementation": key_implementation(),
            "probe": scheme.probe(augment),
        },
        items=steps,
        inner=batch_size,
        part_size=part_size,
        held_out=len(held_out),
    )
    plain = {
        "test": lambda: asked.identity(test, np.arange(len(test))),
        "held_out": lambda: {"ids": held_out, **asked.identity(train, held_out)},
    }
    return _write(pathlib.Path(path), manifest, part, plain, note)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A teacher and what it is asked: the functions that answer, jitted, and their description."""

    saved: models.Saved
    train: data.Examples
    test: data.Examples
    augment: data.Augment
    dtype: str
    taps: tuple[str, ...]
    compute_dtype: str
    batch_size: int
    mesh: Mesh | None

    def __post_init__(self):
        if self.mesh is None:
            object.__setattr__(self, "mesh", parallel.make_mesh())
        for name, known in (("dtype", DTYPES), ("compute_dtype", ("bfloat16", "float32"))):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known, "dtype")
        parallel.check_divides(self.mesh, "batch_size", self.batch_size)
        spec = self.saved.spec
        for name, examples in (("training", self.train), ("test", self.test)):
            have = (examples.info.image_shape, examples.info.num_classes)
            if (tuple(spec.input_shape), spec.num_classes) != (tuple(have[0]), have[1]):
                raise UsageError(
                    f"teacher.path: the teacher takes {spec.input_shape} images of "
                    f"{spec.num_classes} classes; the {name} images are {have[0]} of {have[1]}"
                )
        for tap in self.taps:
            if tap not in self._shapes.taps:
                raise unknown("taps", tap, self._shapes.taps, "tap")

    @functools.cached_property
    def _graphdef(self) -> Any:
        spec = self.saved.spec
        module = models.abstract(
            spec.name,
            input_shape=spec.input_shape,
            num_classes=spec.num_classes,
            dtype=jnp.dtype(self.compute_dtype),
            **spec.options,
        )
        return models.split(module)[0]

    @functools.cached_property
    def _variables(self) -> Any:
        variables = (self.saved.params, self.saved.stats)
        return jax.device_put(variables, parallel.replicated(self.mesh))

    def _outputs(self, variables: Any, images: Array) -> models.Outputs:
        inputs = models.normalise(images, self.saved.spec.mean, self.saved.spec.std)
        return models.apply(self._graphdef, *variables, inputs, train=False)[0]

    @functools.cached_property
    def _shapes(self) -> models.Outputs:
        images = jax.ShapeDtypeStruct((1, *self.saved.spec.input_shape), jnp.float32)
        return jax.eval_shape(self._outputs, (self.saved.params, self.saved.stats), images)

    def _answer(self, variables: Any, images: Array, dtype: str) -> tuple[dict, dict]:
        """The answers as they are stored, and the largest magnitude of each array."""
        outputs = self._outputs(variables, images)
        arrays = {"logits": outputs.logits, **{name: outputs.taps[name] for name in self.taps}}
        peaks = {name: jnp.max(jnp.abs(a.astype(jnp.float32))) for name, a in arrays.items()}
        return {name: a.astype(dtype) for name, a in arrays.items()}, peaks

    def _view(self, images: Array, draws: dict[str, Array]) -> Array:
        labels = jnp.zeros(images.shape[0], jnp.int32)
        return data.view(images, labels, self.saved.spec.num_classes, draws, self.augment)[0]

    def all_views(self, scheme: Finite) -> Callable[[np.ndarray, int], Arrays]:
        """(images uint8 [n, H, W, C], count) -> answers to the first ones, [count, V, ...]."""

        @jax.jit
        def chunk(variables, images, first):
            row = jnp.minimum(
                first + jnp.arange(self.batch_size), images.shape[0] * scheme.count - 1
            )
            row = jax.lax.with_sharding_constraint(row, parallel.batch_sharding(self.mesh))
            view = self._view(images[row // scheme.count], scheme.draws(row % scheme.count))
            return self._answer(variables, view, self.dtype)

        def answers(images: np.ndarray, count: int) -> Arrays:
            rows = count * scheme.count
            images = jax.device_put(images, parallel.replicated(self.mesh))
            calls = (
                chunk(self._variables, images, np.int32(first))
                for first in range(0, rows, self.batch_size)
            )
            return {
                name: array[:rows].reshape(count, scheme.count, *array.shape[1:])
                for name, array in _joined(calls, self.dtype).items()
            }

        return answers

    def steps(self) -> Callable[[Iterable[np.ndarray], np.ndarray], Arrays]:
        """(images uint8 [B, H, W, C] of each step, key data [n, words]) -> answers [n, B, ...]."""

        sharding = parallel.batch_sharding(self.mesh)

        @jax.jit
        def step(variables, images, words):
            draws = data.draw(jax.random.wrap_key_data(words), images.shape[0], self.augment)
            return self._answer(variables, self._view(images, draws), self.dtype)

        def answers(images: Iterable[np.ndarray], keys: np.ndarray) -> Arrays:
            # The keys first: the feed is endless, and one batch more of it would be read in vain.
            calls = (
                step(self._variables, jax.device_put(batch, sharding), words)
                for words, batch in zip(keys, images, strict=False)
            )
            return {
                name: array.reshape(len(keys), self.batch_size, *array.shape[1:])
                for name, array in _joined(calls, self.dtype).items()
            }

        return answers

    def identity(self, examples: data.Examples, ids: np.ndarray) -> Arrays:
        """The answers to images as they are: float32 [n, ...]."""

        sharding = parallel.batch_sharding(self.mesh)

        @jax.jit
        def chunk(variables, images):
            labels = jnp.zeros(images.shape[0], jnp.int32)
            view = data.identity(images, labels, self.saved.spec.num_classes)[0]
            return self._answer(variables, view, "float32")

        calls = (
            chunk(self._variables, jax.device_put(batch["image"], sharding))
            for batch in data.evaluation(examples, ids, self.batch_size, resident=False)
        )
        return {name: array[: len(ids)] for name, array in _joined(calls, "float32").items()}

    def manifest(
        self, scheme: dict[str, Any], items: int, inner: int, part_size: int, held_out: int = 0
    ) -> dict[str, Any]:
        """The manifest of a store without parts: of so many items of `inner` answers each."""
        spec, info = self.saved.spec, self.train.info
        arrays = {"logits": self._shapes.logits} | {t: self._shapes.taps[t] for t in self.taps}
        arrays = {name: list(a.shape[1:]) for name, a in arrays.items()}
        one = sum(math.prod(shape) for shape in arrays.values()) * jnp.dtype(self.dtype).itemsize
        return {
            "format": stored.FORMAT,
            "teacher": {
                "spec": spec.to_json(),
                "fingerprint": self.saved.fingerprint,
                "parameters": models.count(self.saved.params),
            },
            "data": {
                "name": info.name,
                "classes": info.num_classes,
                "image_shape": list(info.image_shape),
                "train": {"examples": len(self.train), "fingerprint": data.fingerprint(self.train)},
                "test": {"examples": len(self.test), "fingerprint": data.fingerprint(self.test)},
                "held_out": held_out,
            },
            "scheme": scheme,
            "augment": dataclasses.asdict(self.augment),
            "dtype": self.dtype,
            "compute_dtype": self.compute_dtype,
            "taps": list(self.taps),
            "arrays": arrays,
            "items": items,
            "answers_an_item": inner,
            "answer_bytes": one * inner * items,
            "part_size": part_size,
            "software": [],
            "parts": {},
        }


def _joined(calls: Iterable[tuple[dict, dict]], dtype: str) -> Arrays:
    """The arrays of all calls in one, fetched from the devices while the next call computes.

    Raises:
      UsageError: a number is not finite, or `dtype` does not hold it.
    """
    found, ahead = [], None
    for call in calls:
        if ahead is not None:
            found.append(jax.device_get(ahead))
        ahead = call
    found.append(jax.device_get(ahead))
    for name in found[0][1]:
        peak = float(np.max([peaks[name] for _, peaks in found]))  # NaN where there is any
        if not math.isfinite(peak):
            raise UsageError(f"teacher.path: {name} of the teacher are not all finite numbers")
        if peak > (most := float(jnp.finfo(dtype).max)):
            raise UsageError(
                f"dtype={dtype!r}: holds numbers to {most:.6g}, and {name} of the teacher reach "
                f"{peak:.6g}; expected 'float32'"
            )
    return {name: np.concatenate([a[name] for a, _ in found]) for name in found[0][0]}


def _write(
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
      note: of `write`.
    """
    manifest = _continued(folder, manifest, note)
    planned, parts = stored.names_of_parts(manifest), manifest["parts"]
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
        write_atomically(folder / stored.MANIFEST, stored.rendered(manifest))
    size, items = manifest["part_size"], manifest["items"]
    for name in missing:
        if name in plain:
            arrays, place = plain[name](), {}
        else:
            place = {"first": int(name) * size, "count": min(size, items - int(name) * size)}
            arrays = part(place["first"], place["count"], size)
        with _writing(folder, manifest, planned):
            files = {stored.file_name(name, key): value for key, value in arrays.items()}
            files = {file: _write_array(folder / file, value) for file, value in files.items()}
            parts[name] = {**place, "files": files}
            manifest["parts"] = parts = {key: parts[key] for key in planned if key in parts}
            write_atomically(folder / stored.MANIFEST, stored.rendered(manifest))
        note(f"{folder}: part {name} is written, {len(parts)} of {len(planned)}")
    return manifest


def _continued(folder: pathlib.Path, manifest: dict[str, Any], note: Note) -> dict[str, Any]:
    """The manifest to go on with: that of the folder, less its damaged parts, or the new one.

    Raises:
      UsageError: the folder holds other answers, or something else.
    """
    found = sorted(os.listdir(folder)) if folder.is_dir() else [folder.name] * folder.exists()
    torn = [name for name in found if _TORN.fullmatch(name)]  # of a writer that was killed
    if stored.MANIFEST not in found:
        if others := [name for name in found if name not in torn]:
            raise refusal(
                folder, f"expected a new folder, or a store to go on with; found {others[0]!r}"
            )
        _remove(folder, torn)
        return {**manifest, "part_size": manifest["part_size"] or _default_part_size(manifest)}
    asked, before = manifest, stored.read_manifest(folder)
    stored.refuse_other(folder, before, stored.made_for(asked))
    if asked["part_size"] not in (0, before["part_size"]):
        raise refusal(
            folder, f"has parts of {before['part_size']}; this run has {asked['part_size']}"
        )
    _remove(folder, torn)
    for name, entry in list(before["parts"].items()):
        if fault := stored.damage(folder, entry, hashes=True):
            note(f"{folder}: {fault}; part {name} is made again")
            del before["parts"][name]
    return before


def _remove(folder: pathlib.Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink()


def _default_part_size(manifest: dict[str, Any]) -> int:
    total = manifest["answer_bytes"]
    part = max(PART_BYTES, total * len(manifest["arrays"]) // MOST_FILES)
    return max(1, part * manifest["items"] // total)


def _check_space(folder: pathlib.Path, manifest: dict[str, Any], missing: list[str]) -> None:
    """UsageError when the disk has not the room for the missing parts."""
    plain = {"test": manifest["data"]["test"]["examples"], "held_out": manifest["data"]["held_out"]}
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
