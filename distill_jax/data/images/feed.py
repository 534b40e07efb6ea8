"""From examples to batches: resident (ids alone, pixels are on the device) or streamed by grain.

Both kinds give the same examples in the same order, from any position. When several processes feed
one run, each is given the same arguments and its own number and reads its rows of every batch, so
that position p means the same in all of them. Left out on purpose: transfer to devices, sharding,
and any change of the pixels except the resized crop of crops.py.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import json
import sys
import threading
import weakref
from collections.abc import Generator

import grain
import numpy as np
from absl import flags

from distill_jax.data.images.crops import Crops
from distill_jax.data.images.sources.base import SMALL, Examples
from distill_jax.data.order import Order, process_rows

# Statistics and fingerprints of larger sets than `SMALL` are those of so many examples.
STATISTICS_SAMPLE = 2048
FINGERPRINT_SAMPLE = 1024

# Batches read at a time in one process, and finished batches that are kept ready: enough to hide a
# slow disk, few enough that large images do not fill the memory.
READ_THREADS = 4
READY_BATCHES = 4

# Workers send batches through pipes. Shared memory is no faster for images of 224 x 224, kills a
# worker when /dev/shm is small (64 MiB in a container), and stays allocated when a run is killed.
_PIPES = grain.experimental.DatasetOptions(min_shm_size=2**60)

# grain needs a length; no run reaches this many batches.
_ENDLESS = 2**40

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Batches:
    """The batches from position `start` on, as grain's random-access protocol; sent to workers."""

    examples: Examples
    order: Order
    batch_size: int
    part: slice
    crops: Crops | None
    start: int

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Batch:
        position = self.start + index * self.batch_size
        ids = self.order.ids(position, self.batch_size)
        return load_rows(self.examples, ids, self.part, self.crops, position)


@dataclasses.dataclass(frozen=True)
class TrainingFeed:
    """An endless feed of training batches that can start at any position; see `training_feed`."""

    examples: Examples
    order: Order
    batch_size: int
    part: slice
    resident: bool
    workers: int
    crops: Crops | None

    def at(self, position: int) -> Generator[Batch, None, None]:
        """Batches from the example at `position` of the order on; `.close()` ends the workers.

        Args:
          position: how many examples all processes together have used before, at least 0.

        Returns:
          An endless iterator of {"id": int32 [B]}, and when streamed also "image": uint8
          [B, H, W, C] and "label": int32 [B]; of B / processes rows each.
        """
        if self.resident:
            return self._ids(position)
        stream = self._stream(position)
        _open_streams.add(stream)
        return stream

    def _ids(self, position: int) -> Generator[Batch, None, None]:
        while True:
            yield {"id": self.order.ids(position, self.batch_size)[self.part]}
            position += self.batch_size

    def _stream(self, position: int) -> Generator[Batch, None, None]:
        # grain distributes whole batches over the workers: distributing single examples would make
        # the order depend on the number of workers.
        source = _Batches(
            self.examples, self.order, self.batch_size, self.part, self.crops, position
        )
        reader = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(READ_THREADS, READY_BATCHES)
        )
        dataset = grain.experimental.WithOptionsIterDataset(reader, _PIPES).mp_prefetch(
            grain.MultiprocessingOptions(self.workers, READY_BATCHES)
        )
        # grain reads one of its flags to start workers; absl refuses that before flags are parsed.
        if self.workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        batches = iter(dataset)
        try:
            # A worker has started when its first batch arrives, so this waits until all have.
            with _main_hidden():
                first = [next(batches) for _ in range(self.workers)]
            yield from first
            yield from batches
        finally:
            batches.close()


def training_feed(
    examples: Examples,
    order: Order,
    batch_size: int,
    *,
    resident: bool,
    workers: int,
    process: int = 0,
    processes: int = 1,
    crops: Crops | None = None,
) -> TrainingFeed:
    """The feed of a training run.

    Args:
      examples: the full train split.
      order: the order over the ids that are trained on.
      batch_size: B, over all processes.
      resident: True when the pixels are on the device already (see `resident_arrays`), so that a
        batch holds ids alone.
      workers: processes that read and decode streamed batches; 0 reads in threads of this process.
      process, processes: the number of this process, from 0, and how many feed the run.
      crops: the part of each streamed image that is shown; None for the image as in evaluation.

    Returns:
      The feed; start it with `.at(position)`.

    Raises:
      UsageError: B is not a multiple of `processes`.
    """
    part = process_rows(batch_size, process, processes)
    return TrainingFeed(examples, order, batch_size, part, resident, workers, crops)


