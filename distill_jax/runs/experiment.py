"""A run from its config to its result: claim the workdir, start or resume, train, save."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import kernels, parallel, reports, storage, tasks
from distill_jax.config import schema
from distill_jax.errors import UsageError
from distill_jax.evaluation.text_metrics import METRICS
from distill_jax.models.language.huggingface.reading import grids_of
from distill_jax.processes import coordination, watchdog
from distill_jax.runs import lone_models, training, workdir
from distill_jax.runs import manifest as manifests
from distill_jax.runs.export import source
from distill_jax.runs.session import Session
from distill_jax.runs.workdir import Workdir
from distill_jax.tasks.base import Parts
from distill_jax.training import checkpoints, compilation_cache, loop
from distill_jax.training.logging import trackers
from distill_jax.training.logging.progress import Progress

MOST_OF_THE_START = 0.01  # of the initial parameters in a moving average, before it is remarked


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run leaves.

    Attributes:
      values: the content of result.json.
      workdir: the folder.
    """

    values: dict[str, Any]
    workdir: pathlib.Path


def prepare(config: ConfigDict) -> Parts:
    """Opens and checks everything that a resolved config names; writes nothing.

    Raises:
      UsageError: when the data, the teacher, the mesh or the method do not fit.
    """
    return tasks.prepare(config)


def run(config: Mapping[str, Any] | ConfigDict, path: str | os.PathLike) -> Result:
    """Trains, evaluates and saves one model in its workdir; resumes the run that is there.

    Args:
      config: a config; its defaults are filled in.
      path: the workdir; made when it does not exist.

    Returns:
      The result, also when the run had finished before.

    Raises:
      UsageError: for a config that does not fit, before anything is written, and for a workdir
        that another process is writing.
      loop.Preempted: after SIGTERM or Ctrl-C, with the state saved.
      loop.Diverged: when a loss or gradient is not finite.
      checkpoints.CheckpointError: when a checkpoint cannot be written, or none can be read.
    """
    began = time.perf_counter()
    config = configs.resolve(config)
    paths = Workdir(storage.resolve_path(path, "--workdir"))
    for package in ("wandb", "trackio"):
        if config.logging[package]:
            trackers.require_package(package, config.logging[package])

    _refuse_quantized_student(config)
    licence_notes = tasks.licences.check(config)
    coordination.barrier()  # what any process finds wrong ends all before the first one writes
    with contextlib.ExitStack() as held:
        with storage.reporting_unreachable(paths.root, "--workdir"):
            resumed, done = coordination.broadcast_from_first(lambda: _claim(config, paths, held))
        if done is not None:
            return Result(done, paths.root)
        if config.training.deterministic:
            parallel.fix_gpu_order()
        cache = compilation_cache.opened(config.training.compilation_cache)
        with loop.stop_on_signals() as stop_requested, cache, paths.recording_failure():
            parts = prepare(config)
            parts = dataclasses.replace(parts, notes=(*parts.notes, *licence_notes))
            values = _start_and_train(parts, paths, resumed, stop_requested)
        values["wall_time_s"] = time.perf_counter() - began

        watchdog.mark(values["steps"], "writing the report", long=True)

        def write() -> dict[str, Any]:
            paths.write_result(values)
            reports.run_report(paths.root)
            return values

        return Result(coordination.broadcast_from_first(write), paths.root)


def _refuse_quantized_student(config: ConfigDict) -> None:
    """UsageError where a decoder's folder to start from holds codes, which have no gradient."""
    path = config.student.path if config.data.name == schema.TEXT else ""
    if path and (held := grids_of(path, key="student.path")):
        names = ", ".join(sorted({grid.name for grid in held.values()}))
        raise UsageError(
            f"student.path={path!r}: is quantized ({names}), and codes cannot be trained; expected "
            "the model that it was made from, with student.quantize for rounded weights"
        )


