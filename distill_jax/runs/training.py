"""The training of a run whose parts are opened: from its start or last checkpoint to its result."""

import math
from collections.abc import Callable
from typing import Any

from distill_jax import models, parallel
from distill_jax.processes import coordination, watchdog
from distill_jax.runs.session import Session
from distill_jax.tasks.base import Parts
from distill_jax.training import compilation_cache, loop, state, step

MOST_STEPS_A_CALL = 32  # on accelerators, where the config leaves it open

# A teacher's accuracy on validation above that on test, from where on it is remarked: as a share,
# and in standard deviations of the difference.
SUSPICIOUS_GAP = 0.02
SUSPICIOUS_DEVIATIONS = 5.0

Advance = Callable[[state.TrainState, int, list[Any]], state.TrainState]


def make_timetable(parts: Parts) -> loop.Timetable:
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


def train(session: Session, stop_requested: Callable[[], bool]) -> dict[str, Any]:
    """Trains, saves and evaluates; returns the content of result.json."""
    parts = session.parts
    now, at, position = session.start()
    compilation_cache.announce("steps", session.note)
    now = loop.run_steps(
        now,
        at,
        advance=_compile_stages(parts),
        batches=parts.feed.at(position),
        timetable=make_timetable(parts),
        hooks=session,
        stop_requested=stop_requested,
    )
    watchdog.mark(parts.total_steps, "saving the last checkpoint", long=True)
    session.checkpoints.wait()
    final = _save_and_evaluate(session, now, parts.total_steps, "final")
    _write_record(session, now)
    session.show_final(final)
    return _result(session, final, _select(session, now, final))


def _compile_stages(parts: Parts) -> Advance:
    """A function that takes the steps of a group of batches, by the program of their stage."""
    compiled = {
        recipe.begin: (
            step.compile_steps(recipe, parts.mesh, parts.layout),
            step.compile_reset(recipe, parts.mesh, parts.layout),
        )
        for recipe in parts.recipes
    }

    def advance(now: state.TrainState, at: int, batches: list[Any]) -> state.TrainState:
        begin = parts.recipe_at(at).begin
        take_steps, reset = compiled[begin]
        if at == begin > 0:
            now = reset(now)
        return take_steps(now, parts.frozen, parts.resident, step.put_batches(batches, parts.mesh))

    return advance


def _select(
    session: Session, now: state.TrainState, final: dict[str, Any]
) -> dict[str, Any] | None:
    """Saves the model that was best on the validation split; its metrics, None without one."""
    parts = session.parts
    best_step = coordination.broadcast_from_first(session.checkpoints.best_step)
    if best_step == parts.total_steps:  # often so, and evaluating again is not free
        parts.files.save(session.paths.selected, *now.evaluated)
        return final
    if "validation" not in parts.evaluators:
        return None
    best = session.checkpoints.restore_best(session.abstract_state())
    if best is None:
        return None
    return _save_and_evaluate(session, best.state, best.step, "selected")


def _save_and_evaluate(
    session: Session, now: state.TrainState, step_of: int, which: str
) -> dict[str, Any]:
    """Writes a model folder; the metrics of every split, with the step and the fingerprint."""
    parts = session.parts
    folder = session.paths.saved_model(which)
    watchdog.mark(parts.total_steps, f"writing {folder.name}", long=True)
    fingerprint = parts.files.save(folder, *now.evaluated)
    watchdog.mark(parts.total_steps, f"evaluating {folder.name}", long=True)
    evaluated = parts.evaluated(now)
    metrics = {name: evaluator(*evaluated) for name, evaluator in parts.evaluators.items()}
    return {"step": step_of, "parameters_sha256": fingerprint, "validation": None, **metrics}


def _write_record(session: Session, now: state.TrainState) -> None:
    """Writes what the page shows of the last student's predictions, where the task has it."""
    parts = session.parts
    if parts.record is None:
        return
    watchdog.mark(parts.total_steps, "recording predictions", long=True)
    found = parts.record(*now.evaluated)
    coordination.broadcast_from_first(lambda: session.paths.write_record(found))


def _result(
    session: Session, final: dict[str, Any], selected: dict[str, Any] | None
) -> dict[str, Any]:
    """The content of result.json."""
    parts, config, history = session.parts, session.config, session.history
    total, seconds = parts.total_steps, history.training_time_s
    trained = models.parameter_count(parts.initial.params)
    base = parts.description.get("base")
    notes = list(filter(None, [_note_on_teacher(final), _note_on_numbers(final)]))
    for line in notes:
        session.note(f"WARNING: {line}")
    return {
        "final": final,
        "selected": selected,
        "best_test": history.best_test,
        "parameters": base["parameters"] if base else trained,
        "trained_parameters": trained,
        "parameters_sha256": final["parameters_sha256"],
        "teacher_parameters": [entry["parameters"] for entry in parts.description["teachers"]],
        "steps": total,
        "epochs": total / parts.steps_per_epoch,
        "training_time_s": seconds,
        "examples_per_second": total * config.training.batch_size / max(seconds, 1e-9),
        "device": parallel.describe_devices(parts.mesh)[0],
        "method": config.method.name,
        "student": config.student.name,
        "seed": config.seed,
        **({"quantized": quantized} if (quantized := parts.description.get("quantized")) else {}),
        "evaluated": "moving average" if parts.initial.average else "last step",
        "notes": notes,
    }


def _note_on_numbers(final: dict[str, Any]) -> str:
    """A line where a figure is no finite number."""
    wrong = [
        f"{name} of the {split} split"
        for split, values in final.items()
        for name, value in (values.items() if isinstance(values, dict) else ())
        if isinstance(value, float) and not math.isfinite(value)
    ]
    return f"not a finite number: {', '.join(wrong)}" if wrong else ""


def _note_on_teacher(final: dict[str, Any]) -> str:
    """A line where a teacher is so much better on the validation split that it must know it."""
    found = [final.get(split) or {} for split in ("validation", "test")]
    if not all("teacher_accuracy" in values for values in found):
        return ""
    (p, n), (q, m) = ((values["teacher_accuracy"], values["count"]) for values in found)
    mean = (p * n + q * m) / (n + m)
    deviation = math.sqrt(mean * (1 - mean) * (1 / n + 1 / m))
    if p - q < max(SUSPICIOUS_GAP, SUSPICIOUS_DEVIATIONS * deviation):
        return ""
    return (
        f"the teacher's accuracy is {p:.2%} on the validation split and {q:.2%} on the test split: "
        "it was probably trained on the validation examples, so that its figures there are not "
        "comparable with the student's"
    )
