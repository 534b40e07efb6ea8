"""Checkpoints that are written in the background, verified when read, and never half-written.

Orbax writes and reads the arrays, on any number of hosts (`arrays`). `integrity` adds a manifest of
SHA-256 by file. This module adds the rest: which checkpoints to keep, falling back to the one
before a damaged one, and going on after a full disk.

    checkpoints/
      1200/               a checkpoint; named by an atomic rename when everything is on the disk
        state/            the arrays, by Orbax, each named by its number in checkpoint.json
        checkpoint.json   step, score, `extra`, and the path, dtype and shape of each array
        MANIFEST.sha256   written last; `sha256sum -c` reads it
      1300.unsealed/      being written; the next save deletes what a stopped process has left
      1100.trash/         being deleted; likewise
      1000.damaged-1/     found damaged and set aside, for the user to inspect or delete

In a bucket (gs://), 1200/ is written in place, and its manifest makes it a checkpoint.

Left out on purpose: when to save, and what `extra` means. One run writes to a folder at a time;
reading at the same time is safe, because only `save` deletes anything.
"""

import atexit
import contextlib
import itertools
import json
import math
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from distill_jax import storage
from distill_jax.errors import UsageError
from distill_jax.processes import coordination
from distill_jax.storage.gcs import BucketError
from distill_jax.training.checkpoints import arrays, integrity
from distill_jax.training.checkpoints.arrays import ArrayWriter
from distill_jax.training.checkpoints.integrity import require_free_space

__all__ = ["CheckpointError", "Checkpoints", "Restored", "require_free_space"]

