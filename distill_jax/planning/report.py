"""A plan as text and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from distill_jax.planning.chips import Chip
from distill_jax.planning.plan import Plan
from distill_jax.planning.step_flops import StepFlops

_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _scaled(value: float, unit: str) -> str:
    for scale, letter in _SCALES:
        if value >= scale:
            return f"{value / scale:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}"


def _sized(value: int) -> str:
    return f"{value / 2**30:9.2f} GiB" if value >= 2**30 else f"{value / 2**20:9.2f} MiB"


def to_json(plan: Plan, advice: str | None = None) -> dict[str, Any]:
    """All figures of a plan: bytes of one device; FLOPs of a step over all devices; seconds.

    Args:
      plan: the plan.
      advice: a change that would make it fit.
    """
    target, found, config = plan.target, plan.memory, plan.config
    times = None
    if plan.times is not None:
        times = dataclasses.asdict(plan.times) | {
            "bound": plan.times.bound,
            "step": plan.times.overlapped,
            "step_without_overlap": plan.times.without_overlap,
        }
    return {
        "target": target.name,
        "devices": plan.mesh.size,
        "chip": None if target.chip is None else {"name": target.kind} | _fields(target.chip),
        "mesh": dict(plan.mesh.shape),
        "remat": config.training.remat,
        "teacher_dtype": _teacher_dtype(plan),
        "batch_size": config.training.batch_size,
        "accumulate": config.training.accumulate,
        "parameters": plan.parameters,
        "saved_model_bytes": plan.saved_bytes,
        "fits": plan.fits,
        "advice": advice,
        "bytes_a_device": {
            **found.held,
            "padding": found.padding,
            "gradients": found.gradients,
            "activations": _activations(plan),
            "program": found.code,
            "total": found.total,
            "process": found.process,
            "limit": found.limit,
        },
        "flops_a_step": None
        if plan.flops is None
        else dataclasses.asdict(plan.flops) | {"model": plan.flops.model},
        "hbm_bytes_a_step": plan.traffic,
        "collectives_a_step": [dataclasses.asdict(message) for message in plan.messages],
        "seconds_a_step": times,
        "mfu": plan.mfu,
        f"{plan.unit}_a_step": plan.units,
        f"{plan.unit}_a_second": plan.units_per_second,
        "steps": plan.steps,
        "chip_hours": plan.chip_hours,
        "notes": list(plan.notes),
    }


def _fields(chip: Chip) -> dict[str, Any]:
    kept = ("flops", "memory", "bandwidth", "link", "network", "source")
    return {name: getattr(chip, name) for name in kept}


def _activations(plan: Plan) -> int:
    """XLA's temporaries without the gradients, whose memory other temporaries may reuse."""
    return max((plan.memory.temporaries or 0) - plan.memory.gradients, 0)


def _teacher_dtype(plan: Plan) -> str:
    teacher = plan.config.teacher
    if teacher.store:
        return "stored"
    return teacher.compute_dtype if teacher.quantize == "none" else teacher.quantize


def _quantized(plan: Plan) -> str:
    recipe = plan.config.student.quantize
    return "" if recipe == "none" else f", matrices as {recipe}"


def to_text(plan: Plan, advice: str | None = None) -> str:
    """The page that `distill-jax plan` prints.

    Args:
      plan: the plan.
      advice: a change that would make it fit.
    """
    target, found = plan.target, plan.memory
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
    lines = [
        f"target      {target.name}: {plan.mesh.size} devices, mesh {mesh}",
        "parameters  "
        + ", ".join(f"{k} {_scaled(v, '').strip()}" for k, v in plan.parameters.items()),
        f"saved model {_sized(plan.saved_bytes).strip()}{_quantized(plan)}",
        "",
        "bytes of a device",
    ]
    parts = {name: size for name, size in found.held.items() if size}
    parts |= {"padding": found.padding} if found.padding > 0 else {}
    parts |= {"gradients": found.gradients, "activations": _activations(plan)}
    parts |= {"program": found.code} if found.code else {}
    lines += [f"  {name:<12}{_sized(size)}" for name, size in parts.items()]
    verdict = "fits" if plan.fits else "does not fit"
    within = f" of {found.limit / 2**30:.2f} GiB: {verdict}"
    lines.append(f"  {'total':<12}{_sized(found.total)}{'' if found.process else within}")
    if found.process:
        lines.append(
            f"  {'process':<12}{_sized(found.process)}: libraries, compiler, images on the host"
        )
        lines.append(f"  {'all':<12}{_sized(found.total + found.process)}{within}")
    if plan.flops is not None:
        lines += ["", *_step_lines(plan, plan.flops)]
    if plan.notes:
        lines += ["", *_first_notes(plan.notes)]
    if advice is not None:
        lines += ["", advice]
    return "\n".join(lines)


