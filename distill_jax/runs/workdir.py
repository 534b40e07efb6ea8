"""The folder of a run: its paths, who may write into it, and how small files are written."""

import contextlib
import dataclasses
import datetime
import io
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.processes import coordination
from distill_jax.storage import (
    LOCK,
    gcs,
    is_remote,
    make_folder,
    remove_torn,
    reporting_unreachable,
    sealed,
    write_atomically,
)
from distill_jax.training import loop

VISIBLE_TIMEOUT = 60.0  # seconds; network file systems show new files late


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


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
    """The files of a run.

    Attributes:
      root: the folder, a `pathlib.Path` or, in a bucket, an `epath.Path` with the same methods.
    """

    root: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The resolved config."""
        return self.root / "config.json"

    @property
    def manifest(self) -> pathlib.Path:
        """What the run was made from, and every start."""
        return self.root / "manifest.json"

    @property
    def metrics(self) -> pathlib.Path:
        """A line for each log, evaluation and test; the same in equal runs."""
        return self.root / "metrics.jsonl"

    @property
    def performance(self) -> pathlib.Path:
        """Speed and memory; differs between equal runs."""
        return self.root / "performance.jsonl"

    @property
    def tensorboard(self) -> pathlib.Path:
        """The folder of TensorBoard event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def model(self) -> pathlib.Path:
        """The model folder of the last step."""
        return self.root / "model"

    @property
    def selected(self) -> pathlib.Path:
        """The model folder of the step that was best on the validation split."""
        return self.root / "model_selected"

    @property
    def result(self) -> pathlib.Path:
        """The final metrics; its presence marks a finished run."""
        return self.root / "result.json"

    @property
    def failure(self) -> pathlib.Path:
        """Why the last start failed; absent after one that was stopped, and in a finished run."""
        return self.root / "failure.json"

    @property
    def record(self) -> pathlib.Path:
        """What the page shows of the final student's predictions on the test split."""
        return self.root / "evaluation" / "test.npz"

    def saved_model(self, which: str) -> pathlib.Path:
        """The model folder of the "final" or the "selected" model."""
        return self.model if which == "final" else self.selected

    def saved_config(self) -> ConfigDict | None:
        """The config of the run in this folder; None where there is no run.

        Raises:
          UsageError: config.json was changed since the run began.
        """
        if not self.config.exists():
            return None
        values = read_json(self.config)
        if not isinstance(values, dict):
            raise UsageError(
                f"--workdir={self.root}: config.json holds no config; expected an object"
            )
        began_with = self._read_manifest().get("config")
        if began_with and (changed := configs.changed_values(began_with, values)):
            raise UsageError(
                f"--workdir={self.root}: config.json was changed since the run began "
                f"({'; '.join(changed)}); expected it as it was, or a new folder for another run"
            )
        return configs.resolve_saved(values, self.config)

    def _read_manifest(self) -> dict[str, Any]:
        """The content of manifest.json; {} where there is none yet."""
        return self.read_manifest() if self.manifest.exists() else {}

    def run_id(self) -> str | None:
        """What identifies the run; None for one that an earlier version began."""
        return self._read_manifest().get("run")

    def write_result(self, values: dict[str, Any]) -> None:
        """Writes result.json with a seal on itself and on the metrics of the run."""
        found = (self.metrics, self.performance, self.record)
        files = {
            str(path.relative_to(self.root)): path.read_bytes() for path in found if path.exists()
        }
        write_json(self.result, sealed.seal(values, run=self.run_id() or "", files=files))

    def write_record(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes evaluation/test.npz, whole or not at all; the same arrays give the same bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **cast(dict[str, Any], arrays))
        make_folder(self.record.parent)
        write_atomically(self.record, buffer.getvalue())

    def read_result(self) -> dict[str, Any]:
        """The content of result.json, without its seal.

        Raises:
          UsageError: it is damaged, was changed, or is of another run.
        """
        values = read_json(self.result)
        if not isinstance(values, dict):
            raise UsageError(f"--workdir={self.root}: result.json holds no object")
        if fault := sealed.broken(values, run=self.run_id()):
            raise UsageError(
                f"--workdir={self.root}: result.json {fault}; expected the one that the run wrote"
            )
        return sealed.without(values)

    def check_saved_model(self, which: str) -> str:
        """Compares a saved model with the one that result.json names, where the run has finished.

        Returns:
          One line where an earlier version saved a model without SHA-256 sums, else "".

        Raises:
          UsageError: it is another model.
        """
        folder = self.saved_model(which)
        found = models.saved_identity(folder)
        if found is None:
            return f"{folder}: saved without {models.CHECKSUMS}, so its files are not verified"
        entry = self.read_result()[which] if self.result.exists() else None
        if entry and entry["parameters_sha256"] != found:
            raise UsageError(
                f"--workdir={self.root}: {folder.name} is another model (fingerprint {found[:12]}) "
                f"than the one of result.json; expected {entry['parameters_sha256'][:12]}"
            )
        return ""

    def required_config(self) -> ConfigDict:
        """As `saved_config`; UsageError where there is no run."""
        with reporting_unreachable(self.root, "--workdir"):
            config = self.saved_config()
        if config is None:
            raise UsageError(f"--workdir={self.root}: no run there; expected a config.json")
        return config

    def read_manifest(self) -> dict[str, Any]:
        """The content of manifest.json; UsageError when it is damaged or no run's."""
        manifest = read_json(self.manifest)
        fields = {"data": dict, "teachers": list, "resumed": list, "started": str}
        whole = isinstance(manifest, dict) and all(
            isinstance(manifest.get(name), kind) for name, kind in fields.items()
        )
        entries = [manifest["data"], *manifest["teachers"]] if whole else []
        if not entries or not all(isinstance(e, dict) and "fingerprint" in e for e in entries):
            raise UsageError(
                f"--workdir={self.root}: manifest.json is not that of a run; expected the one that "
                "the run wrote"
            )
        return manifest

    def check(self, config: ConfigDict) -> bool:
        """Whether a run with this config would resume here; refuses the workdir of another run.

        Raises:
          UsageError: the folder belongs to a run of another config (the message lists the
            differences), holds other files, or cannot be written.
        """
        saved = self.saved_config()
        if saved is not None:
            differences = configs.differences(saved, config)
            if differences:
                raise UsageError(
                    f"--workdir={self.root}: holds a run of another config; expected the same one "
                    f"or a new folder ({'; '.join(differences)})"
                )
            return True
        torn = f".{self.config.name}."  # a start that was killed while it wrote its first file
        if not all(name.startswith(torn) or name == LOCK for name in self._names()):
            raise UsageError(
                f"--workdir={self.root}: holds files but no config.json; "
                "expected a run or a new folder"
            )
        return False

    @property
    def report(self) -> pathlib.Path:
        """The page that shows the run."""
        return self.root / "report.html"

    def remove_torn(self) -> None:
        """Removes the temporary files that a killed process left while it wrote a file."""
        whole = (self.config, self.manifest, self.metrics, self.performance, self.result)
        others = (self.report, self.failure)
        remove_torn(self.root, [path.name for path in (*whole, *others)])
        remove_torn(self.record.parent, [self.record.name])

    @contextlib.contextmanager
    def recording_failure(self) -> Iterator[None]:
        """A context of one start: the reason of a failure is left in the folder, for `runs`.

        A refusal and a stop that saves the state are no failures.
        """
        if coordination.is_first():
            self.failure.unlink(missing_ok=True)
        try:
            yield
        except (UsageError, loop.Preempted):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            if coordination.is_first() and self.config.exists():
                with contextlib.suppress(OSError):  # the disk may be what failed
                    write_json(self.failure, {"reason": reason, "time": _now()})
            raise

    def _names(self) -> list[str]:
        """The names in the folder; UsageError when it cannot be written."""
        if is_remote(self.root):
            return gcs.list_names(self.root)
        parent = next(p for p in [self.root, *self.root.absolute().parents] if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UsageError(f"--workdir={self.root}: expected a folder that can be written")
        return [path.name for path in parent.iterdir()] if parent == self.root else []

    def check_shared(self, started: str) -> None:
        """Waits until this process sees the manifest that process 0 has written.

        Args:
          started: the time of the start that process 0 has written.

        Raises:
          UsageError: this process does not see it, so the folder is not shared.
        """
        deadline = time.monotonic() + VISIBLE_TIMEOUT
        while coordination.is_distributed() and not coordination.is_first():
            with contextlib.suppress(OSError, ValueError):
                manifest = json.loads(self.manifest.read_text())
                if started in (manifest["started"], *(r["started"] for r in manifest["resumed"])):
                    return
            if time.monotonic() > deadline:
                raise UsageError(
                    f"--workdir={self.root}: process {coordination.process_index()} does not see "
                    "what process 0 wrote there; expected a folder that all hosts share"
                )
            time.sleep(0.1)
