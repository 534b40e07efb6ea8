"""A run from its config to its result: claim the workdir, begin or resume, train, save."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import models, parallel, reports, storage
from distill_jax.config import schema
from distill_jax.errors import UsageError
from distill_jax.evaluation.text_metrics import METRICS
from distill_jax.processes import coordination, watchdog
from distill_jax.runs import workdir
from distill_jax.runs.session import Session
from distill_jax.runs.workdir import Workdir
from distill_jax.tasks.base import Parts
from distill_jax.tasks.images import parts as image_parts
from distill_jax.tasks.language import parts as text_parts
from distill_jax.training import checkpoints, loop, state, step
from distill_jax.training.logging.progress import Progress

MOST_STEPS_A_CALL = 32  # on accelerators, where the config leaves it open


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
    """Opens and checks all that a resolved config names; writes nothing.

    Raises:
      UsageError: when the data, the teacher, the mesh or the method do not fit.
    """
    kind = text_parts if config.data.name == schema.TEXT else image_parts
    return kind.prepare(config)


def timetable_of(parts: Parts) -> loop.Timetable:
    """When a run logs, evaluates and saves, and how many steps it computes in one call."""
    config, total = parts.config, parts.total_steps
    save_at = loop.epoch_steps(config.checkpoint.every_epochs, parts.steps_per_epoch, total)
    if config.checkpoint.every_steps:
        save_at |= frozenset(
            range(config.checkpoint.every_steps, total, config.checkpoint.every_steps)
        )
    log_every = config.logging.every_steps
    # A divisor of log_every, so that no single steps are left over before a line of the log.
    divisors = [n for n in range(1, MOST_STEPS_A_CALL + 1) if log_every % n == 0]
    default_call = parts.recipe.ahead if step.on_cpu(parts.mesh) else divisors[-1]
    return loop.Timetable(
        total_steps=total,
        log_every=log_every,
        steps_per_call=config.training.steps_per_call or default_call,
        begin_at=frozenset(recipe.begin for recipe in parts.recipes),
        evaluate_at=loop.epoch_steps(config.evaluation.every_epochs, parts.steps_per_epoch, total),
        save_at=save_at,
    )


def run(config: Mapping[str, Any] | ConfigDict, where: str | os.PathLike) -> Result:
    """Trains, evaluates and saves one model in its workdir; resumes what was begun there.

    Args:
      config: a config; its defaults are filled in.
      where: the workdir; made when it does not exist.

    Returns:
      The result, also when the run had finished before.

    Raises:
      UsageError: for a config that does not fit, before anything is written.
      loop.Preempted: after SIGTERM, with the state saved.
      loop.Diverged: when a loss or gradient is not finite.
      checkpoints.CheckpointError: when a checkpoint cannot be written, or none can be read.
    """
    began = time.perf_counter()
    config = configs.resolve(config)
    paths = Workdir(storage.resolve_path(where, "--workdir"))

    def claim() -> tuple[bool, dict[str, Any] | None]:
        resumed = paths.check(config)
        done = resumed and paths.result.exists()
        return resumed, workdir.read_json(paths.result) if done else None

    with storage.reporting_unreachable(paths.root, "--workdir"):
        resumed, done = coordination.broadcast_from_first(claim)
    if done is not None:
        return Result(done, paths.root)
    if config.training.deterministic:
        parallel.fix_gpu_order()
    with loop.stop_on_sigterm() as stop_requested:
        values = _run(prepare(config), paths, resumed, stop_requested)
    values["wall_time_s"] = time.perf_counter() - began

    watchdog.mark(values["steps"], "writing the report", long=True)

    def write() -> dict[str, Any]:
        workdir.write_json(paths.result, values)
        reports.run_report(paths.root)
        return values

    return Result(coordination.broadcast_from_first(write), paths.root)


def _run(
    parts: Parts, paths: Workdir, resumed: bool, stop_requested: Callable[[], bool]
) -> dict[str, Any]:
    """The content of result.json, of a run whose parts are opened and checked."""
    config = parts.config
    paths.check_shared(coordination.broadcast_from_first(lambda: _begun(parts, paths, resumed)))

    device, warning = parallel.describe_devices(parts.mesh)
    total = parts.total_steps
    title = f"{config.student.name} by {config.method.name}"
    unit = "rows" if config.data.name == schema.TEXT else "images"
    style = config.logging.progress if coordination.is_first() else "off"
    with Progress(total, title=title, style=style, unit=unit) as progress:
        progress.note(f"device: {device}; workdir: {paths.root}; {total} steps")
        if warning:
            progress.note(f"WARNING: {warning}")
        session = Session(parts, paths, progress, resumed)
        try:
            return _train(session, stop_requested)
        finally:
            session.close()


def _begun(parts: Parts, paths: Workdir, resumed: bool) -> str:
    """Writes the config and the manifest of a run; returns when it has started."""
    config = parts.config
    now = workdir.describe_run(**parts.description)
    manifest = now
    if resumed and paths.manifest.exists():
        manifest = workdir.read_json(paths.manifest)
        workdir.check_same_inputs(manifest, **parts.description)
        workdir.check_same_prompts(manifest, parts.description["data"])
        kept = ("started", "command", "devices", "processes")
        manifest["resumed"].append({key: now[key] for key in kept})
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(parts.initial))
    copies = config.checkpoint.keep_last + 2  # the best one, and the one being written
    checkpoints.free_space(paths.root, copies * size, key="workdir")
    with storage.reporting_unreachable(paths.root, "--workdir"):
        storage.make_folder(paths.root)
        workdir.write_json(paths.config, config.to_dict())
        workdir.write_json(paths.manifest, manifest)
    return now["started"]


def _train(session: Session, stop_requested: Callable[[], bool]) -> dict[str, Any]:
    """From the start or the last checkpoint to the final figures."""
    parts, config, paths = session.parts, session.config, session.paths
    now, at, position = session.start()
    compiled = {
        recipe.begin: (
            step.compile_steps(recipe, parts.mesh, parts.layout),
            step.compile_reset(recipe, parts.mesh, parts.layout),
        )
        for recipe in parts.recipes
    }

    def advance(now: state.TrainState, at: int, batches: list[Any]) -> state.TrainState:
        begin = parts.recipe_at(at).begin
        steps, reset = compiled[begin]
        if at == begin > 0:
            now = reset(now)
        placed = step.put_batches(batches, parts.mesh)
        return steps(now, parts.frozen, parts.resident, placed)

    now = loop.run_steps(
        now,
        at,
        advance=advance,
        batches=parts.batches(position),
        timetable=timetable_of(parts),
        hooks=session,
        stop_requested=stop_requested,
    )
    total = parts.total_steps
    watchdog.mark(total, "saving the last checkpoint", long=True)
    session.checkpoints.wait()

    def figures(now: state.TrainState, step_of: int, folder: pathlib.Path) -> dict[str, Any]:
        watchdog.mark(total, f"writing {folder.name}", long=True)
        fingerprint = parts.save(folder, *now.evaluated)
        watchdog.mark(total, f"evaluating {folder.name}", long=True)
        found = {name: evaluator(*now.evaluated) for name, evaluator in parts.evaluators.items()}
        return {"step": step_of, "parameters_sha256": fingerprint, "validation": None, **found}

    final = figures(now, total, paths.model)
    selected = None
    best = coordination.broadcast_from_first(session.checkpoints.best_step)
    if best == total:  # often, and evaluating is not free
        parts.save(paths.selected, *now.evaluated)
        selected = final
    elif "validation" in parts.evaluators:
        best = session.checkpoints.restore_best(session.abstract())
        if best is not None:
            selected = figures(best.state, best.step, paths.selected)
    trained, base = models.parameter_count(parts.initial.params), parts.description.get("base")
    return {
        "final": final,
        "selected": selected,
        "best_test": session.best_test,
        "parameters": base["parameters"] if base else trained,
        "trained_parameters": trained,
        "parameters_sha256": final["parameters_sha256"],
        "teacher_parameters": [entry["parameters"] for entry in parts.description["teachers"]],
        "steps": total,
        "epochs": total / parts.steps_per_epoch,
        "training_time_s": session.seconds,
        "examples_per_second": total * config.training.batch_size / max(session.seconds, 1e-9),
        "device": parallel.describe_devices(parts.mesh)[0],
        "method": config.method.name,
        "student": config.student.name,
        "seed": config.seed,
    }


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation that fit on one line."""
    wanted = ("errors", "accuracy", "nll", "perplexity", "ece", "kl", "agreement")
    wanted += (*METRICS, "teacher_accuracy", "teacher_nll")
    wanted += tuple(f"teacher_{name}" for name in METRICS)
    return {name: figures[name] for name in wanted if name in figures}


