"""What makes a folder a checkpoint: a manifest of SHA-256 by file, sealed by one atomic rename.

The manifest has the format of `sha256sum`, so that anyone can check a checkpoint without us:

    cd checkpoints/1200 && sha256sum -c MANIFEST.sha256

Its text follows from the step and the files alone, so that every changed byte, in a file or in the
manifest itself, and every missing, added, renamed or exchanged file shows as a difference. It
guards against damage, not against an attacker: who can write the files can write the manifest.

Left out on purpose: what the files hold, but for the score. This module knows no array, no orbax.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterable

from distill_jax.errors import UsageError
from distill_jax.files import flush

MANIFEST = "MANIFEST.sha256"
ABOUT = "checkpoint.json"  # an object with "score": a number, or null

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


class Damaged(Exception):
    """A checkpoint that must not be used; the message says why, without naming the checkpoint."""


def free_space(directory: str | os.PathLike[str], bytes_needed: int, key: str = "workdir") -> None:
    """Refuse, before anything is written, a folder whose disk has not the room that is needed.

    Args:
      directory: the folder that will be written to; it need not exist yet.
      bytes_needed: what will be written, in bytes.
      key: the config key that names the folder, for the message.

    Raises:
      UsageError: when the disk has fewer than `bytes_needed` bytes free.
    """
    existing = pathlib.Path(directory).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < bytes_needed:
        raise UsageError(
            f"{key}={str(directory)!r}: its disk has {_size(free)} free, but {_size(bytes_needed)} "
            "are needed; free some space or choose a folder on another disk"
        )


def cause(error: Exception) -> str:
    """What an error comes down to, in a few words: those of the system, if it said any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # TensorStore names every file on the way, on two thousand characters, and the code at the end.
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {error}"[:300]


def seal(directory: pathlib.Path, step: int) -> None:
    """Make a folder of finished files a checkpoint: flush, hash, write the manifest, rename.

    Everything is on the disk before the rename, and the rename is atomic: a folder that is named by
    its step alone is whole, whenever the power goes.

    Args:
      directory: the folder of all checkpoints. That of the step stands in `unsealed(directory,
        step)`, with all files but the manifest, and afterwards in directory/<step>.
      step: the training step, which becomes part of the manifest.

    Raises:
      OSError: when the disk fails or is full. The checkpoint is not sealed then.
      Damaged: when there is anything but files and folders in it.
    """
    written = unsealed(directory, step)
    for folder, _, names in os.walk(written):
        for name in names:
            flush(pathlib.Path(folder, name))
    manifest = _text(step, {name: _digest(path) for name, path in _files(written)})
    (written / MANIFEST).write_text(manifest, encoding="utf-8", newline="")
    flush(written / MANIFEST)
    for folder, _, _ in os.walk(written, topdown=False):
        flush(pathlib.Path(folder))
    os.rename(written, directory / str(step))
    flush(directory)


def check(sealed: pathlib.Path, step: int) -> None:
    """Compare every file of a checkpoint with its manifest.

    Args:
      sealed: the folder of the checkpoint.
      step: the training step that the folder's name states.

    Raises:
      Damaged: at the first thing that is not as it was sealed.
    """
    try:
        expected = _manifest(sealed, step)
        files = dict(_files(sealed))
        if missing := sorted(expected.keys() - files.keys()):
            raise Damaged(f"{missing[0]} is missing")
        if added := sorted(files.keys() - expected.keys() - {MANIFEST}):
            raise Damaged(f"{added[0]!r} is not in its manifest")
        for name, digest in expected.items():
            if _digest(files[name]) != digest:
                raise Damaged(f"{name} is not what was saved (SHA-256 differs)")
    except OSError as error:
        raise Damaged(f"it cannot be read ({cause(error)})") from error


def steps(directory: pathlib.Path) -> list[int]:
    """Every step that has something under a checkpoint's name, ascending; [] without the folder."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir()]
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))


def sealed_steps(directory: pathlib.Path) -> list[int]:
    """Every step whose checkpoint has a manifest, ascending."""
    return [step for step in steps(directory) if (directory / str(step) / MANIFEST).is_file()]


def unsealed(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Where the checkpoint of a step is written before it is sealed."""
    return directory / f"{step}.unsealed"


