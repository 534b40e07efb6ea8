"""The images of a run: its splits, which of them train, and the statistics that normalise them."""

import dataclasses
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from distill_jax import data
from distill_jax.errors import UsageError

RESIDENT_LIMIT = 4 * 2**30  # bytes of images that data.resident="auto" puts on the device


class Pixels(NamedTuple):
    """Mean and standard deviation of the pixels by channel, in [0, 1] units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ImageData:
    """The images of a run.

    Attributes:
      train: the training split, validation examples included.
      test: the test split.
      train_ids: positions in `train` that are trained on, int32.
      validation_ids: positions in `train` that are held out, int32; empty for none.
    """

    train: data.Examples
    test: data.Examples
    train_ids: np.ndarray
    validation_ids: np.ndarray


def load_splits(config: ConfigDict) -> dict[str, data.Examples]:
    """The splits "train" and "test" that a resolved config names.

    Where one of them is stored grey and the other in colour, grey is read as RGB.

    Raises:
      UsageError: they are missing, or cannot be cropped as the config asks.
    """
    splits = {
        split: data.load(
            config.data.name,
            split,
            tfds_dir=config.data.tfds_dir,
            path=config.data.path,
            image_size=config.data.image_size,
        )
        for split in ("train", "test")
    }
    channels = {split: found.info.image_shape[-1] for split, found in splits.items()}
    if set(channels.values()) == {1, 3}:
        grey = min(channels, key=lambda split: channels[split])
        splits[grey] = data.InColour(splits[grey])
    least = config.data.augment.resized_crop
    if least and not splits["train"].crops:
        raise UsageError(
            f"data.augment.resized_crop={least}: data.name={config.data.name!r} does not decode "
            "images when they are read; expected 0, or a set that does: 'folder', or one of TFDS"
        )
    return splits


def open_data(config: ConfigDict) -> ImageData:
    """Opens the splits of a run and chooses the examples that are trained on.

    Raises:
      UsageError: the splits are missing, do not fit each other, or have none of the named classes.
    """
    splits = load_splits(config)
    train, test = splits["train"], splits["test"]
    if test.info.image_shape != train.info.image_shape:
        raise UsageError(
            f"data.name={config.data.name!r}: the training images are {train.info.image_shape}, "
            f"the test images {test.info.image_shape}; expected one shape"
        )
    _check_classes(config, train.info)
    return ImageData(train, test, *train_ids_of(config, train))


def notes_on(config: ConfigDict, opened: ImageData) -> tuple[str, ...]:
    """Lines about the files, and about classes without examples."""
    info = opened.train.info
    wanted = set(config.data.only_classes or range(info.num_classes))
    wanted -= set(config.data.exclude_classes)
    lines = list(dict.fromkeys([*opened.train.notes, *opened.test.notes]))
    used = {
        "training": opened.train.labels()[opened.train_ids],
        "test": opened.test.labels() if len(opened.test) else None,
    }
    for split, labels in used.items():
        if labels is None:
            continue
        empty = sorted(wanted - set(np.unique(labels).tolist()))
        if not empty:
            continue
        shown = ", ".join(
            f"{k} ({info.class_names[k]!r})" if info.known_names else str(k) for k in empty[:10]
        )
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        hint = "; do the labels count from 1?" if empty == [0] and split == "training" else ""
        lines.append(
            f"data.name={config.data.name!r}: {len(empty)} of {info.num_classes} classes have no "
            f"{split} example: {shown}{more}{hint}"
        )
    return tuple(lines)


def train_ids_of(config: ConfigDict, train: data.Examples) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the training split that are trained on, and those that are held out."""
    return data.splits(
        train,
        validation=config.data.validation,
        split_seed=config.data.split_seed,
        fraction=config.data.fraction,
        only_classes=config.data.only_classes,
        exclude_classes=config.data.exclude_classes,
    )


def _check_classes(config: ConfigDict, info: data.Info) -> None:
    for key in ("only_classes", "exclude_classes"):
        for index in config.data[key]:
            if index >= info.num_classes:
                raise UsageError(
                    f"data.{key}={config.data[key]}: {info.name} has no class {index}; "
                    f"expected indices below {info.num_classes}"
                )


def pixels_of(config: ConfigDict, opened: ImageData) -> Pixels:
    """The config's mean and standard deviation; where it leaves one empty, that of the images."""
    given = {"mean": config.data.mean, "std": config.data.std}
    channels = opened.train.info.image_shape[-1]
    for key, values in given.items():
        if values and len(values) != channels:
            raise UsageError(f"data.{key}={values}: expected {channels} numbers, one a channel")
    if given["mean"] and given["std"]:
        return Pixels(given["mean"], given["std"])
    mean, std = data.statistics(opened.train, opened.train_ids)
    return Pixels(given["mean"] or mean, given["std"] or std)


def is_resident(config: ConfigDict, nbytes: int) -> bool:
    """Whether a split of so many bytes is kept on the devices."""
    if config.data.resident == "auto":
        return nbytes <= RESIDENT_LIMIT and not config.data.augment.resized_crop
    return config.data.resident == "yes"