def evaluate(
    where: str | os.PathLike, split: str, which: str, overrides: Mapping[str, str]
) -> dict[str, Any]:
    """Evaluates the saved student of a finished run.

    Args:
      where: the workdir.
      split: "test" or "validation".
      which: "final" (the last epoch) or "selected" (chosen on the validation split).
      overrides: config keys that tell where things lie now, such as {"data.path": "/new/place"},
        and those of `schema.PROMPT_KEYS`, for prompts that the run itself did not have.

    Returns:
      Every figure of `metrics.summarise`, with those of the teacher where the run had one.

    Raises:
      UsageError: when there is no such run, model or split, or an override would change the run.
    """
    paths = Workdir(storage.resolve_path(where, "--workdir"))
    with storage.reporting_unreachable(paths.root, "--workdir"):
        stored = paths.stored_config()
    if stored is None:
        raise UsageError(f"--workdir={where}: no run there; expected a config.json")
    asked = configs.apply_overrides(stored, overrides)
    # The other split is not evaluated, and no model is selected.
    asked["evaluation"]["prompts" if split == "test" else "test_prompts"] = ""
    free = schema.PROMPT_KEYS
    if "evaluation.select" not in overrides:
        asked["evaluation"]["select"] = "nll"
        free += ("evaluation.select",)
    config = configs.resolve(asked)
    for difference in configs.differences(stored, config):
        if difference.startswith(free):
            continue
        raise UsageError(f"--config.{difference}; expected the run's own value")
    parts = prepare(config)
    workdir.check_same_inputs(workdir.read_json(paths.manifest), **parts.description)
    if split not in parts.evaluators:
        raise UsageError(f"--split={split}: the run held out no such split (data.validation=0)")
    watchdog.mark(0, f"evaluating {which}", long=True)
    saved = parts.load(paths.model if which == "final" else paths.selected)
    return parts.evaluators[split](*saved)
