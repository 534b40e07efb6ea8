"""Checkpoints that are written in the background, verified when read, and never lost half-way.

Orbax writes and reads the arrays, on any number of hosts; it is behind this module alone. On top of
it stands what it does not do: a manifest of SHA-256 by file (`integrity`),
falling back to the checkpoint before a damaged one, and going on after a full disk.

    checkpoints/
      1200/               a checkpoint; the name appears by one atomic rename, all being on the disk
        state/            the arrays, by orbax, each named by its number in checkpoint.json
        checkpoint.json   step, score, `extra`, and the path, dtype and shape of each array
        MANIFEST.sha256   written last; `sha256sum -c` reads it
      1300.unsealed/      being written; what a stopped process left, the next save deletes
      1100.trash/         being deleted; likewise
      1000.damaged-1/     found damaged and set aside, for the user to look at or delete

In a bucket (gs://) 1200/ is written in place, and its manifest makes it a checkpoint.

Left out on purpose: when to save, and what `extra` means. One run writes to a folder at a time;
reading beside it is safe, because only `save` deletes anything.
"""

import atexit
import contextlib
import itertools
import json
import logging
import math
import os
import pathlib
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp

from distill_jax import storage
from distill_jax.errors import UsageError
from distill_jax.processes import coordination
from distill_jax.storage.gcs import BucketError
from distill_jax.training.checkpoints import integrity
from distill_jax.training.checkpoints.integrity import free_space

__all__ = ["CheckpointError", "Checkpoints", "Restored", "free_space"]