_NONE, _DAMAGED, _FAILED = -1, -2, -3  # what the hosts may agree on instead of a step
_open: "weakref.WeakSet[Checkpoints]" = weakref.WeakSet()
_saves = itertools.count()  # every host saves in the same order, so the numbers agree


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read; one line that names the folder."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True)
class Restored:
    """The content of a checkpoint: the step, the state on its devices, and the caller's `extra`."""

    step: int
    state: Any
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: saved asynchronously, kept best and last n.

    Args:
      directory: the folder of the checkpoints, made at the first save.
      keep_last: how many of the newest to keep, at least 1. With 2 or more there is one to fall
        back to when the newest is damaged.
      keep_best: keep also the one with the highest score, the earliest of equals.
      warn: called with one line for each checkpoint that is damaged, or that a killed process left
        half-written.

    Raises:
      UsageError: `keep_last` is below 1.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: bool = True,
        warn: Callable[[str], None] = print,
    ):
        if keep_last < 1:
            raise UsageError(f"keep_last={keep_last!r}: at least 1 checkpoint must be kept")
        path = storage.resolve_path(directory, "checkpoints")
        self._directory = path if storage.is_remote(path) else path.absolute()
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._warn = warn
        self._writer = ArrayWriter()
        self._sealing: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        _open.add(self)

    def save(
        self, step: int, state: Any, extra: dict[str, Any], *, score: float | None = None
    ) -> None:
        """Start to save a state, and return once its arrays may be changed or donated.

        Waits for the previous save, if it is still running. A step with a sealed checkpoint is not
        saved again: the same step of the same run is the same state. All hosts call it together.

        Args:
          step: training steps done, at least 0.
          state: pytree of `jax.Array`, each of at least one element.
          extra: anything that JSON can hold; `restore` returns it.
          score: the best checkpoint has the highest; None or NaN is never the best.

        Raises:
          CheckpointError: this save could not start, or the previous one failed in the background.
            Every sealed checkpoint is still there.
          TypeError: a leaf is no `jax.Array`, or `extra` is not JSON.
        """
        assert step >= 0, step
        self.wait()
        leaves = arrays.named_leaves(state)
        for path, leaf in leaves.items():
            if not isinstance(leaf, jax.Array):
                raise TypeError(f"state{path} is a {type(leaf).__name__}, not a jax.Array")
        score = None if score is None or math.isnan(score) else float(score)
        described = {path: arrays.describe(leaf) for path, leaf in leaves.items()}
        content = {"step": int(step), "score": score, "extra": extra, "leaves": described}
        about = json.dumps(content, indent=1).encode()
        try:
            if self._agreed(lambda: not integrity.prepare(self._directory, step, self._warn)):
                return
            self._writer.start(integrity.unsealed(self._directory, step) / "state", leaves)
        except Exception as error:
            raise self._failed(step, error) from error
        key = f"sealed/{step}/{next(_saves)}"
        self._sealing = threading.Thread(target=self._finish, args=(step, about, key), name="seal")
        self._sealing.start()

    def wait(self) -> None:
        """Wait until the last save is sealed and the old checkpoints are deleted.

        Raises:
          CheckpointError: that save failed; raised once, after which saving may be tried again.
        """
        self._join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait as `wait` does, then end Orbax's threads; the object must not be used afterwards.

        Call it however a run ends. In a program that ends without it, the last checkpoint is sealed
        on Python 3.11; from 3.12 on, no thread can start any more at that time, and the last
        checkpoint may be lost, though no earlier one.
        """
        try:
            self.wait()
        finally:
            self._writer.close()

    def steps(self) -> tuple[int, ...]:
        """The steps of the sealed checkpoints, ascending; a restore finds out which are intact."""
        return tuple(integrity.sealed_steps(self._directory))

    def best_step(self) -> int | None:
        """The sealed step with the highest score, the earliest of equals; None without scores."""
        return next(iter(integrity.best_first(self._directory)), None)

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """Read the newest intact checkpoint, or exactly that of `step`.

        A damaged one is set aside with one warning, and the one before it is used. All hosts call
        it together.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with the tree, shapes and dtypes that
            were saved. Each array gets the sharding given here, which may be of another mesh than
            the one saved from; without a sharding, it is put on the first device.
          step: the only step that is acceptable; None accepts any.

        Returns:
          The checkpoint; None when there is none at all.

        Raises:
          CheckpointError: all are damaged; `step` is damaged or does not exist; or the checkpoint
            is intact but of another tree, shape or dtype (it is not set aside then).
        """
        self._join()

        def choose() -> int:
            found = integrity.steps(self._directory)
            if step is not None:
                return self._first_intact([step] if step in found else [])
            chosen = self._first_intact(found[::-1])
            # Also if an earlier start set them aside: the run must not silently begin anew.
            aside = chosen == _NONE and integrity.has_set_aside(self._directory)
            return _DAMAGED if aside else chosen

        chosen = self._agreed(choose)
        if chosen < 0 and step is not None:
            others = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is damaged or not there; intact may be: "
                f"{others}"
            )
        return self._load(chosen, abstract_state)

    def restore_best(self, abstract_state: Any) -> Restored | None:
        """Read the intact checkpoint with the highest score; otherwise as `restore`.

        Returns:
          The checkpoint; None when there is none with a score.
        """
        self._join()
        chosen = self._agreed(
            lambda: self._first_intact(integrity.best_first(self._directory, doubtful=True))
        )
        return self._load(chosen, abstract_state, which=" with a score")

    def _finish(self, step: int, about: bytes, key: str) -> None:
        """In the background: wait for Orbax, seal the checkpoint, delete old ones.

        Orbax is done when the parts of all hosts are on the disk. The first host hashes them all,
        so that it has read what every host wrote before the folder becomes a checkpoint.
        """
        failure = None

        def sealed() -> bool:
            nonlocal failure
            try:
                self._writer.wait()
                self._seal(step, about)
            except Exception as error:
                failure = error
            return failure is None

        try:
            if not coordination.is_first():
                self._writer.wait()
            # Through the coordinator, not by a computation on the devices: the step is using them.
            if not coordination.broadcast_from_first(sealed, key):
                raise failure or CheckpointError("the first host could not seal it")
        except Exception as error:
            self._failure = self._failed(step, error)
            self._failure.__cause__ = error

    def _seal(self, step: int, about: bytes) -> None:
        integrity.write_about(self._directory, step, about)
        integrity.seal(self._directory, step)
        integrity.retain(self._directory, step, self._keep_last, self._keep_best, self._warn)

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        """Free the disk space of a save that failed, and describe what happened."""
        with contextlib.suppress(Exception):
            self._writer.close()
        self._writer = ArrayWriter()
        kept = "unknown"
        with contextlib.suppress(BucketError):
            if coordination.is_first():
                integrity.clear(integrity.unsealed(self._directory, step))
            kept = ", ".join(map(str, self.steps())) or "none"
        return CheckpointError(
            f"checkpoint {step} in {self._directory} could not be saved: {integrity.cause(error)}; "
            f"kept: {kept}"
        )

    def _join(self) -> None:
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None

    def _first_intact(self, steps: list[int]) -> int:
        intact = integrity.first_intact(self._directory, steps, self._warn)
        return intact if intact is not None else _DAMAGED if steps else _NONE

    def _agreed(self, decide: Callable[[], int]) -> int:
        """What the first host decides, on every host; an error there is raised on every host."""
        failure = None

        def first() -> int:
            nonlocal failure
            try:
                return int(decide())
            except Exception as error:
                failure = error
                return _FAILED

        decided = coordination.broadcast_from_first(first)
        if failure is not None:
            raise failure
        if decided == _FAILED:
            raise CheckpointError(f"the first host failed in {self._directory}; see its message")
        return decided

    def _load(self, step: int, abstract_state: Any, which: str = "") -> Restored | None:
        if step == _NONE:
            return None
        if step == _DAMAGED:
            raise CheckpointError(
                f"every checkpoint{which} in {self._directory} is damaged and was set aside; to "
                "start anew, delete or move the folder"
            )
        about = json.loads(integrity.read_about(self._directory, step))
        wanted = arrays.named_leaves(abstract_state)
        if differences := arrays.differences(about["leaves"], wanted):
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is not of this state: {differences}"
            )
        try:
            found = arrays.read(self._directory / str(step) / "state", about["leaves"], wanted)
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is intact but could not be loaded: "
                f"{integrity.cause(error)}"
            ) from error
        tree = jax.tree.structure(abstract_state)
        return Restored(step, jax.tree.unflatten(tree, list(found.values())), about["extra"])


def _finish_all() -> None:
    """Lets a program end that an error ends without `close`, and seals its last checkpoint where
    Python can still start threads (up to 3.11)."""
    for checkpoints in list(_open):
        try:
            checkpoints.wait()
        except CheckpointError as error:
            checkpoints._warn(str(error))


# There is no public hook that runs before the interpreter shuts down the executors that Orbax uses;
# after that, its threads fail or, worse, wait for ever, and the process with them.
getattr(threading, "_register_atexit", atexit.register)(_finish_all)
