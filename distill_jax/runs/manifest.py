"""The manifest of a run: what it was made from; a run resumes only with the same inputs."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

from distill_jax import __version__, kernels
from distill_jax.errors import UsageError
from distill_jax.processes import huge_pages, machine

#: What each start of a run adds to the manifest.
OF_A_START = (
    *("started", "git_revision", "command", "devices", "processes"),
    *("cpu_kernels", "cpu", "memory"),
)
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_run(
    teachers: list[dict[str, Any]],
    data: dict[str, Any],
    base: dict[str, Any] | None = None,
    quantized: dict[str, Any] | None = None,
    started_from: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a run that starts now.

    Args:
      teachers: path, fingerprint and parameters of each.
      data: name, fingerprint and sizes.
      base: of a student with adapters, the model that they adapt.
      quantized: of a student with quantized matrices, see `Quantizer.describe`.
      started_from: the model whose weights the student began with, and its licence.
    """
    devices = jax.devices()
    return {
        "distill_jax": __version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in devices],
        "processes": jax.process_count(),
        "cpu_kernels": str(kernels.status()),
        "cpu": machine.describe_cpu(),
        "memory": huge_pages.describe(),
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "teachers": teachers,
        "data": data,
        **({"base": base} if base else {}),
        **({"quantized": quantized} if quantized else {}),
        **({"started_from": started_from} if started_from else {}),
        "resumed": [],
    }


def other_kernels(manifest: dict[str, Any], now: dict[str, Any]) -> str | None:
    """A warning where a run resumes with other kernels than it began with, which round otherwise.

    Args:
      manifest: of the run.
      now: of this start.
    """
    before = manifest.get("cpu_kernels", "xla")
    if before.split()[0] == now["cpu_kernels"].split()[0]:
        return None
    return (
        f"this run began with the kernels {before}, which round otherwise than "
        f"{now['cpu_kernels']}; training.cpu_kernels={before.split()[0]} resumes bit for bit"
    )


def _git_revision() -> str | None:
    """The commit of the source tree that this package runs from; None for an installed copy."""
    source = pathlib.Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # there is no git
        return None
    return done.stdout.strip() or None


def check_same_inputs(
    manifest: dict[str, Any],
    teachers: list[dict[str, Any]],
    data: dict[str, Any],
    base: dict[str, Any] | None = None,
    quantized: dict[str, Any] | None = None,
    started_from: dict[str, Any] | None = None,
) -> None:
    """UsageError when a run would resume with another teacher, base or data than it began with."""
    del started_from  # the config names it, and a run keeps its config
    before = [teacher["fingerprint"] for teacher in manifest["teachers"]]
    now = [teacher["fingerprint"] for teacher in teachers]
    if before != now:
        paths = ", ".join(teacher["path"] for teacher in teachers) or "none"
        raise UsageError(
            f"teacher.path={paths}: another teacher than the run began with "
            f"(fingerprint {_short(now)}); expected {_short(before)}"
        )
    answers_before = [_answers(teacher) for teacher in manifest["teachers"]]
    answers = [_answers(teacher) for teacher in teachers]
    if answers_before != answers:
        raise UsageError(
            f"teacher.store: other answers than the run began with ({answers}); "
            f"expected {answers_before}"
        )
    if base and manifest["base"]["fingerprint"] != base["fingerprint"]:
        raise UsageError(
            f"student.path={base['path']!r}: another base of the adapters than the run began with "
            f"(fingerprint {base['fingerprint'][:12]}); "
            f"expected {manifest['base']['fingerprint'][:12]}"
        )
    grids_before, grids = _grids(manifest.get("quantized")), _grids(quantized)
    if grids_before != grids:
        raise UsageError(
            f"student.quantize: other grids than the run began with ({grids}); "
            f"expected {grids_before}"
        )
    if manifest["data"]["fingerprint"] != data["fingerprint"]:
        raise UsageError(
            f"data.name={data['name']!r}: other data than the run began with "
            f"(fingerprint {data['fingerprint'][:12]}); "
            f"expected {manifest['data']['fingerprint'][:12]}"
        )


def check_same_prompts(manifest: dict[str, Any], data: dict[str, Any]) -> None:
    """UsageError when a run on text would resume with other prompts than it began with."""
    before, now = (described.get("prompts") or {} for described in (manifest["data"], data))
    for split, key in (("validation", "prompts"), ("test", "test_prompts")):
        if before.get(split) != now.get(split):
            raise UsageError(
                f"evaluation.{key}: other prompts than the run began with "
                f"({_prompts(now, split)}); expected {_prompts(before, split)}"
            )


def _prompts(described: dict[str, Any], split: str) -> str:
    found = described.get(split)
    return f"{found['count']}, fingerprint {found['fingerprint'][:12]}" if found else "none"


def _grids(quantized: dict[str, Any] | None) -> str:
    """The grids of a quantized student, and how many parameters have them."""
    if not quantized:
        return "none"
    return f"{', '.join(quantized['grids'])} for {quantized['parameters']} parameters"


def _answers(teacher: dict[str, Any]) -> Any:
    """Which stored answers stand for a teacher; None where it computes its own."""
    return teacher.get("answers") or teacher.get("stored")


def _short(fingerprints: list[str]) -> str:
    return ", ".join(fingerprint[:12] for fingerprint in fingerprints) or "none"
