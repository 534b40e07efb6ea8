"""A teacher that does not compute: its answers are read from a store, as store.py describes it.

Answers to all views of a training split either wait on the devices (resident) or are gathered on
the host for each batch (streamed); those to the steps of a training are always streamed. A store
is used with nothing but what it was made for, and no byte of it unverified. Writing is in store.py.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import data
from distill_jax.models import Outputs, Spec
from distill_jax.teachers.answers.manifest import (
    Arrays,
    augmentation,
    damage,
    file_name,
    hash_of_ids,
    names_of_parts,
    read_manifest,
    refusal,
    refuse_other,
)
from distill_jax.teachers.answers.schemes import Finite, Seeded, key_implementation
from distill_jax.teachers.views import View

ANSWER_PREFIX = "teacher/"  # before the names of answers that come with a batch
VERIFY_BYTES = 8 * 2**30  # a larger store is verified part by part, when a part is first used


class AnswerStore:
    """The files of a finished store, memory-mapped; it can be sent to another process."""

    def __init__(self, path: str | os.PathLike, manifest: dict[str, Any], verified: bool):
        """Args: path: the folder. manifest: its own. verified: False checks parts when used."""
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
            bits = part.isdigit() and name in self.manifest["arrays"]
            bits = bits and self.manifest["dtype"] == "bfloat16"
            self._maps[file] = array.view(jnp.bfloat16) if bits else array
        return self._maps[file]

    def take(self, name: str, items: np.ndarray, inner: np.ndarray | None = None) -> np.ndarray:
        """Some answers, as stored.

        Args:
          name: of the array.
          items: images or rows, int [n].
          inner: the view of each, int [n]; None for all.

        Returns:
          [n, ...], or [n, V, ...] of all views.
        """
        parts, rows = np.divmod(np.asarray(items), self.manifest["part_size"])
        first = self.array("00000", name)
        shape = first.shape[1:] if inner is None else first.shape[2:]
        out = np.empty((len(parts), *shape), first.dtype)
        for number in np.unique(parts):
            here = np.flatnonzero(parts == number)
            source = self.array(f"{number:05d}", name)
            out[here] = source[rows[here]] if inner is None else source[rows[here], inner[here]]
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTeacher:
    """A teacher whose answers are read; to training what `online.Teachers` is.

    Attributes:
      specs: what the teacher was made from, one entry.
      fingerprints: its SHA-256, one entry.
      parameters: its number of parameters, one entry.
      scheme: which views there are.
      store: the files.
    """

    specs: tuple[Spec, ...]
    fingerprints: tuple[str, ...]
    parameters: tuple[int, ...]
    scheme: Finite | Seeded
    store: AnswerStore

    own_average = False
    precomputed = True
    weights = (1.0,)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one answer, by array: "logits" and the taps."""
        return {name: tuple(shape) for name, shape in self.store.manifest["arrays"].items()}

    @property
    def nbytes(self) -> int:
        """The bytes of all answers to the training images: what `resident` needs."""
        return self.store.manifest["answer_bytes"]

    def abstract(self, batch_size: int) -> Outputs:
        """An answer to a batch without its values, of `jax.ShapeDtypeStruct`."""
        arrays = {
            name: jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
            for name, shape in self.shapes.items()
        }
        return Outputs(logits=arrays.pop("logits"), taps=arrays)

    def params(self, variables: Sequence[Any]) -> dict[str, jax.Array]:
        """{}: a store has answers and no parameters."""
        return {}

    def outputs(self, variables: Sequence[Mapping[str, jax.Array]], view: View) -> list[Outputs]:
        """The stored answers to a view; pure and `jit`-able.

        Args:
          variables: what `resident` gave, on the devices, as the one entry; empty where answers
            come with the batch.
          view: the view; where answers are streamed, its `stored_answers` hold them by names that
            begin with ANSWER_PREFIX.

        Returns:
          One answer, float32: logits [B, K] and the stored taps.
        """
        if variables:
            index = self.scheme.index(view.draws)
            arrays = {name: array[view.ids, index] for name, array in variables[0].items()}
        else:
            arrays = {name: view.stored_answers[ANSWER_PREFIX + name] for name in self.shapes}
        arrays = {name: array.astype(jnp.float32) for name, array in arrays.items()}
        return [Outputs(logits=arrays.pop("logits"), taps=arrays)]

    def resident(self) -> Arrays:
        """All answers to a `Finite` store's training images in memory: [N, V, ...], as stored."""
        self._expect(Finite)
        everything = np.arange(self.store.manifest["items"])
        return {name: self.store.take(name, everything) for name in self.shapes}

    def gather(self, ids: np.ndarray, draws: Mapping[str, np.ndarray]) -> Arrays:
        """The answers of a `Finite` store to one batch, to be given with it.

        Args:
          ids: positions of the examples in the training split, int [B].
          draws: of the batch, as of `schemes.host_draws`.

        Returns:
          By names that begin with ANSWER_PREFIX: [B, ...], as stored.
        """
        self._expect(Finite)
        index = np.broadcast_to(self.scheme.index(draws), len(ids))
        return {ANSWER_PREFIX + name: self.store.take(name, ids, index) for name in self.shapes}

    def rows(self, start_step: int, count: int) -> tuple[np.ndarray, np.ndarray, Arrays]:
        """What `count` steps of a training need of a `Seeded` store.

        Args:
          start_step: the number of the first step; the store is gone over again and again.
          count: how many steps, n.

        Returns:
          ids int32 [n, B]; key data of the views uint32 [n, words], for
          `jax.random.wrap_key_data`; and by names that begin with ANSWER_PREFIX the answers
          [n, B, ...].
        """
        self._expect(Seeded)
        rows = (start_step + np.arange(count)) % self.scheme.steps
        answers = {ANSWER_PREFIX + name: self.store.take(name, rows) for name in self.shapes}
        return self.store.take("ids", rows), self.store.take("keys", rows), answers

    def test_answers(self) -> Arrays:
        """The answers to the test split as it is: "logits" and the taps, float32 [M, ...]."""
        return {name: self.store.array("test", name) for name in self.shapes}

    def validation_answers(self, ids: np.ndarray) -> Arrays:
        """The answers to training images as they are.

        Args:
          ids: positions in the training split, int [n]; of a `Seeded` store, among those that it
            does not train on.

        Returns:
          "logits" and the taps, float32 [n, ...].
        """
        if isinstance(self.scheme, Finite):
            index = np.full(len(ids), self.scheme.identity)
            found = {name: self.store.take(name, ids, index) for name in self.shapes}
        else:
            position = self._held_out(np.asarray(ids))
            found = {name: self.store.array("held_out", name)[position] for name in self.shapes}
        return {name: array.astype(np.float32) for name, array in found.items()}

    def _held_out(self, ids: np.ndarray) -> np.ndarray:
        held = np.zeros(0, np.int32)
        if self.store.manifest["data"]["held_out"]:
            held = self.store.array("held_out", "ids")
        if lacking := sorted(set(ids.tolist()) - set(held.tolist())):
            raise refusal(
                self.store.path,
                f"holds the answers to the {len(held)} training images that its steps do not use; "
                f"this run evaluates on image {lacking[0]}, which is not among them",
            )
        return np.searchsorted(held, ids)

    def _expect(self, kind: type) -> None:
        if not isinstance(self.scheme, kind):
            raise TypeError(f"expected a {kind.kind} store, this one is {self.scheme.kind}")