def _claim(
    config: ConfigDict, paths: Workdir, held: contextlib.ExitStack
) -> tuple[bool, dict[str, Any] | None]:
    """Takes the workdir for this process, which is the first one of its run.

    Args:
      config: resolved.
      paths: the workdir.
      held: gets what gives the workdir back.

    Returns:
      Whether the run resumes, and the content of result.json where it has finished.
    """
    resumed = paths.check(config)
    if not (resumed and paths.result.exists() and paths.report.exists()):
        held.enter_context(storage.holding(paths.root, "--workdir"))
        resumed = paths.check(config)  # again: its last holder may have written it meanwhile
        paths.remove_torn()
    if not (resumed and paths.result.exists()):
        return resumed, None
    result = paths.read_result()
    if not paths.report.exists():  # the run was killed after it had written its result
        reports.run_report(paths.root)
    return resumed, result


def _start_and_train(
    parts: Parts, paths: Workdir, resumed: bool, stop_requested: Callable[[], bool]
) -> dict[str, Any]:
    """Writes the manifest and trains; returns the content of result.json but the wall time."""
    config = parts.config
    started = coordination.broadcast_from_first(lambda: _write_start(parts, paths, resumed))
    paths.check_shared(started["time"])

    device, warning = parallel.describe_devices(parts.mesh)
    total = parts.total_steps
    with Progress(
        total,
        title=f"{config.student.name} by {config.method.name}",
        style=config.logging.progress if coordination.is_first() else "off",
        unit="rows" if config.data.name == schema.TEXT else "images",
        examples_per_step=config.training.batch_size,
    ) as progress:
        if parallel.platform(parts.mesh) == "cpu":
            device = f"{device}; kernels: {kernels.status()}"
        progress.note(f"device: {device}; workdir: {paths.root}; {total} steps")
        for line in (warning, started["warning"], *parts.notes):
            if line:
                progress.note(f"WARNING: {line}")
        for line in (*_notes_on_quantized(parts), *_notes_on_average(config, total)):
            progress.note(line)
        session = Session(parts, paths, progress, resumed)
        try:
            return training.train(session, stop_requested)
        finally:
            session.close()


def _notes_on_quantized(parts: Parts) -> Iterator[str]:
    """A line about what of the student is quantized, where some of it is."""
    if not (found := parts.description.get("quantized")):
        return
    average = " of its moving average" if parts.config.training.ema_decay else ""
    yield (
        f"student.quantize={found['recipe']}: {found['kernels']} matrices with "
        f"{found['parameters']} of {found['parameters'] + found['parameters_left']} parameters "
        f"compute as {', '.join(found['grids'])}, {found['bits_per_weight']:.3g} bits a weight; "
        f"the codes{average} are evaluated and saved"
    )


def _notes_on_average(config: ConfigDict, steps: int) -> Iterator[str]:
    """Lines about the moving average of the student, where one is kept."""
    decay = config.training.ema_decay
    if not decay:
        return
    setting = f"training.ema_decay={decay}"
    yield f"{setting}: the moving average of the student is evaluated and saved, not its last step"
    left = decay**steps
    if left > MOST_OF_THE_START and not config.training.ema_warmup:
        yield (
            f"WARNING: {setting}: after {steps} steps {left:.0%} of the average are still the "
            "initial parameters; expected training.ema_warmup=true, a smaller decay or more steps"
        )


def _write_start(parts: Parts, paths: Workdir, resumed: bool) -> dict[str, str | None]:
    """Writes config.json and manifest.json; returns the time of this start, and a warning."""
    config, warning = parts.config, None
    now = manifests.describe_run(**parts.description)
    manifest = now
    if resumed and paths.manifest.exists():
        manifest = paths.read_manifest()
        manifests.check_same_inputs(manifest, **parts.description)
        manifests.check_same_prompts(manifest, parts.description["data"])
        warning = manifests.other_kernels(manifest, now)
        manifest["teachers"] = _with_licences_of(now, manifest["teachers"])
        manifest["resumed"].append({key: now[key] for key in manifests.OF_A_START})
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(parts.initial))
    manifest["notes"] = list(parts.notes)
    manifest["total_steps"] = parts.total_steps
    # What the run reads back later is compared with these two.
    manifest.setdefault("run", uuid.uuid4().hex)
    manifest.setdefault("config", json.loads(configs.to_json(config)))
    copies = config.checkpoint.keep_last + 2  # the best one, and the one being written
    checkpoints.require_free_space(paths.root, copies * size, key="--workdir")
    with storage.reporting_unreachable(paths.root, "--workdir"):
        storage.make_folder(paths.root)
        workdir.write_json(paths.config, config.to_dict())
        workdir.write_json(paths.manifest, manifest)
    return {"time": now["started"], "warning": warning}


