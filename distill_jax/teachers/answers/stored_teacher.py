"""A teacher that computes nothing: it reads its answers from a store.

Answers to all views of a training split are either resident on the devices or gathered on the host
for each batch (streamed); those to the steps of a training are always streamed. A store is used
only for what it was made for, and no byte of it unverified. `images` writes stores, `store`
describes their files.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import data, models
from distill_jax.errors import UsageError
from distill_jax.models import Outputs, Spec, with_all_taps
from distill_jax.models.class_names import match
from distill_jax.storage.sharded import Manifest
from distill_jax.teachers.answers.manifest import (
    Arrays,
    augment_settings,
    hash_of_ids,
    read_manifest,
    refusal,
    refuse_other_settings,
)
from distill_jax.teachers.answers.schemes import Finite, Seeded, key_implementation
from distill_jax.teachers.answers.store import (
    ANSWER_PREFIX,
    AnswerStore,
    check_finished,
    open_store,
)
from distill_jax.teachers.answers.stored_taps import UNKNOWN, StoredTaps
from distill_jax.teachers.views import View

Scheme = TypeVar("Scheme", Finite, Seeded)


class StoredSteps(NamedTuple):
    """What some steps of a training need of a `Seeded` store.

    Attributes:
      ids: int32 [n, B], the examples.
      keys: uint32 [n, words], key data of the views, for `jax.random.wrap_key_data`.
      answers: [n, B, ...], as stored, by names that begin with ANSWER_PREFIX.
    """

    ids: np.ndarray
    keys: np.ndarray
    answers: Arrays


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTeacher:
    """A teacher whose answers were precomputed; training uses it as it uses `online.Teachers`.

    Attributes:
      specs: what the teacher was made from, one entry.
      fingerprints: its SHA-256, one entry.
      parameters: its number of parameters, one entry.
      scheme: which views the store has.
      store: the files.
      network: the shapes of all outputs of its network on one image; None where that is not
        registered, so that taps which the store does not hold are unknown.
      trained_on: what describes the teacher's training examples, one entry; {} for unknown.
      notes: lines about what could not be told.
    """

    specs: tuple[Spec, ...]
    fingerprints: tuple[str, ...]
    parameters: tuple[int, ...]
    scheme: Finite | Seeded
    store: AnswerStore
    network: Outputs | None
    trained_on: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

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

        def zeros() -> Outputs:
            arrays = {
                name: jnp.zeros((batch_size, *shape), jnp.float32)
                for name, shape in self.shapes.items()
            }
            return Outputs(logits=arrays.pop("logits"), taps=arrays)

        return jax.eval_shape(zeros)

    def whole_outputs(self) -> Outputs:
        """The shapes of all that the teacher's network returns for one image, for pairing.

        Where the network is unknown, `UNKNOWN` stands for the taps that the store may lack.
        """
        held = self.abstract(1)
        if self.network is not None:
            taps = {name: held.taps.get(name, tap) for name, tap in self.network.taps.items()}
            return Outputs(held.logits, taps)
        unknown = next(iter(held.taps.values()), held.logits)
        return self._guarded(Outputs(held.logits, {**held.taps, UNKNOWN: unknown}))

    def completed(self, outputs: Outputs) -> Outputs:
        """An answer as a method may read it: with zeros for taps that `refuse_missing` let pass."""
        if self.network is None:
            return self._guarded(outputs)
        return with_all_taps(outputs, self.network)

    def refuse_missing(self, method: str, used: Collection[str]) -> None:
        """Refuses a method whose loss depends on taps that the store lacks.

        Args:
          method: its name.
          used: the taps of `whole_outputs` on which the loss depends.

        Raises:
          UsageError: with the flag that stores them.
        """
        held = [name for name in self.shapes if name != "logits"]
        lacking = sorted(set(used) - set(held))
        if not lacking:
            return
        if self.network is None:
            self._guard(dict.fromkeys(held)).all()
        raise UsageError(
            f"teacher.store={str(self.store.path)!r}: the loss of {method} depends on "
            f"{', '.join(lacking)} of the teacher; the store has {', '.join(held) or 'no taps'}; "
            f"expected one written with --taps={','.join(sorted({*held, *lacking}))}, or "
            "teacher.path alone"
        )

    def _guarded(self, outputs: Outputs) -> Outputs:
        return Outputs(outputs.logits, self._guard(outputs.taps))

    def _guard(self, taps: Mapping[str, Any]) -> StoredTaps:
        return StoredTaps(taps, self.specs[0].name, str(self.store.path))

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
            index = self._require(Finite).index(view.draws)
            arrays = {name: array[view.ids, index] for name, array in variables[0].items()}
        else:
            arrays = {name: view.stored_answers[ANSWER_PREFIX + name] for name in self.shapes}
        arrays = {name: array.astype(jnp.float32) for name, array in arrays.items()}
        return [Outputs(logits=arrays.pop("logits"), taps=arrays)]

    def resident(self) -> Arrays:
        """All answers to a `Finite` store's training images in memory: [N, V, ...], as stored."""
        self._require(Finite)
        everything = np.arange(self.store.manifest["items"])
        return {name: self.store.take(name, everything) for name in self.shapes}

    def gather(self, ids: np.ndarray, draws: Mapping[str, np.ndarray]) -> Arrays:
        """The answers of a `Finite` store to one batch, which the feed adds to the batch.

        Args:
          ids: positions of the examples in the training split, int [B].
          draws: of the batch, as of `schemes.host_draws`.

        Returns:
          By names that begin with ANSWER_PREFIX: [B, ...], as stored.
        """
        index = np.broadcast_to(self._require(Finite).index(draws), len(ids))
        return {ANSWER_PREFIX + name: self.store.take(name, ids, index) for name in self.shapes}

    def rows(self, start_step: int, count: int) -> StoredSteps:
        """What `count` steps of a training need of a `Seeded` store.

        Args:
          start_step: the number of the first step; training cycles through the steps of the store.
          count: how many steps, n.
        """
        rows = (start_step + np.arange(count)) % self._require(Seeded).steps
        answers = {ANSWER_PREFIX + name: self.store.take(name, rows) for name in self.shapes}
        return StoredSteps(self.store.take("ids", rows), self.store.take("keys", rows), answers)

    def test_answers(self) -> Arrays:
        """The answers to the plain test images: "logits" and the taps, float32 [M, ...]."""
        return {name: self.store.array("test", name) for name in self.shapes}

    def validation_answers(self, ids: np.ndarray) -> Arrays:
        """The answers to training images that are not augmented.

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
        """The positions of some training images among those that a `Seeded` store holds out."""
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

    def _require(self, kind: type[Scheme]) -> Scheme:
        if not isinstance(self.scheme, kind):
            raise TypeError(f"expected a {kind.kind} store, this one is {self.scheme.kind}")
        return self.scheme


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRequirements:
    """What a training requires of an answer store; None accepts any value.

    Attributes:
      train_fingerprint: of the training split, as of `data.fingerprint`.
      test_fingerprint: of the test split.
      augment: of the training.
      num_classes: of the data.
      class_names: of the data; () for unknown.
      classes: how they correspond to the stored ones, "same" or "by_position".
      teacher_fingerprint: of the teacher.
      taps: those that the training reads in addition to the logits.
      dtype: of the stored answers.
      compute_dtype: in which the teacher computed them.
      batch_size: of the training. This and the next two apply to a store of steps alone.
      train_ids: the examples that the training may use, in their order.
      seed: of the training, where its own order and views are wanted.
    """

    train_fingerprint: str
    test_fingerprint: str
    augment: data.Augment
    num_classes: int
    class_names: tuple[str, ...] = ()
    classes: str = "same"
    teacher_fingerprint: str | None = None
    taps: Sequence[str] = ()
    dtype: str | None = None
    compute_dtype: str | None = None
    batch_size: int | None = None
    train_ids: np.ndarray | None = None
    seed: int | None = None

    def settings(self, scheme: Finite | Seeded) -> dict[str, Any]:
        """The settings that a store of this scheme must have, named as in `settings_of`."""
        expected = {
            "teacher": self.teacher_fingerprint,
            "training data": self.train_fingerprint,
            "test data": self.test_fingerprint,
            "classes": self.num_classes,
            **augment_settings(self.augment),
            "dtype": self.dtype,
            "compute_dtype": self.compute_dtype,
        }
        if isinstance(scheme, Finite):
            return expected
        return expected | {
            "batch_size": self.batch_size,
            "train_ids": None if self.train_ids is None else hash_of_ids(self.train_ids),
            "seed": self.seed,
            "key_implementation": key_implementation(),
        }


def open_image_store(
    path: str | os.PathLike[str], required: ImageRequirements, *, verify: bool | None = None
) -> StoredTeacher:
    """Opens a finished store of answers to images for a training.

    Args:
      path: the folder.
      required: what the store must have been made for.
      verify: as in `store.open_store`.

    Raises:
      UsageError: the store was made for something else, is not finished, or is damaged.
    """
    manifest = read_manifest(path)
    scheme = _scheme_of(manifest)
    refuse_other_settings(path, manifest, required.settings(scheme))
    if lacking := sorted(set(required.taps) - set(manifest["taps"])):
        raise refusal(path, f"holds the taps {manifest['taps']}; this run reads {lacking[0]!r}")
    check_finished(path, manifest)
    if isinstance(scheme, Seeded):
        probe = manifest["scheme"]["probe"]
        if not scheme.still_draws(probe, required.augment):
            raise refusal(
                path,
                f"made for the views that jax {manifest['software'][0]['jax']} draws; jax "
                f"{jax.__version__} draws others from the same keys",
            )
    about = manifest["teacher"]
    spec = Spec.from_json(about["spec"], about.get("class_names", ()))
    found = match(
        spec.class_names,
        required.class_names,
        how=required.classes,
        location=f"teacher.store={str(path)!r}",
    )
    return StoredTeacher(
        specs=(spec,),
        fingerprints=(about["fingerprint"],),
        parameters=(about["parameters"],),
        scheme=scheme,
        store=open_store(path, manifest, verify),
        network=_network_outputs(spec),
        trained_on=(about.get("trained_on", {}),),
        notes=(found.note,) if found.note else (),
    )


def _network_outputs(spec: Spec) -> Outputs | None:
    """The shapes of a network's outputs on one image; None where it is not registered."""
    if spec.name not in models.names():
        return None
    network = models.abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    return models.output_shapes(*models.split(network), spec.input_shape)


def _scheme_of(manifest: Manifest) -> Finite | Seeded:
    fields = manifest["scheme"]
    if fields["scheme"] == Seeded.kind:
        return Seeded(fields["steps"], fields["batch_size"], fields["seed"])
    return Finite(fields["padding"], fields["flip"])
