"""What makes a folder a checkpoint: a manifest with the SHA-256 of every file, written last.

The manifest has the format of `sha256sum`, which can check a checkpoint without this program:

    cd checkpoints/1200 && sha256sum -c MANIFEST.sha256

Its text follows from the step and the files alone, so that every changed byte, in a file or in the
manifest itself, and every missing, added, renamed or exchanged file is noticed. It guards against
damage, not against an attacker: who can write the files can write the manifest.

On a disk, an atomic rename commits a checkpoint (`on_disk`); in a bucket, its manifest does
(`in_bucket`). Left out on purpose: what the files hold, except for the score. This module knows no
array, no orbax.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable

from distill_jax.errors import UsageError
from distill_jax.storage import free_bytes, is_remote
from distill_jax.storage.gcs import BucketError
from distill_jax.training.checkpoints import in_bucket, on_disk
from distill_jax.training.checkpoints.layout import MANIFEST, Damaged, Layout

ABOUT = "checkpoint.json"  # an object with "score": a number, or null

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def _layout(path: pathlib.Path) -> Layout:
    """The file operations of the storage that has this path."""
    return in_bucket if is_remote(path) else on_disk


def require_free_space(
    directory: str | os.PathLike[str], bytes_needed: int, key: str = "--workdir"
) -> None:
    """Refuse, before anything is written, a folder whose disk has too little free space.

    Args:
      directory: the folder that will be written to; it need not exist yet.
      bytes_needed: what will be written, in bytes.
      key: the config key that names the folder, for the message.

    Raises:
      UsageError: when the disk has fewer than `bytes_needed` bytes free.
    """
    if is_remote(directory):  # a bucket does not fill up
        return
    free = free_bytes(directory)
    if free < bytes_needed:
        raise UsageError(
            f"{key}={str(directory)!r}: its disk has {_size(free)} free, but {_size(bytes_needed)} "
            "are needed; free some space or choose a folder on another disk"
        )


def cause(error: Exception) -> str:
    """The cause of an error in a few words: the operating system's message, if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # TensorStore's message is two thousand characters of file names, and ends with the error code.
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {error}"[:300]


def seal(directory: pathlib.Path, step: int) -> None:
    """Make a folder of finished files a checkpoint: flush, hash, write the manifest, commit.

    On a disk, everything is flushed before the commit, which is an atomic rename: a folder that is
    named by its step alone is whole, also after a power cut.

    Args:
      directory: the folder of all checkpoints. The files of this one, without the manifest, are in
        `unsealed(directory, step)`, and afterwards in directory/<step>.
      step: the training step, which becomes part of the manifest.

    Raises:
      OSError: the disk fails or is full. The checkpoint is not sealed then.
      Damaged: the folder has anything but files and folders.
    """
    written, layout = unsealed(directory, step), _layout(directory)
    layout.flush_files(written)
    manifest = _text(step, {name: layout.sha256(path) for name, path in layout.list_files(written)})
    layout.commit(written, manifest, directory / str(step))


def check(sealed: pathlib.Path, step: int) -> None:
    """Compare every file of a checkpoint with its manifest.

    Args:
      sealed: the folder of the checkpoint.
      step: the training step that the folder's name states.

    Raises:
      Damaged: anything differs from what was sealed.
      BucketError: the bucket does not respond; the checkpoint may be intact.
    """
    try:
        expected = _manifest(sealed, step)
        layout = _layout(sealed)
        files = dict(layout.list_files(sealed))
        if missing := sorted(expected.keys() - files.keys()):
            raise Damaged(f"{missing[0]} is missing")
        if added := sorted(files.keys() - expected.keys() - {MANIFEST}):
            raise Damaged(f"{added[0]!r} is not in its manifest")
        for name, digest in expected.items():
            if layout.sha256(files[name]) != digest:
                raise Damaged(f"{name} is not what was saved (SHA-256 differs)")
    except OSError as error:
        raise Damaged(f"it cannot be read ({cause(error)})") from error


def steps(directory: pathlib.Path) -> list[int]:
    """Every step that has something under a checkpoint's name, ascending; [] without the folder."""
    return sorted(_layout(directory).steps(directory))


def sealed_steps(directory: pathlib.Path) -> list[int]:
    """Every step whose checkpoint has a manifest, ascending."""
    return sorted(_layout(directory).sealed_steps(directory))