def _with_licences_of(
    now: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The teachers of a manifest with what is known, or stated, of their licences at this start."""
    return [
        {**entry, "licence": again["licence"]}
        for entry, again in zip(entries, now["teachers"], strict=True)
    ]


def headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of an evaluation that fit on one line."""
    own = ("errors", "accuracy", "nll", "perplexity", "ece", "kl", "agreement", *METRICS)
    teachers = tuple(f"teacher_{name}" for name in ("accuracy", "nll", *METRICS))
    return {name: metrics[name] for name in own + teachers if name in metrics}


def evaluate(
    path: str | os.PathLike,
    split: str,
    which: str,
    overrides: Mapping[str, str],
    *,
    data_of: str | None = None,
    dump: str | os.PathLike | None = None,
    taps: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluates the saved student of a finished run, or an imported network.

    Args:
      path: the workdir, or the folder of a model without a run.
      split: "test" or "validation".
      which: "final" (the last epoch) or "selected" (chosen on the validation split).
      overrides: new values of config keys that do not change the run: locations, such as
        {"data.path": "/new/place"}, and `schema.PROMPT_KEYS`, for other prompts. Of a model without
        a run, the data.
      data_of: of a model without a run, a config file with its data.
      dump: of images, an .npz file for the logits of every example; None for none.
      taps: features to write with them.

    Returns:
      Every metric of the split, with those of the teacher where the run had one.

    Raises:
      UsageError: when there is no such run, model or split, or an override would change the run.
    """
    lone_models.check_dump(dump, taps, on_text=None)
    paths = Workdir(storage.resolve_path(path, "--workdir"))
    if lone := _is_lone_model(paths):
        parts = lone_models.prepare(paths.root, which, overrides, data_of)
    elif data_of:
        raise UsageError(
            f"--config={data_of}: --workdir={paths.root} holds a run, which has its own data; "
            "expected no --config, or the folder of an imported network"
        )
    else:
        parts = prepare(_evaluation_config(paths.required_config(), split, overrides))
        manifests.check_same_inputs(paths.read_manifest(), **parts.description)
    if split not in parts.evaluators:
        raise UsageError(f"--split={split}: the run held out no such split (data.validation=0)")
    lone_models.check_dump(dump, taps, on_text=parts.config.data.name == schema.TEXT)
    watchdog.mark(0, f"evaluating {which}", long=True)
    _warn(*parts.notes)
    if lone:
        params, stats = parts.initial.params, parts.initial.stats
    else:
        _warn(coordination.broadcast_from_first(lambda: paths.check_saved_model(which)))
        params, stats = parts.files.load(paths.saved_model(which))
    with compilation_cache.opened(parts.config.training.compilation_cache):
        if dump:
            lone_models.dump(parts, split, params, stats, dump, taps)
        return parts.evaluators[split](params, stats)


def _is_lone_model(paths: Workdir) -> bool:
    """Whether the folder holds a model that no run of ours made, such as an imported one."""
    return source.kind_without_run(paths) is not None


def _warn(*lines: str) -> None:
    for line in lines if coordination.is_first() else ():
        if line:
            print(f"WARNING: {line}", file=sys.stderr, flush=True)


def _evaluation_config(saved: ConfigDict, split: str, overrides: Mapping[str, str]) -> ConfigDict:
    """The config of a run for the evaluation of one split.

    Raises:
      UsageError: an override that would change the run.
    """
    changed = configs.apply_overrides(saved, overrides)
    # Only one split is evaluated, so the prompts of the other one are not opened.
    changed["evaluation"]["prompts" if split == "test" else "test_prompts"] = ""
    may_differ: tuple[str, ...] = schema.PROMPT_KEYS
    if "evaluation.select" not in overrides:
        # No model is selected, and a metric of prompts that are not opened would be refused.
        changed["evaluation"]["select"] = "nll"
        may_differ += ("evaluation.select",)
    config = configs.resolve(changed)
    for difference in configs.differences(saved, config):
        if not difference.startswith(may_differ):
            raise UsageError(f"--config.{difference}; expected the run's own value")
    return config
