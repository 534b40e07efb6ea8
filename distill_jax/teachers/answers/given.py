"""A store of answers to images that another program computed: a teacher from anything.

The file is .npz or .safetensors and holds

    train   float [N, V, K]: the logits of every view of the training images, or [N, K] of one view
    test    float [M, K]: the logits of the test images, not augmented
    ids     int [N], optional: which training image each row of `train` belongs to; by default 0, 1,
            2, ... in the order of the split

The views of an image are those of `schemes.Finite`, in its order: with a crop of padding p and a
flip, view (y * (2 p + 1) + x) * 2 + flipped.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from distill_jax import data, models
from distill_jax.errors import UsageError
from distill_jax.storage.sharded import Manifest
from distill_jax.teachers.answers.computing import DTYPES, describe_store
from distill_jax.teachers.answers.manifest import Arrays
from distill_jax.teachers.answers.schemes import Finite
from distill_jax.teachers.answers.store import AnswerFolder, Note

#: The name of the network in the manifest of such a store.
NAME = "given_logits"


@dataclasses.dataclass(frozen=True)
class GivenLogits:
    """Logits in a file, for the images of a data set.

    Attributes:
      file: the file.
      train: the full training split.
      test: the test split.
      augment: makes the views of the training images.
      dtype: of the stored answers, one of `computing.DTYPES`.
      licence: of the teacher, as `provenance.licences` records it; {} for none.
    """

    file: str | os.PathLike[str]
    train: data.Examples
    test: data.Examples
    augment: data.Augment
    dtype: str = "float16"
    licence: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The logits [N, V, K] in the order of the training split, and [M, K] of the test split.

        Raises:
          UsageError: an array is missing, has another shape or a number that is not finite or that
            the dtype does not hold; or the ids do not name every training image once.
        """
        found = models.read_state_dict(self.file, key="--logits")
        views, classes = Finite.of(self.augment).count, self.train.info.num_classes
        for name in ("train", "test"):
            if name not in found:
                self._refuse(f"has {', '.join(found)[:60]}; expected arrays train and test")
        train, test = found["train"], found["test"]
        train = train[:, None] if train.ndim == 2 and views == 1 else train
        shapes = {
            "train": (train, (len(self.train), views, classes)),
            "test": (test, (len(self.test), classes)),
        }
        for name, (array, shape) in shapes.items():
            if array.shape != shape or array.dtype.kind != "f":
                self._refuse(
                    f"{name} is {array.dtype} {list(array.shape)}; expected floats {list(shape)}: "
                    f"{len(self.train)} training images of {views} views, {len(self.test)} test "
                    f"images, {classes} classes"
                )
            if not np.isfinite(array).all():
                self._refuse(f"{name} has a number that is not finite")
        if self.dtype == "float16" and np.abs(train).max() > np.finfo(np.float16).max:
            self._refuse("train has a number beyond float16; expected --dtype=float32")
        ids = np.asarray(found.get("ids", np.arange(len(train))))
        if not np.array_equal(np.sort(ids), np.arange(len(train))):
            self._refuse(f"ids do not name each of the {len(train)} training images once")
        return train[np.argsort(ids)], test.astype(np.float32)

    def _refuse(self, fault: str) -> NoReturn:
        raise UsageError(f"--logits={str(self.file)!r}: {fault}")

    def manifest(self, scheme: Finite) -> Manifest:
        """The manifest of a store without parts; the teacher's fingerprint is that of the file."""
        info = self.train.info
        channels = info.image_shape[-1]
        spec = models.Spec(
            name=NAME,
            options={},
            input_shape=info.image_shape,
            num_classes=info.num_classes,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
        )
        content = pathlib.Path(self.file).read_bytes()
        return describe_store(
            teacher={
                "spec": spec.to_json(),
                "fingerprint": hashlib.sha256(content).hexdigest(),
                "parameters": 0,
                "class_names": list(info.known_names),
                "trained_on": {},
                **({"licence": dict(self.licence)} if self.licence else {}),
            },
            arrays={"logits": [info.num_classes]},
            train=self.train,
            test=self.test,
            augment=self.augment,
            dtype=self.dtype,
            compute_dtype="float32",
            taps=(),
            scheme={"scheme": scheme.kind, "padding": scheme.padding, "flip": scheme.flip},
            items=len(self.train),
            answers_per_item=scheme.count,
        )


def store_given_logits(
    path: str | os.PathLike[str], given: GivenLogits, *, note: Note = print
) -> Manifest:
    """Writes a store of given logits; arguments, result and errors as of `precompute_views`."""
    if given.dtype not in DTYPES:
        raise UsageError(f"--dtype={given.dtype!r}: expected one of {', '.join(DTYPES)}")
    scheme = Finite.of(given.augment)
    train, test = given.arrays()
    folder = AnswerFolder(path, given.manifest(scheme))

    def part(first: int, count: int) -> Arrays:
        return {"logits": train[first : first + count].astype(jnp.dtype(given.dtype))}

    return folder.write(part, unaugmented={"test": lambda: {"logits": test}}, note=note)
