"""What the folder of a run tells a reader: its state, its settings, its figures.

A folder may be of an earlier version, half written, damaged or no run at all: `read` gives a record
of whatever is a run, with a state, and never raises for what a file holds. Nothing heavy is
imported, and nothing is written. Left out on purpose: loading models and resolving configs.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from distill_jax import storage
from distill_jax.errors import UsageError
from distill_jax.storage import gcs, sealed
from distill_jax.training.logging import writers

State = Literal["finished", "running", "stopped", "failed", "damaged"]

#: What runs leave: a folder with two of these was a run, also where its config.json is lost.
_MARKS = ("metrics.jsonl", "performance.jsonl", "result.json", "checkpoints", storage.LOCK)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as its folder shows it.

    Attributes:
      path: the folder.
      state: "finished": its result is whole; "running": a process holds it; "stopped": neither, the
        same command resumes; "failed": its last start ended with an error; "damaged": a file that
        it needs cannot be read, or is not the one that the run wrote.
      detail: by whom it is run, why it failed, or what is damaged; "".
      config: the content of config.json; {} where it cannot be read.
      manifest: the content of manifest.json, or {}.
      result: the content of result.json without its seal; {} of a run that has not finished.
      seal: the SHA-256 of other files of a finished run, by name.
      step: the last one on record.
      total_steps: of the whole run; None where it is not on record.
      validation: the last evaluation of the validation split, or {}.
    """

    path: pathlib.Path
    state: State
    detail: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seal: Mapping[str, str] = dataclasses.field(default_factory=dict)
    step: int = 0
    total_steps: int | None = None
    validation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """ "images" or "text"; "" where the config cannot be read."""
        name = section(self.config, "data").get("name")
        return "" if name is None else "text" if name == "text" else "images"

    @property
    def test(self) -> Mapping[str, Any]:
        """The final figures of the test split; {} of a run that has not finished."""
        return section(section(self.result, "final"), "test")

    @property
    def progress(self) -> str:
        """Such as "finished", "running at step 20 of 100" or "stopped at step 20"."""
        if self.state == "finished":
            return "finished"
        of = f" of {self.total_steps:,}" if self.total_steps else ""
        return f"{self.state} at step {self.step:,}{of}"


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping within a mapping; {} where there is none."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def read(folder: str | os.PathLike) -> RunRecord | None:
    """The record of the run in a folder; None where there is no run.

    Args:
      folder: local, or in a bucket.

    Raises:
      BucketError: the bucket cannot be reached.
    """
    root = storage.resolve_path(folder, "folder")
    names = _names(root)
    config, fault = _read_json(root / "config.json") if "config.json" in names else ({}, "")
    if not {"student", "method", "training"} <= config.keys():  # config.json of another program
        if sum(mark in names for mark in _MARKS) < 2:
            return None
        fault = fault or "config.json is missing, or is not that of a run"
    faults = [fault] if fault else []
    manifest, fault = _read_json(root / "manifest.json") if "manifest.json" in names else ({}, "")
    faults += [fault] if fault else []
    result, found = _read_result(root, manifest) if "result.json" in names else ({}, [])
    metrics, fault = _read_metrics(root) if "metrics.jsonl" in names else ([], "")
    faults += found + ([fault] if fault else [])
    state, detail = _state(root, names, bool(result), faults)
    total = manifest.get("total_steps", result.get("steps"))
    return RunRecord(
        root,
        state,
        detail,
        config,
        manifest,
        sealed.without(result) if state == "finished" else {},
        section(section(result, sealed.KEY), "files"),
        step=max([_last_checkpoint(root, names), *(record["step"] for record in metrics)]),
        total_steps=total if isinstance(total, int) else None,
        validation=next((r for r in reversed(metrics) if r["split"] == "validation"), {}),
    )


def sealed_fault(run: RunRecord, name: str, content: bytes) -> str:
    """What is wrong with a file that the result of a run names; "" for nothing."""
    return sealed.changed_file({sealed.KEY: {"files": run.seal}}, name, content)


def _state(
    root: pathlib.Path, names: set[str], finished: bool, faults: list[str]
) -> tuple[State, str]:
    holder = storage.find_holder(root) if storage.LOCK in names else None
    if holder and holder[1] is not False:
        owner, runs = holder
        unsure = "" if runs else "; on another machine, which alone can tell whether it still runs"
        return "running", f"process {owner.pid} on {owner.host}, since {owner.since}{unsure}"
    if faults:
        return "damaged", "; ".join(faults)
    if finished:
        return "finished", ""
    if "failure.json" in names:
        failure, _ = _read_json(root / "failure.json")
        return "failed", str(failure.get("reason", ""))
    return "stopped", ""


def find(folder: str | os.PathLike, key: str = "FOLDER") -> Iterator[RunRecord]:
    """Every run in a folder and in the folders below it, in the order of their names.

    Folders whose names begin with a dot, folders that cannot be listed and those inside of a run
    are left out.

    Args:
      folder: local, or in a bucket.
      key: the flag that an error names.

    Raises:
      UsageError: there is no such folder.
    """
    root = storage.resolve_path(folder, key)
    with storage.reporting_unreachable(root, key):
        if not storage.is_remote(root) and not root.is_dir():
            raise UsageError(f"{key}={os.fspath(folder)}: no such folder; expected one with runs")
        yield from _find(root, frozenset())


def _find(folder: pathlib.Path, above: frozenset[str]) -> Iterator[RunRecord]:
    record = read(folder)
    if record is not None:
        yield record
        return
    real = os.path.realpath(folder)
    if real in above and not storage.is_remote(folder):  # a link to a folder around it
        return
    for name in sorted(_names(folder)):
        below = folder / name
        if not name.startswith(".") and (storage.is_remote(folder) or below.is_dir()):
            yield from _find(below, above | {real})


def _names(folder: pathlib.Path) -> set[str]:
    """The names in a folder; none where it cannot be listed."""
    if storage.is_remote(folder):
        return set(gcs.list_names(folder))
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _read_json(path: pathlib.Path) -> tuple[dict[str, Any], str]:
    """The content of a file that holds an object, and what is wrong with it."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        return {}, f"{path.name} cannot be read ({reason})"
    return (values, "") if isinstance(values, dict) else ({}, f"{path.name} holds no object")


def _read_result(
    root: pathlib.Path, manifest: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The content of result.json, and what is wrong with it and its metrics."""
    values, fault = _read_json(root / "result.json")
    if fault:
        return {}, [fault]
    faults = []
    if fault := sealed.broken(values, run=manifest.get("run")):
        faults.append(f"result.json {fault}")
    if not section(section(values, "final"), "test"):
        faults.append("result.json has no figures of the test split")
    for name in ("metrics.jsonl", "performance.jsonl"):
        try:
            content = (root / name).read_bytes()
        except OSError:
            content = None
        if fault := sealed.changed_file(values, name, content):
            faults.append(f"{name} {fault}")
    return values, faults


def _read_metrics(root: pathlib.Path) -> tuple[list[dict[str, Any]], str]:
    try:
        return writers.read(root / "metrics.jsonl"), ""
    except UsageError as error:
        return [], str(error).rpartition(f"{root}{os.sep}")[2]


def _last_checkpoint(root: pathlib.Path, names: set[str]) -> int:
    found = _names(root / "checkpoints") if "checkpoints" in names else set()
    return max((int(name) for name in found if name.isascii() and name.isdecimal()), default=0)