_NONE, _DAMAGED, _FAILED = -1, -2, -3  # in place of a step, where all hosts agree on one
_TIMEOUT_SECONDS = 1200
_READ_AT_ONCE = (
    2 * 10**9
)  # bytes that a process restores at a time: what it holds beside its arrays
# Orbax prints some 200 lines of tracebacks when a disk is full, and then raises the same errors; of
# its tasks that failed beside the first one, asyncio says so when they are collected.
logging.getLogger("absl").addFilter(
    lambda record: not (record.exc_info and "orbax" in record.pathname)
)
logging.getLogger("asyncio").addFilter(
    lambda record: not (record.exc_info and "orbax" in record.getMessage())
)
_open: "weakref.WeakSet[Checkpoints]" = weakref.WeakSet()
_saves = itertools.count()  # every host saves in the same order, so the numbers agree


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read; one line that names the folder."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True)
class Restored:
    """What a checkpoint held: the step, the state on its devices, and the caller's `extra`."""

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
      warn: called with one line for each thing found damaged or left by a killed process.

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
        place = storage.resolve_path(directory, "checkpoints")
        self._directory = place if storage.is_remote(place) else place.absolute()
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._warn = warn
        self._checkpointer = ocp.AsyncCheckpointer(_handler(), timeout_secs=_TIMEOUT_SECONDS)
        self._sealing: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        _open.add(self)

    def save(
        self, step: int, state: Any, extra: dict[str, Any], *, score: float | None = None
    ) -> None:
        """Start to save a state, and return once its arrays may be changed or donated.

        Waits for the save before, if that still runs. A step that has a sealed checkpoint is left
        as it is: the same step of the same run is the same state. All hosts call it together.

        Args:
          step: training steps done, at least 0.
          state: pytree of `jax.Array`, each of at least one element.
          extra: anything that JSON can hold; comes back from `restore`.
          score: what the best is chosen by, higher is better. None or NaN: never the best.

        Raises:
          CheckpointError: this save could not start, or the one before failed in the background.
            Every checkpoint that was sealed is still there.
          TypeError: a leaf is no `jax.Array`, or `extra` is not JSON.
        """
        assert step >= 0, step
        self.wait()
        leaves = _named_leaves(state)
        for path, leaf in leaves.items():
            if not isinstance(leaf, jax.Array):
                raise TypeError(f"state{path} is a {type(leaf).__name__}, not a jax.Array")
        score = None if score is None or math.isnan(score) else float(score)
        described = {path: _described(leaf) for path, leaf in leaves.items()}
        about = {"step": int(step), "score": score, "extra": extra, "leaves": described}
        about = json.dumps(about, indent=1).encode()
        try:
            if self._agreed(lambda: not integrity.prepare(self._directory, step, self._warn)):
                return
            arrays = {str(i): _private(leaf) for i, leaf in enumerate(leaves.values())}
            self._checkpointer.save(
                integrity.unsealed(self._directory, step) / "state",
                args=ocp.args.PyTreeSave(arrays),
            )
        except Exception as error:
            raise self._failed(step, error) from error
        key = f"sealed/{step}/{next(_saves)}"
        self._sealing = threading.Thread(target=self._finish, args=(step, about, key), name="seal")
        self._sealing.start()

    def wait(self) -> None:
        """Wait until the last save is sealed and the old checkpoints are deleted.

        Raises:
          CheckpointError: that save failed; said once, after which saving may be tried again.
        """
        self._join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait as `wait` does, then end orbax's threads; the object must not be used afterwards.

        Call it however a run ends. A program that ends without it has its last checkpoint sealed
        on Python 3.11; from 3.12 on, no thread starts any more by then and that one may be lost,
        though nothing before it.
        """
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def steps(self) -> tuple[int, ...]:
        """The steps of the sealed checkpoints, ascending; a restore tells which are intact."""
        return tuple(integrity.sealed_steps(self._directory))

    def best_step(self) -> int | None:
        """The sealed step with the highest score, the earliest of equals; None without scores."""
        return next(iter(integrity.best_first(self._directory)), None)

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """Read the newest intact checkpoint, or exactly that of `step`.

        A damaged one is renamed aside with one warning, and the one before is used. All hosts call
        it together.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with the tree, shapes and dtypes that
            were saved. Each array is placed by the sharding given here, which may be of another
            mesh than the one saved from; without a sharding, on the first device.
          step: the only step that will do.

        Returns:
          The checkpoint; None when there is none at all.

        Raises:
          CheckpointError: all are damaged; or `step` is damaged or not there; or it is intact but
            of another tree, shape or dtype (and is left alone then).
        """
        self._join()

        def choose() -> int:
            found = integrity.steps(self._directory)
            if step is not None:
                return self._first_intact([step] if step in found else [])
            chosen = self._first_intact(found[::-1])
            # Also what an earlier start has set aside: the run must not begin anew, unasked.
            aside = chosen == _NONE and integrity.any_aside(self._directory)
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

    def _path(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    def _finish(self, step: int, about: bytes, key: str) -> None:
        """In the background: wait for orbax, seal, delete the old ones.

        Orbax is done when the parts of all hosts are on the disk. The first host hashes them all:
        so it has read what the others wrote before anything is called a checkpoint.
        """
        failure = None

        def sealed() -> bool:
            nonlocal failure
            try:
                self._checkpointer.wait_until_finished()
                self._seal(step, about)
            except Exception as error:
                failure = error
            return failure is None

        try:
            if not coordination.is_first():
                self._checkpointer.wait_until_finished()
            # Not by a computation on the devices, which the training step is using.
            if not coordination.broadcast_from_first(sealed, key):
                raise failure or CheckpointError("the first host could not seal it")
        except Exception as error:
            self._failure = self._failed(step, error)
            self._failure.__cause__ = error

    def _seal(self, step: int, about: bytes) -> None:
        integrity.describe(self._directory, step, about)
        integrity.seal(self._directory, step)
        integrity.retain(self._directory, step, self._keep_last, self._keep_best, self._warn)

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        """Give back the room of a save that failed, and say what happened."""
        with contextlib.suppress(Exception):
            self._checkpointer.close()
        self._checkpointer = ocp.AsyncCheckpointer(_handler(), timeout_secs=_TIMEOUT_SECONDS)
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
        about = json.loads(integrity.about(self._directory, step))
        wanted = _named_leaves(abstract_state)
        if differences := _differences(about["leaves"], wanted):
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is not of this state: {differences}"
            )
        names = {path: str(number) for number, path in enumerate(about["leaves"])}
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            names[path]: leaf if leaf.sharding else leaf.update(sharding=first)
            for path, leaf in wanted.items()
        }
        try:
            with ocp.Checkpointer(_handler(max(map(_shard_bytes, target.values())))) as reader:
                arrays = reader.restore(
                    self._path(step) / "state",
                    args=ocp.args.PyTreeRestore(
                        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
                    ),
                )
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is intact but could not be loaded: "
                f"{integrity.cause(error)}"
            ) from error
        tree = jax.tree.structure(abstract_state)
        state = jax.tree.unflatten(tree, [arrays[names[path]] for path in wanted])
        return Restored(step, state, about["extra"])


def _finish_all() -> None:
    """A program that ends by an error, without `close`, ends, and gets its last checkpoint sealed
    where Python still lets threads start (up to 3.11)."""
    for checkpoints in list(_open):
        try:
            checkpoints.wait()
        except CheckpointError as error:
            checkpoints._warn(str(error))


# There is no public way to be called before the interpreter ends the executors that orbax works
# with, upon which its threads fail or, worse, wait for ever, and the process with them.
getattr(threading, "_register_atexit", atexit.register)(_finish_all)


def _handler(largest: int = 0) -> ocp.PyTreeCheckpointHandler:
    """What writes and reads arrays, of shards of at most `largest` bytes where it reads."""
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        # Trained weights hardly compress (8 %), and compression takes three times as long.
        use_compression=False,
        # Orbax would read 96 GB at a time, and refuses shards that are near its limit.
        restore_concurrent_gb=max(_READ_AT_ONCE, 4 * largest) / 1e9,
    )


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by their path in the tree, such as "['params']['blocks/0/kernel']"."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _differences(saved: dict[str, str], wanted: dict[str, Any]) -> str:
    """What is wrong with the leaves that were saved, in a few words; empty when they fit."""
    described = {path: _described(leaf) for path, leaf in wanted.items()}
    wrong = [
        f"{path} is {saved.get(path, 'missing')}, wanted: {described.get(path, 'nothing')}"
        for path in sorted(saved.keys() | described.keys())
        if saved.get(path) != described.get(path)
    ]
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def _private(leaf: jax.Array) -> jax.Array:
    """An array that the caller cannot donate away while it is written.

    Orbax copies from an accelerator to the host before its `save` returns. On a CPU it takes a view
    of the very buffer instead: then JAX refuses to donate it, and would have to copy in the step.
    """
    if next(iter(leaf.sharding.device_set)).platform != "cpu":
        return leaf
    return jax.device_put(leaf, leaf.sharding, may_alias=False)