def prepare(directory: pathlib.Path, step: int, warn: Callable[[str], None]) -> bool:
    """Make the folder for an unsealed checkpoint, and delete what stopped processes have left.

    Args:
      directory: the folder of all checkpoints; made when absent.
      step: the step to be saved.
      warn: called with one line for each thing that was left.

    Returns:
      Whether there is something to do: False when the step has a sealed checkpoint.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(directory.iterdir()):
        match = re.fullmatch(r"([0-9]+)\.(unsealed|trash)", path.name)
        if match and match[2] == "unsealed":
            warn(
                f"checkpoint {match[1]} in {directory} was left half-written by a process that was "
                "stopped; deleted"
            )
        if match:
            remove(path)
    if step in sealed_steps(directory):
        return False
    if step in steps(directory):
        _set_aside(directory / str(step), "it has no manifest", "saving it again", warn)
    unsealed(directory, step).mkdir()
    return True


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
            if os.path.lexists(path):  # else the run that writes here has just deleted it
                rest = candidates[number + 1 :]
                _set_aside(path, reason, f"trying {rest[0]}" if rest else "no other to try", warn)
    return None


def best_first(directory: pathlib.Path, *, doubtful: bool = False) -> list[int]:
    """The steps that have a score, the highest first, the earlier first of equals.

    Args:
      directory: the folder of all checkpoints.
      doubtful: put before them those whose score is damaged, which may have been the best.
    """
    scored = []
    for step in steps(directory):
        path = directory / str(step)
        try:
            content = (path / ABOUT).read_bytes()
            # Verified, so that a flipped bit cannot make a checkpoint the best.
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
    """Delete the sealed checkpoints but the new one, the last n and, if wanted, the best.

    The new one stays even when it is not among the last, as after a restore of an old step. Each is
    renamed first: a crash on the way leaves it whole, or under a name that is no step.
    """
    sealed = sealed_steps(directory)
    keep = {new, *sealed[-last:], *(best_first(directory)[:1] if best else ())}
    for step in set(sealed) - keep:
        trash = directory / f"{step}.trash"
        try:
            if os.path.lexists(trash):
                remove(trash)
            os.rename(directory / str(step), trash)
            flush(directory)
            remove(trash)
        except OSError as error:  # the new checkpoint is safe, and the next save tries again
            warn(f"checkpoint {step} in {directory} could not be deleted: {cause(error)}")


def remove(path: pathlib.Path) -> None:
    """Delete a folder with all that is in it, or a file or link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def clear(path: pathlib.Path) -> None:
    """Delete what a save that failed has written, though some of its threads may write on.

    Tries again for a few seconds, until nothing has come back; what is there then, the next save
    deletes.
    """
    absent = 0
    for _ in range(100):
        with contextlib.suppress(OSError):
            remove(path)
        absent = 0 if path.exists() else absent + 1
        if absent == 3:
            break
        time.sleep(0.05)


def _set_aside(path: pathlib.Path, reason: object, then: str, warn: Callable[[str], None]) -> None:
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    try:
        os.rename(path, aside)
        flush(path.parent)
        done = f"set aside as {aside.name}"
    except OSError as error:
        done = f"it could not be renamed ({cause(error)})"
    warn(f"checkpoint {path.name} in {path.parent} is damaged: {reason}; {done}; {then}")


def _manifest(sealed: pathlib.Path, step: int) -> dict[str, str]:
    if sealed.is_symlink() or not sealed.is_dir():
        raise Damaged("it is not a folder")
    path = sealed / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise Damaged("it has no manifest")
    content = path.read_bytes()
    lines = content.decode(errors="replace").split("\n")
    digests = {match[2]: match[1] for match in map(_LINE.fullmatch, lines) if match}
    # Written again from what was understood: a line that was not, or that is of another step, or
    # double, or out of order, makes a difference.
    if _text(step, digests).encode() != content:
        raise Damaged("its manifest is damaged or of another checkpoint")
    return digests


def _text(step: int, digests: dict[str, str]) -> str:
    lines = [f"{digests[name]}  {name}" for name in sorted(digests)]
    return "\n".join([f"# checkpoint of step {step}: {len(lines)} files", *lines, ""])


def _files(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Every file below a folder, with its name there; links and devices are refused."""
    files = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for name in (*folders, *names):
            path = pathlib.Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise Damaged(f"{relative!r} is a symbolic link")
            if name in names:
                if not path.is_file():
                    raise Damaged(f"{relative!r} is neither a file nor a folder")
                files.append((relative, path))
    return files


def _raise(error: OSError) -> None:
    raise error


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