def check(
    path: pathlib.Path, manifest: Mapping[str, Any], parts: Sequence[str], *, hashes: bool
) -> None:
    """UsageError when one of the parts is damaged."""
    for part in parts:
        if fault := damage(path, manifest["parts"][part], hashes=hashes):
            raise refusal(path, f"{fault}; storing the answers again repairs that part alone")


def open_image_store(
    path: str | os.PathLike,
    *,
    train_fingerprint: str,
    test_fingerprint: str,
    augment: data.Augment,
    num_classes: int,
    teacher_fingerprint: str | None = None,
    taps: Sequence[str] = (),
    dtype: str | None = None,
    compute_dtype: str | None = None,
    batch_size: int | None = None,
    train_ids: np.ndarray | None = None,
    seed: int | None = None,
    verify: bool | None = None,
) -> StoredTeacher:
    """Opens a finished store for a training.

    Args:
      path: the folder.
      train_fingerprint: of the training split, as of `data.fingerprint`.
      test_fingerprint: of the test split.
      augment: of the training.
      num_classes: of the data.
      teacher_fingerprint: the teacher that is expected; None takes the one of the store.
      taps: those that the training reads, beside the logits.
      dtype: that the answers are expected in; None takes any.
      compute_dtype: that the teacher is expected to have computed in; None takes any.
      batch_size: of the training. This and the next two are of a store of steps alone; None is
        not checked.
      train_ids: the examples that the training may use, in their order.
      seed: of the training, where its own order and views are wanted; None takes the store's.
      verify: compare the SHA-256 of every file now; None does so up to VERIFY_BYTES. Else sizes are
        compared now, and the hashes of a part before it is first used.

    Returns:
      The teacher.

    Raises:
      UsageError: the store was made for something else, is not finished, or is damaged.
    """
    manifest = read_manifest(path)
    expected = {
        "teacher": teacher_fingerprint,
        "training data": train_fingerprint,
        "test data": test_fingerprint,
        "classes": num_classes,
        **augmentation(augment),
        "dtype": dtype,
        "compute_dtype": compute_dtype,
    }
    fields = manifest["scheme"]
    if fields["scheme"] == Seeded.kind:
        scheme = Seeded(fields["steps"], fields["batch_size"], fields["seed"])
        expected |= {
            "batch_size": batch_size,
            "train_ids": None if train_ids is None else hash_of_ids(train_ids),
            "seed": seed,
            "key_implementation": key_implementation(),
        }
    else:
        scheme = Finite(fields["padding"], fields["flip"])
    refuse_other(path, manifest, expected)
    lacking = sorted(set(taps) - set(manifest["taps"]))
    if lacking:
        raise refusal(path, f"holds the taps {manifest['taps']}; this run reads {lacking[0]!r}")
    _check_finished(path, manifest)
    if isinstance(scheme, Seeded) and not scheme.draws_as(fields["probe"], augment):
        raise refusal(
            path,
            f"made for the views that jax {manifest['software'][0]['jax']} draws; jax "
            f"{jax.__version__} draws others from the same keys",
        )
    return StoredTeacher(
        specs=(Spec.from_json(manifest["teacher"]["spec"]),),
        fingerprints=(manifest["teacher"]["fingerprint"],),
        parameters=(manifest["teacher"]["parameters"],),
        scheme=scheme,
        store=open_store(path, manifest, verify),
    )


def _check_finished(path: str | os.PathLike, manifest: Mapping[str, Any]) -> None:
    planned = names_of_parts(manifest)
    missing = len(set(planned) - set(manifest["parts"]))
    if missing:
        raise refusal(
            path,
            f"{missing} of {len(planned)} parts are missing; expected a finished store: the "
            "command that began it goes on where it stopped",
        )


def open_store(
    path: str | os.PathLike, manifest: dict[str, Any], verify: bool | None = None
) -> AnswerStore:
    """The files of a finished store.

    Args:
      path: the folder.
      manifest: its own.
      verify: as in `open_image_store`.

    Raises:
      UsageError: it is not finished, or damaged.
    """
    _check_finished(path, manifest)
    total = sum(f["bytes"] for part in manifest["parts"].values() for f in part["files"].values())
    verify = total <= VERIFY_BYTES if verify is None else verify
    check(pathlib.Path(path), manifest, names_of_parts(manifest), hashes=verify)
    return AnswerStore(path, manifest, verify)