@dataclasses.dataclass(frozen=True)
class EvaluationFeed:
    """Every example of a list exactly once, in order; can be iterated over any number of times."""

    examples: Examples
    ids: np.ndarray
    batch_size: int
    part: slice
    resident: bool

    def __len__(self) -> int:
        """The number of batches, the same in every process."""
        return -(-len(self.ids) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        ids = self.ids[index * self.batch_size : (index + 1) * self.batch_size]
        mask = np.arange(self.batch_size) < len(ids)
        # The last id pads the batch: a real image, masked out.
        ids = np.pad(ids, (0, self.batch_size - len(ids)), mode="edge")
        if self.resident:
            batch = {"id": ids[self.part]}
        else:
            batch = load_rows(self.examples, ids, self.part)
        return {**batch, "mask": mask[self.part]}

    def __iter__(self) -> Generator[Batch, None, None]:
        if self.resident:
            yield from (self[index] for index in range(len(self)))
            return
        options = grain.ReadOptions(READ_THREADS, READY_BATCHES)
        batches = iter(grain.MapDataset.source(self).to_iter_dataset(options))
        try:
            yield from batches
        finally:
            batches.close()


def evaluation_feed(
    examples: Examples,
    ids: np.ndarray,
    batch_size: int,
    *,
    resident: bool,
    process: int = 0,
    processes: int = 1,
) -> EvaluationFeed:
    """The feed of an evaluation.

    Args:
      examples: the split.
      ids: int [n], the examples in the order in which they are read.
      batch_size: B, over all processes.
      resident: as in `training_feed`.
      process, processes: the number of this process, from 0, and how many feed the run.

    Returns:
      A sequence of batches as in `TrainingFeed.at`, each with "mask", bool [B]: False where the
      last batch is padded by repeating its last example.

    Raises:
      UsageError: B is not a multiple of `processes`.
    """
    part = process_rows(batch_size, process, processes)
    return EvaluationFeed(examples, np.asarray(ids, np.int32), batch_size, part, resident)


def resident_arrays(examples: Examples) -> Batch:
    """The whole split, to be kept on the device: "image" uint8 [N, H, W, C], "label" int32 [N]."""
    images, labels = examples.arrays()
    return {"image": images, "label": labels}


def statistics(examples: Examples, ids: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for a model's normalisation.

    Args:
      examples: the split.
      ids: int [n], the examples to count; in sets of a GiB or more, 2,048 evenly spaced ones.

    Returns:
      (mean, std) in [0, 1] units, rounded to 4 decimals; the std of a constant channel is 1.0.
    """
    sampled = examples.nbytes >= SMALL
    ids = _spaced(np.asarray(ids), STATISTICS_SAMPLE) if sampled else np.asarray(ids)
    images = None if sampled else examples.arrays()[0]
    channels = examples.info.image_shape[-1]
    # Counts of the 256 levels are exact, whatever the order and the number of pixels.
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(ids), 1024):
        chunk = ids[start : start + 1024]
        pixels = examples.batch(chunk)[0] if images is None else images[chunk]
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[..., channel].reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ levels
    std = np.sqrt(np.sum(weights * (levels - mean[:, None]) ** 2, axis=1))
    rounded = [round(float(value), 4) for value in std]
    return tuple(round(float(value), 4) for value in mean), tuple(value or 1.0 for value in rounded)


def fingerprint(examples: Examples) -> str:
    """A SHA-256, in hex, of a split's content, which ties an answer store to the split.

    It covers the info as far as it describes the content, the number of examples, and the bytes of
    all images and labels; in sets of a GiB or more, those of 1,024 evenly spaced examples.
    """
    description = {**dataclasses.asdict(examples.info), "examples": len(examples)}
    del description["named"]  # what the class names are worth is no content
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    if examples.nbytes < SMALL:
        images, labels = examples.arrays()
    else:
        images, labels = examples.batch(_spaced(np.arange(len(examples)), FINGERPRINT_SAMPLE))
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i4").data)
    return digest.hexdigest()


def load_rows(
    examples: Examples,
    ids: np.ndarray,
    part: slice,
    crops: Crops | None = None,
    position: int = 0,
) -> Batch:
    """Reads some rows of one batch.

    Args:
      examples: the split.
      ids: int32 [B], of the whole batch.
      part: the rows to read, R of them.
      crops: as in `training_feed`.
      position: of the batch in the training order, on which crops depend.

    Returns:
      {"id": int32 [R], "image": uint8 [R, H, W, C], "label": int32 [R]}.
    """
    own = ids[part]
    if crops:
        positions = np.arange(position, position + len(ids))[part]
        images, labels = examples.cropped(own, crops.at(positions))
    else:
        images, labels = examples.batch(own)
    return {"id": own, "image": images, "label": labels}


def _spaced(ids: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the ids, evenly spaced."""
    if len(ids) <= count:
        return ids
    return ids[np.arange(count) * len(ids) // count]


# At exit, workers and their threads must end before Python unloads the modules that they use.
_open_streams: weakref.WeakSet[Generator] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    for stream in list(_open_streams):
        with contextlib.suppress(ValueError):  # a thread is executing it
            stream.close()


_starting = threading.Lock()


@contextlib.contextmanager
def _main_hidden() -> Generator[None, None, None]:
    """Keeps worker processes that start inside from importing the main script of this process.

    A spawned process imports the parent's main script again. Without a main guard that would run
    the script a second time, and it would take the accelerator. Workers do not need it: grain sends
    them the source with cloudpickle, which sends what the script defines by value.
    """
    main = vars(sys.modules["__main__"])
    with _starting:
        hidden = {name: main[name] for name in ("__spec__", "__file__") if name in main}
        for name in hidden:
            main[name] = None
        try:
            yield
        finally:
            main.update(**hidden)
