"""Teachers that are not trained here: weights that others have published, or any model folder.

A file of weights does not tell how its network wants pixels normalised, nor what its shortcuts are.
So a file is accepted where its fingerprint is that of one in PUBLISHED; other weights become a
model folder first (`distill-jax import`). Before anything is trained, each is measured on the test
set, and a published one must give its published accuracy.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from distill_jax import data, models, parallel
from distill_jax import teachers as library
from distill_jax.errors import UsageError
from distill_jax.runs import workdir
from distill_jax.tasks.images.data import load_splits

TOLERANCE = 0.05  # points; five of the 10,000 test images may round to another class


@dataclasses.dataclass(frozen=True)
class Published:
    """A teacher that others have published as PyTorch weights.

    Attributes:
      dataset: "cifar100" or "cifar10".
      network: its name here.
      source: the repository.
      accuracy: published, in %.
      fingerprint: of the network as `models.fingerprint` gives it.
      mean: of the pixels, as the network was trained.
      std: likewise.
      options: of the network.
    """

    dataset: str
    network: str
    source: str
    accuracy: float
    fingerprint: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def spec(self) -> models.Spec:
        """What the network is."""
        return models.Spec(
            name=self.network,
            options=models.check_options(self.network, dict(self.options)),
            input_shape=(32, 32, 3),
            num_classes=CLASSES[self.dataset],
            mean=self.mean,
            std=self.std,
        )


CLASSES = {"cifar10": 10, "cifar100": 100}

PUBLISHED = (
    Published(
        dataset="cifar100",
        network="resnet56",
        source="chenyaofo/pytorch-cifar-models",
        accuracy=72.63,
        fingerprint="9fa373e7cb33524200cf08b614b3effcd4b209e0fa5779d1cdee7cee73c08688",
        mean=(0.5070, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2761),
    ),
    Published(
        dataset="cifar10",
        network="resnet56",
        source="akamaster/pytorch_resnet_cifar10",
        accuracy=93.39,
        fingerprint="9cae6848c6bab2d0618ae33f2b4341c73985b49f85012c9e49582a83f5a66c6d",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        options={"shortcut": "pad"},  # He et al. 2016, option A
    ),
)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher that `--teacher` names.

    Attributes:
      given: the path on the command line.
      dataset: "cifar100" or "cifar10".
      saved: the network.
      published: what is known of it; None for a folder of any other model.
    """

    given: str
    dataset: str
    saved: models.Saved
    published: Published | None

    @property
    def network(self) -> str:
        """Its name in a row."""
        return self.saved.spec.name

    @property
    def name(self) -> str:
        """Its name in the workdir, with the beginning of its fingerprint."""
        return f"{self.dataset}-{self.network}-{self.saved.fingerprint[:8]}"

    @property
    def source(self) -> str:
        """Who has trained it."""
        return self.published.source if self.published else "a model folder"


Teachers = Mapping[tuple[str, str], Teacher]


def open_all(paths: Sequence[str]) -> dict[tuple[str, str], Teacher]:
    """The teachers that `--teacher` names, by data set and network; writes nothing.

    Raises:
      UsageError: one cannot be read or is unknown, or two are for the same rows.
    """
    found: dict[tuple[str, str], Teacher] = {}
    for path in paths:
        teacher = _open(path)
        key = (teacher.dataset, teacher.network)
        if key in found:
            raise UsageError(
                f"--teacher={path}: a second {teacher.network} for {teacher.dataset}; expected "
                f"one, and --teacher={found[key].given} is there"
            )
        found[key] = teacher
    return found


def _open(path: str) -> Teacher:
    if pathlib.Path(path).is_file():
        published, saved = _open_file(path)
        return Teacher(path, published.dataset, saved, published)
    saved = models.load(path, key="--teacher")
    named = {count: name for name, count in CLASSES.items()}
    if saved.spec.num_classes not in named or tuple(saved.spec.input_shape) != (32, 32, 3):
        raise UsageError(
            f"--teacher={path}: a model for {saved.spec.input_shape} images of "
            f"{saved.spec.num_classes} classes; expected (32, 32, 3) and 10 or 100"
        )
    known = [one for one in PUBLISHED if one.fingerprint == saved.fingerprint]
    return Teacher(path, named[saved.spec.num_classes], saved, known[0] if known else None)


def _open_file(path: str) -> tuple[Published, models.Saved]:
    """Which of the published teachers a file of weights is."""
    faults = []
    for published in PUBLISHED:
        try:
            saved = models.load(path, spec=published.spec, key="--teacher")
        except UsageError as error:
            faults.append(str(error))
            continue
        if saved.fingerprint == published.fingerprint:
            return published, saved
    if len(faults) == len(PUBLISHED) and len(set(faults)) == 1:
        raise UsageError(faults[0])  # not about the network: the file cannot be read
    known = ", ".join(f"{one.network} on {one.dataset} of {one.source}" for one in PUBLISHED)
    raise UsageError(
        f"--teacher={path}: weights that this study does not know; expected those of {known}, or "
        "a model folder: `distill-jax import` makes one of any weights"
    )


def prepare(teacher: Teacher, config: ConfigDict, root: pathlib.Path) -> float:
    """Writes a teacher's model folder into a workdir and measures it there, once.

    Args:
      teacher: the teacher.
      config: of a run that it teaches, for the test set.
      root: the workdir of the table.

    Returns:
      Its accuracy on the test set, in [0, 1].

    Raises:
      UsageError: a published teacher does not have its published accuracy.
    """
    folder = folder_of(teacher, root)
    measured = folder.with_name(f"{folder.name}.json")
    splits = load_splits(config)
    wanted = data.fingerprint(splits["test"])
    if measured.exists() and folder.exists():
        found = workdir.read_json(measured)
        if found["test_fingerprint"] == wanted:
            return found["accuracy"]
    accuracy = _measure(teacher.saved, splits)
    published = teacher.published
    if published and config.data.name == published.dataset:
        if abs(100 * accuracy - published.accuracy) > TOLERANCE:
            raise UsageError(
                f"--teacher={teacher.given}: {100 * accuracy:.2f} % on the test set of "
                f"data.name={config.data.name!r}; expected the published {published.accuracy} %"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    models.save(folder, teacher.saved.spec, teacher.saved.params, teacher.saved.stats)
    workdir.write_json(measured, {"accuracy": accuracy, "test_fingerprint": wanted})
    return accuracy


def folder_of(teacher: Teacher, root: pathlib.Path) -> pathlib.Path:
    """The model folder of a teacher in a workdir."""
    return root / "teachers" / teacher.name


def _measure(saved: models.Saved, splits: Mapping[str, data.Examples]) -> float:
    test = splits["test"]
    computation = library.AnswerComputation(
        saved=saved,
        train=splits["train"],
        test=test,
        augment=data.Augment(),
        batch_size=500,
        taps=(),
        mesh=parallel.make_mesh(1, 1, 1),
    )
    predicted = computation.unaugmented(test, np.arange(len(test)))["logits"].argmax(-1)
    return float((predicted == test.labels()).mean())
