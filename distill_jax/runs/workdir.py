"""The folder of a run: what lies where, who may write into it, and how small files are written."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax import __version__
from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.processes import coordination
from distill_jax.storage import gcs, is_remote, write_atomically

SEEN_AFTER = 60.0  # seconds: network file systems show new files late
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes the values as indented JSON, whole or not at all."""
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """The values of a JSON file of a run; UsageError when it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--workdir={path.parent}: cannot read {path.name}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The paths of a run.

    Attributes:
      root: a `pathlib.Path`, or the `epath.Path` of gs://, which reads and lists as that does.
    """

    root: pathlib.Path

    config = property(lambda self: self.root / "config.json")
    manifest = property(lambda self: self.root / "manifest.json")
    metrics = property(lambda self: self.root / "metrics.jsonl")
    performance = property(lambda self: self.root / "performance.jsonl")
    tensorboard = property(lambda self: self.root / "tensorboard")
    checkpoints = property(lambda self: self.root / "checkpoints")
    model = property(lambda self: self.root / "model")
    selected = property(lambda self: self.root / "model_selected")
    result = property(lambda self: self.root / "result.json")
    report = property(lambda self: self.root / "report.html")

    def stored_config(self) -> ConfigDict | None:
        """The config of the run that lives here, or None for a folder without one."""
        if not self.config.exists():
            return None
        return configs.resolve(read_json(self.config))

    def check(self, config: ConfigDict) -> bool:
        """Whether a run of this config would resume here; refuses the workdir of another run.

        Raises:
          UsageError: when the folder belongs to another config (it says what differs), holds other
            files, or cannot be written.
        """
        stored = self.stored_config()
        if stored is not None:
            differences = configs.differences(stored, config)
            if differences:
                raise UsageError(
                    f"--workdir={self.root}: holds a run of another config; expected the same one "
                    f"or a new folder ({'; '.join(differences)})"
                )
            return True
        torn = f".{self.config.name}."  # a start that was killed while it wrote its first file
        if not all(name.startswith(torn) for name in self._found()):
            raise UsageError(
                f"--workdir={self.root}: holds files but no config.json; "
                "expected a run or a new folder"
            )
        return False

    def _found(self) -> list[str]:
        """What is in the folder; UsageError when it is none that can be written."""
        if is_remote(self.root):
            return gcs.list_names(self.root)
        parent = next(p for p in [self.root, *self.root.absolute().parents] if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UsageError(f"--workdir={self.root}: expected a folder that can be written")
        return [path.name for path in parent.iterdir()] if parent == self.root else []

    def check_shared(self, started: str) -> None:
        """Of many processes: waits until each sees the manifest that the first one has written.

        Args:
          started: when the first one says that the run was started.

        Raises:
          UsageError: this process does not see it.
        """
        deadline = time.monotonic() + SEEN_AFTER
        while coordination.is_distributed() and not coordination.is_first():
            with contextlib.suppress(OSError, ValueError):
                manifest = json.loads(self.manifest.read_text())
                if started in (manifest["started"], *(r["started"] for r in manifest["resumed"])):
                    return
            if time.monotonic() > deadline:
                raise UsageError(
                    f"--workdir={self.root}: process {coordination.process_index()} does not see "
                    "what the first one has written there; expected a folder that all hosts share"
                )
            time.sleep(0.1)


def describe_run(
    teachers: list[dict[str, Any]], data: dict[str, Any], base: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a manifest says: versions, devices, the command, the teachers, the data, and the base
    of an adapted student."""
    devices = jax.devices()
    return {
        "distill_jax": __version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in devices],
        "processes": jax.process_count(),
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "teachers": teachers,
        "data": data,
        **({"base": base} if base else {}),
        "resumed": [],
    }


def _git_revision() -> str | None:
    """The commit of the source tree that this package runs from; None for an installed copy."""
    source = pathlib.Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    answer = subprocess.run(
        ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return answer.stdout.strip() or None


def check_same_inputs(
    manifest: dict[str, Any],
    teachers: list[dict[str, Any]],
    data: dict[str, Any],
    base: dict[str, Any] | None = None,
) -> None:
    """UsageError when a run would resume with another teacher, base or data than it began with."""
    before = [teacher["fingerprint"] for teacher in manifest["teachers"]]
    now = [teacher["fingerprint"] for teacher in teachers]
    if before != now:
        paths = ", ".join(teacher["path"] for teacher in teachers) or "none"
        raise UsageError(
            f"teacher.path={paths}: another teacher than the run began with "
            f"(fingerprint {_short(now)}); expected {_short(before)}"
        )
    kept, given = ([t.get("answers") for t in said] for said in (manifest["teachers"], teachers))
    if kept != given:
        raise UsageError(
            f"teacher.store: other answers than the run began with ({given}); expected {kept}"
        )
    if base and manifest["base"]["fingerprint"] != base["fingerprint"]:
        raise UsageError(
            f"student.path={base['path']!r}: another base of the adapters than the run began with "
            f"(fingerprint {base['fingerprint'][:12]}); "
            f"expected {manifest['base']['fingerprint'][:12]}"
        )
    if manifest["data"]["fingerprint"] != data["fingerprint"]:
        raise UsageError(
            f"data.name={data['name']!r}: other data than the run began with "
            f"(fingerprint {data['fingerprint'][:12]}); "
            f"expected {manifest['data']['fingerprint'][:12]}"
        )


def check_same_prompts(manifest: dict[str, Any], data: dict[str, Any]) -> None:
    """UsageError when a run on text would resume with other prompts than it began with."""
    before, now = (said.get("prompts") or {} for said in (manifest["data"], data))
    for split, key in (("validation", "prompts"), ("test", "test_prompts")):
        if before.get(split) != now.get(split):
            raise UsageError(
                f"evaluation.{key}: other prompts than the run began with "
                f"({_prompts(now, split)}); expected {_prompts(before, split)}"
            )


def _prompts(described: dict[str, Any], split: str) -> str:
    found = described.get(split)
    return f"{found['count']}, fingerprint {found['fingerprint'][:12]}" if found else "none"


def _short(fingerprints: list[str]) -> str:
    return ", ".join(fingerprint[:12] for fingerprint in fingerprints) or "none"