def unsealed(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Where the checkpoint of a step is written before it is sealed."""
    return _layout(directory).unsealed(directory, step)


def prepare(directory: pathlib.Path, step: int, warn: Callable[[str], None]) -> bool:
    """Make the folder for an unsealed checkpoint, and delete the garbage of stopped processes.

    Args:
      directory: the folder of all checkpoints; made when absent.
      step: the step to be saved.
      warn: called with one line for each half-written or damaged checkpoint.

    Returns:
      Whether the checkpoint is to be written: False when the step has a sealed one.
    """
    for leftover in _layout(directory).leftovers(directory):
        if leftover.half_written:
            warn(
                f"checkpoint {leftover.step} in {directory} was left half-written by a process "
                "that was stopped; deleted"
            )
        remove(leftover.path)
    if step in sealed_steps(directory):
        return False
    if step in steps(directory):
        _set_aside(directory / str(step), "it has no manifest", "saving it again", warn)
    _layout(directory).make_unsealed(directory, step)
    return True


def write_about(directory: pathlib.Path, step: int, about: bytes) -> None:
    """Writes ABOUT into an unsealed checkpoint."""
    _layout(directory).write(unsealed(directory, step) / ABOUT, about)


def read_about(directory: pathlib.Path, step: int) -> bytes:
    """Reads the ABOUT of a sealed checkpoint."""
    return _layout(directory).read(directory / str(step) / ABOUT)


def has_set_aside(directory: pathlib.Path) -> bool:
    """Whether a damaged checkpoint was set aside, now or by an earlier start."""
    return any(re.search(r"\.damaged-", name) for name in _layout(directory).list_names(directory))


def first_intact(
    directory: pathlib.Path, candidates: Iterable[int], warn: Callable[[str], None]
) -> int | None:
    """Find the first intact checkpoint; damaged ones on the way are renamed, with one warning each.

    Args:
      directory: the folder of all checkpoints.
      candidates: the steps to try, in this order.
      warn: called with one line for each damaged checkpoint.

    Returns:
      The step, or None when no candidate is intact.
    """
    candidates = list(candidates)
    for number, step in enumerate(candidates):
        path = directory / str(step)
        try:
            check(path, step)
            return step
        except Damaged as reason:
            if _layout(path).exists(path):  # otherwise the run that writes here has just deleted it
                rest = candidates[number + 1 :]
                _set_aside(path, reason, f"trying {rest[0]}" if rest else "no other to try", warn)
    return None


def best_first(directory: pathlib.Path, *, doubtful: bool = False) -> list[int]:
    """The steps that have a score, the highest first, the earlier first of equals.

    Args:
      directory: the folder of all checkpoints.
      doubtful: put the steps whose score is damaged first, because one may have been the best.
    """
    scored = []
    for step in steps(directory):
        path = directory / str(step)
        try:
            content = read_about(directory, step)
            # Verify the score first: a flipped bit must not make a checkpoint the best.
            if _manifest(path, step).get(ABOUT) != hashlib.sha256(content).hexdigest():
                raise Damaged
            score = json.loads(content)["score"]
        except (OSError, Damaged):
            score = math.inf if doubtful else None
        if score is not None:
            scored.append((-score, step))
    return [step for _, step in sorted(scored)]


def retain(
    directory: pathlib.Path, new: int, last: int, best: bool, warn: Callable[[str], None]
) -> None:
    """Delete all sealed checkpoints except the new one, the last n and, if wanted, the best.

    The new one stays even when it is not among the last, as after a restore of an old step. Each is
    retracted first: a crash on the way leaves it whole, or as garbage.
    """
    sealed = sealed_steps(directory)
    keep = {new, *sealed[-last:], *(best_first(directory)[:1] if best else ())}
    layout = _layout(directory)
    for step in set(sealed) - keep:
        try:
            layout.retract(directory, step)
            remove(layout.garbage(directory, step))
        except (OSError, BucketError) as error:
            # The new checkpoint is safe, and the next save tries again.
            warn(f"checkpoint {step} in {directory} could not be deleted: {cause(error)}")


def remove(path: pathlib.Path) -> None:
    """Delete a folder with everything in it, or a file or link."""
    _layout(path).remove(path)


def clear(path: pathlib.Path) -> None:
    """Delete what a failed save has written, while some of its threads may still be writing.

    Deletes for a few seconds, until nothing reappears; the next save deletes the rest.
    """
    absent = 0
    for _ in range(100):
        absent = 0 if _layout(path).exists(path) else absent + 1
        if absent == 3:
            break
        with contextlib.suppress(OSError):
            remove(path)
        time.sleep(0.05)


def _set_aside(path: pathlib.Path, reason: object, then: str, warn: Callable[[str], None]) -> None:
    number = 1
    while _layout(path).exists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    try:
        _layout(path).move(path, aside)
        done = f"set aside as {aside.name}"
    except (OSError, BucketError) as error:
        done = f"it could not be renamed ({cause(error)})"
    warn(f"checkpoint {path.name} in {path.parent} is damaged: {reason}; {done}; {then}")


def _manifest(sealed: pathlib.Path, step: int) -> dict[str, str]:
    content = _layout(sealed).read_manifest(sealed)
    lines = content.decode(errors="replace").split("\n")
    digests = {match[2]: match[1] for match in map(_LINE.fullmatch, lines) if match}
    # Render the manifest again from what was parsed: this also rejects lines that could not be
    # parsed, are of another step, repeated, or out of order.
    if _text(step, digests).encode() != content:
        raise Damaged("its manifest is damaged or of another checkpoint")
    return digests


def _text(step: int, digests: dict[str, str]) -> str:
    lines = [f"{digests[name]}  {name}" for name in sorted(digests)]
    return "\n".join([f"# checkpoint of step {step}: {len(lines)} files", *lines, ""])


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