def _first_notes(notes: Sequence[str]) -> list[str]:
    lines = [f"note: {note}" for note in notes[:8]]
    return lines + ([f"note: and {len(notes) - 8} more, in the JSON"] if len(notes) > 8 else [])


def _step_lines(plan: Plan, flops: StepFlops) -> list[str]:
    lines = [
        "one step",
        f"  teacher forward   {_scaled(flops.teacher_forward, 'FLOP')}",
        f"  student forward   {_scaled(flops.student_forward, 'FLOP')}",
        f"  student backward  {_scaled(flops.student_backward, 'FLOP')}",
    ]
    if flops.rollout:
        lines.append(f"  student rollout   {_scaled(flops.rollout, 'FLOP')}")
    lines.append(
        f"  all               {_scaled(flops.model, 'FLOP')}; with recomputation "
        f"{_scaled(flops.program, 'FLOP')}"
    )
    for c in plan.messages:
        axes = " x ".join(c.axes) or "mixed"
        lines.append(f"  {c.kind} over {axes}: {_scaled(c.bytes, 'B')} sent, {c.count} calls")
    return [*lines, *_time_lines(plan)]


def _time_lines(plan: Plan) -> list[str]:
    times, mfu, rate = plan.times, plan.mfu, plan.units_per_second
    if times is None or mfu is None or rate is None:
        return ["  no times: this chip is not in the table of distill_jax/planning/chips.py"]
    lines = [
        f"  compute {times.compute:.4g} s, HBM {times.memory:.4g} s, interconnect "
        f"{times.interconnect:.4g} s: bound by {times.bound}",
        f"  at least {times.overlapped:.4g} s (all overlapped; {times.without_overlap:.4g} s with "
        f"no overlap), MFU at most {100 * mfu:.1f} %, {_scaled(rate, '')}{plan.unit}/s",
    ]
    if plan.chip_hours is None:
        per = 1e9 / rate * plan.mesh.size / 3600
        lines.append(f"  {per:.4g} chip-hours for 1e9 {plan.unit}; of the run: set training.steps")
    else:
        lines.append(f"  {plan.chip_hours:.4g} chip-hours for the run's {plan.steps} steps")
    return lines


def ranking(plans: Sequence[Plan]) -> str:
    """A table of plans, one a line, in the given order."""
    lines = ["   data fsdp tensor  remat teacher   GiB/device  step s  bound         MFU"]
    for number, plan in enumerate(plans, 1):
        mesh, times = plan.mesh.shape, plan.times
        step = f"{times.overlapped:7.4g} {times.bound:<12}" if times else f"{'-':>7} {'-':<12}"
        mfu = "-" if plan.mfu is None else f"{100 * plan.mfu:5.1f} %"
        lines.append(
            f"{number:2} {mesh['data']:4} {mesh['fsdp']:4} {mesh['tensor']:6}  "
            f"{plan.config.training.remat:<5} {_teacher_dtype(plan):<9} "
            f"{plan.memory.total / 2**30:9.2f} {step} {mfu}"
        )
    return "\n".join(lines)


def settings(plan: Plan) -> str:
    """The flags with which a run has the settings of a plan that `search` found."""
    config = plan.config
    chosen = {f"mesh.{axis}": size for axis, size in plan.mesh.shape.items()}
    chosen["training.remat"] = config.training.remat
    chosen["teacher.compute_dtype"] = config.teacher.compute_dtype
    chosen["teacher.quantize"] = config.teacher.quantize
    return " ".join(f"--config.{key}={value}" for key, value in chosen.items())
