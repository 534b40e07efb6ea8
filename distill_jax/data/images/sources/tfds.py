"""Image-classification sets prepared by TensorFlow Datasets, read without TensorFlow.

Sets are read by random access from the folder that `download_and_prepare` wrote, so they must be in
the array_record (or parquet) format; nothing is downloaded here. Pillow decodes the images.
"""

import difflib
import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from distill_jax.data.images.crops import Cut
from distill_jax.data.images.sources.base import (
    MODES,
    SMALL,
    Examples,
    Info,
    check_labels,
    decode,
    decode_cut,
)
from distill_jax.data.images.sources.registry import names
from distill_jax.errors import UsageError, unknown


class TfdsExamples(Examples):
    """One split of a prepared set."""

    crops = True

    def __init__(self, info: Info, source: Any, image_size: int):
        """Args: source: a TFDS data source that leaves "image" encoded."""
        self.info = info
        self._source = source
        self._image_size = image_size
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        images, labels = self.batch(np.array([index % len(self)]))
        return images[0], int(labels[0])

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.cropped(ids, [None] * len(ids))

    def cropped(self, ids: np.ndarray, cuts: Sequence[Cut | None]) -> tuple[np.ndarray, np.ndarray]:
        records = self._records(ids)
        images = np.empty((len(ids), *self.info.image_shape), np.uint8)
        height, width, channels = self.info.image_shape
        mode = MODES[channels]
        for row, (record, cut) in enumerate(zip(records, cuts, strict=True)):
            try:
                if cut:
                    images[row] = decode_cut(record["image"], mode, (height, width), cut)
                else:
                    images[row] = decode(record["image"], mode, self._image_size)
            except Exception as error:  # Pillow has no common type for what a damaged file raises
                raise UsageError(
                    f"{self._location}: image {ids[row]} is unreadable: {error}"
                ) from error
        return images, self._checked_labels(records)

    def labels(self) -> np.ndarray:
        if self.nbytes < SMALL:
            return self.arrays()[1]  # a run needs them too, and reads the records once
        if self._labels is None:
            ids = np.arange(len(self))
            chunks = np.array_split(ids, -(-len(ids) // 1024))
            self._labels = np.concatenate(
                [self._checked_labels(self._records(chunk)) for chunk in chunks]
            )
        return self._labels

    @property
    def _location(self) -> str:
        return f"data.name={self.info.name!r}"

    def _records(self, ids: np.ndarray) -> list[dict]:
        try:
            records = self._source.__getitems__([int(index) for index in ids])
            return [_parse(record) for record in records]
        except Exception as error:  # whatever the file format's reader raises on a damaged file
            raise UsageError(
                f"{self._location}: unreadable or truncated records near {ids[0]}: {error}"
            ) from error

    def _checked_labels(self, records: list[dict]) -> np.ndarray:
        labels = np.array([record["label"] for record in records], np.int32)
        check_labels(labels, self.info.num_classes, self._location)
        return labels


def _parse(record: bytes | dict) -> dict:
    """The encoded image and the label of a record; in half the time that TFDS takes."""
    from tensorflow_datasets.proto import tf_example_pb2

    if isinstance(record, dict):
        return record
    features = tf_example_pb2.Example.FromString(record).features.feature
    return {
        "image": features["image"].bytes_list.value[0],
        "label": features["label"].int64_list.value[0],
    }


def load(name: str, split: str, tfds_dir: str = "", image_size: int = 0) -> TfdsExamples:
    """The split of the prepared set `name`; "test" means "validation" where a set has no test.

    Args:
      name: a TFDS name, such as "cifar100" or "imagenet2012/...:5.1.0".
      split: "train" or "test".
      tfds_dir: the `data_dir` with which the set was prepared; "" is TFDS's own default.
      image_size: every image is scaled and cropped to this height and width; 0 requires equal
        shapes.

    Raises:
      UsageError: an unknown name, a set that is not prepared, not for image classification, of
        unequal shapes without `image_size`, or with unreadable files.
    """
    import tensorflow_datasets as tfds  # slow to import; used by these sets alone

    builder = _builder(tfds, name, tfds_dir)
    image, label = _features(tfds, name, builder)
    height, width, channels = image.shape
    if image_size:
        height = width = image_size
    elif not height or not width:
        raise UsageError(
            f"data.image_size=0: images of {name!r} differ in shape; set data.image_size"
        )
    source = _source(tfds, name, builder, split, tfds_dir)
    info = Info(name, label.num_classes, (height, width, channels), tuple(label.names))
    return TfdsExamples(info, source, image_size)


def _features(tfds: ModuleType, name: str, builder: Any) -> tuple[Any, Any]:
    """The image and label features of a set; UsageError if it is not for image classification."""
    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise UsageError(
            f"data.name={name!r}: not an image-classification set; expected features 'image' and"
            f" 'label', got: {', '.join(features) or 'none'}"
        )
    channels = image.shape[-1]
    if image.np_dtype != np.uint8 or channels not in MODES:
        raise UsageError(
            f"data.name={name!r}: expected uint8 images of 1, 3 or 4 channels, got"
            f" {np.dtype(image.np_dtype)} of {channels}"
        )
    return image, label


def _source(tfds: ModuleType, name: str, builder: Any, split: str, tfds_dir: str) -> Any:
    """The TFDS data source of a split, which leaves images encoded."""
    location = f"data.name={name!r}"
    available = list(builder.info.splits)
    chosen = "validation" if split == "test" and "test" not in available else split
    if chosen not in available:
        raise UsageError(f"{location}: no {chosen!r} split; it has: {', '.join(available)}")

    # No image is decoded by TFDS: `labels` needs none, and Pillow decodes "image".
    features = builder.info.features.items()
    pictures = [key for key, item in features if isinstance(item, tfds.features.Image)]
    reading: dict[str, Any] = {
        "decoders": {key: tfds.decode.SkipDecoding() for key in pictures},
    }
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        reading = {"deserialize_method": tfds.decode.DeserializeMethod.RAW_BYTES}
    try:
        source = builder.as_data_source(split=chosen, **reading)
        count = len(source)
    except NotImplementedError as error:
        raise UsageError(
            f"{location}: prepared without random access in {str(builder.data_path)!r};"
            f" {_how_to_prepare(name, tfds_dir)} in an empty folder"
        ) from error
    except Exception as error:  # whatever the file format's reader raises on a damaged file
        raise UsageError(f"{location}: unreadable files, {chosen} split: {error}") from error
    promised = builder.info.splits[chosen].num_examples
    if count != promised or not count:
        raise UsageError(
            f"{location}: the files hold {count} {chosen} examples, the set {promised};"
            " prepare again"
        )
    return source


def _builder(tfds: ModuleType, name: str, tfds_dir: str) -> Any:
    """The builder of a prepared set; UsageError if the name is unknown or not prepared."""
    try:
        builder = tfds.builder(name, data_dir=tfds_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        # Not the community sets, whose list would be fetched from the network.
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=3)
        prepared = _prepared(tfds_dir)
        raise unknown("data.name", name, {*names(), *near, *prepared}, "data set") from error
    except Exception as error:  # a name that does not parse, or a set that needs more packages
        raise UsageError(
            f"data.name={name!r}: not readable by TensorFlow Datasets: {error}"
        ) from error
    if not builder.info.splits:
        raise UsageError(
            f"data.name={name!r}: not prepared in {str(builder.data_path)!r};"
            f" {_how_to_prepare(name, tfds_dir)}"
        )
    return builder


def _prepared(tfds_dir: str) -> list[str]:
    """The names of the prepared sets in a TFDS folder."""
    folder = pathlib.Path(tfds_dir).expanduser()
    if not tfds_dir or not folder.is_dir():
        return []
    return [item.name for item in folder.iterdir() if list(item.glob("**/dataset_info.json"))]


def _how_to_prepare(name: str, tfds_dir: str) -> str:
    arguments = [repr(name), "file_format='array_record'"]
    if tfds_dir:
        arguments.insert(1, f"data_dir={tfds_dir!r}")
    return (
        'prepare it once: python -c "import tensorflow_datasets as tfds;'
        f' tfds.builder({", ".join(arguments)}).download_and_prepare()"'
    )
