"""A plan: the step of a config compiled for a target, and the figures of a run on that target."""

import dataclasses
import re
import warnings
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from jax.stages import Compiled
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import parallel, tasks
from distill_jax.config import schema
from distill_jax.errors import UsageError
from distill_jax.planning import gpus, hlo, memory, roofline, step_flops
from distill_jax.planning.collectives import Collective, collectives
from distill_jax.planning.targets import Target
from distill_jax.processes import machine
from distill_jax.tasks import AbstractStep
from distill_jax.training.step import compile_steps

# The TPU compiler's errors for a program that does not fit. They state what the program needs in
# total, what its temporaries need (with the arguments if all of the HBM is called available), or
# the size of one array.
_USED = re.compile(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm")
_WITHIN = re.compile(r"temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)")
_ARRAY = re.compile(r"Allocation \(size=(\d+)()\) would exceed memory \(size=(\d+)()\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The figures of a config on a target.

    Attributes:
      config: the resolved config.
      target: the devices.
      mesh: the mesh of the devices.
      parameters: the number of parameters of "student" and "teacher".
      saved_bytes: of the arrays of the student's folder.
      memory: the memory of a device.
      fits: whether the step fits in it.
      flops: FLOPs of a step; None if the step could not be compiled because it does not fit.
      traffic: bytes that a device moves from and to its HBM in a step; None likewise.
      messages: the collectives of a step; empty likewise.
      times: lower bounds of a step's time; None likewise, and if the chip is in no table.
      unit: the unit of a batch's size, "tokens" or "images".
      units: their number in a step.
      steps: the steps of the run; None if that depends on the data.
      notes: remarks on these figures, one line each.
    """

    config: ConfigDict
    target: Target
    mesh: Mesh
    parameters: dict[str, int]
    saved_bytes: int
    memory: memory.Memory
    fits: bool
    flops: step_flops.StepFlops | None
    traffic: int | None
    messages: tuple[Collective, ...]
    times: roofline.StepTimes | None
    unit: str
    units: int
    steps: int | None
    notes: tuple[str, ...]

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: model FLOPs over peak FLOPs during an overlapped step."""
        if self.times is None or self.flops is None or self.target.chip is None:
            return None
        peak = self.target.chip.flops * self.mesh.size * self.times.overlapped
        return self.flops.model / peak

    @property
    def units_per_second(self) -> float | None:
        """Tokens or images a second, at most."""
        return self.units / self.times.overlapped if self.times else None

    @property
    def chip_hours(self) -> float | None:
        """Chip-hours of all steps of the run, at least, without evaluations and checkpoints."""
        if self.times is None or self.steps is None:
            return None
        return self.steps * self.times.overlapped * self.mesh.size / 3600


def make_plan(config: ConfigDict, target: Target) -> Plan:
    """Compiles the step of a resolved config for a target; runs nothing.

    Raises:
      UsageError: the config does not fit the target's devices, or the teacher the student.
    """
    config, attention_notes = _compilable_attention(config, target)
    run = tasks.abstract_step(config, target.devices)
    plan = plan_without_program(run, target, attention_notes)
    shardings = jax.tree.map(lambda a: a.sharding, run.state)
    arguments = (run.state, run.frozen, run.resident, run.batches)
    lowered = compile_steps(run.recipe, run.mesh, shardings).lower(*arguments)
    try:
        with warnings.catch_warnings():
            # The persistent compilation cache cannot hold programs for devices that are absent.
            warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
            compiled, taken = memory.compile_step(lowered, target.platform)
    except jax.errors.JaxRuntimeError as error:
        needed = _out_of_memory(str(error), plan.memory.arguments, target.memory)
        if needed is None:
            raise
        temporaries, limit = needed
        return dataclasses.replace(
            plan, memory=dataclasses.replace(plan.memory, temporaries=temporaries, limit=limit)
        )
    return _with_program(plan, run, compiled, taken)


def plan_without_program(run: AbstractStep, target: Target, notes: Sequence[str] = ()) -> Plan:
    """A plan that knows only the arguments and the gradients of a step, and does not fit.

    Args:
      run: the step.
      target: the devices.
      notes: the first of the plan's notes.
    """
    held = memory.argument_bytes(run.state, run.frozen, run.resident, run.batches)
    trained = {"student": run.state.params, "adapters": run.state.adapters}
    gradients = memory.bytes_per_device(trained)
    return Plan(
        config=run.config,
        target=target,
        mesh=run.mesh,
        parameters=run.parameters,
        saved_bytes=run.saved_bytes,
        memory=memory.Memory(held, gradients, None, 0, 0, target.memory),
        fits=False,
        flops=None,
        traffic=None,
        messages=(),
        times=None,
        unit=run.unit,
        units=run.units,
        steps=run.total_steps,
        notes=(*notes, *notes_of(run, target)),
    )


def _with_program(plan: Plan, run: AbstractStep, compiled: Compiled, taken: int) -> Plan:
    """The plan with the figures of its compiled step.

    Args:
      plan: without them.
      run: the step.
      compiled: the program of `run.recipe.ahead` steps.
      taken: bytes per device of its arguments, outputs and temporaries.
    """
    target, steps = plan.target, run.recipe.ahead
    stats = memory.stats_of(compiled)
    found = dataclasses.replace(
        plan.memory,
        temporaries=taken - stats.argument_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        padding=stats.argument_size_in_bytes - sum(plan.memory.held.values()),
        process=_process_bytes(plan) if target.platform == "cpu" else 0,
    )
    module = hlo.parse(compiled.as_text() or "")
    notes = plan.notes
    if hlo.executed_computations(module)[1]:
        notes += ("a loop whose trip count depends on values counts once in traffic and messages",)
    messages = tuple(
        dataclasses.replace(c, count=c.count // steps, bytes=c.bytes // steps)
        for c in collectives(module, run.mesh)
    )
    flops, traffic = step_flops.count_step(run), hlo.traffic(module) // steps
    times = None
    if target.chip is not None:
        times = roofline.times(
            target.chip,
            run.mesh,
            target.shape,
            flops=flops.program,
            traffic=traffic,
            messages=messages,
        )
    return dataclasses.replace(
        plan,
        memory=found,
        fits=target.platform == "tpu" or found.fits,  # the TPU compiler rejects what does not fit
        flops=flops,
        traffic=traffic,
        messages=messages,
        times=times,
        notes=notes,
    )


def _process_bytes(plan: Plan) -> int:
    """A device's share of what the process of a run holds besides arrays and temporaries.

    This very process has loaded the same libraries and compiled the same step. A run also keeps
    the images that it has decoded.
    """
    return machine.resident() // len(plan.target.devices) + plan.memory.held["data"]


def _compilable_attention(config: ConfigDict, target: Target) -> tuple[ConfigDict, list[str]]:
    """The config with an attention that can be compiled here, and a note if that is another one."""
    chosen, absent = config.training.attention, target.platform == "gpu" and not gpus.cudnn()
    if config.data.name != schema.TEXT or not absent or chosen not in ("auto", "cudnn"):
        return config, []
    if chosen == "cudnn":
        raise UsageError(
            "training.attention='cudnn': compiling it needs cuDNN, which is not installed; expected"
            " auto, xla, or pip install '.[cuda]'"
        )
    plain = configs.resolve(configs.apply_overrides(config, {"training.attention": "xla"}))
    return plain, [
        "attention is planned as XLA's, which keeps more and moves more than cuDNN's: compiling "
        "cuDNN's needs cuDNN, which is not installed (pip install '.[cuda]')"
    ]


def _out_of_memory(message: str, held: int, most: int) -> tuple[int, int] | None:
    """What the compiler's error says of a program that does not fit; None for another error.

    Args:
      message: the error.
      held: bytes of the arguments.
      most: bytes of a device.

    Returns:
      Bytes that the program needs in addition to its arguments, and bytes of the device.
    """
    for pattern in (_USED, _WITHIN, _ARRAY):
        found = pattern.search(message)
        if not found:
            continue
        needed, limit = (round(float(found[n]) * _UNITS[found[n + 1]]) for n in (1, 3))
        if pattern is _WITHIN and limit + held <= most:  # the limit is what the arguments leave
            return needed, limit + held
        return needed if pattern is _ARRAY else max(needed - held, 0), limit
    return None


def notes_of(run: AbstractStep, target: Target) -> list[str]:
    """Remarks on a plan's figures, and the arrays that are not divided over an axis."""
    found = []
    if run.config.training.compute_dtype == "float32" and target.chip is not None:
        found.append("the student computes in float32; the times are those of bfloat16's peak")
    if run.config.teacher.store and run.config.teacher.path:
        found.append("the teacher of evaluations, which is on the devices too, is not counted")
    if target.shape:
        found += _partial_dimensions(run.mesh, target.shape)
    arrays = {"params": run.state.params, "adapters": run.state.adapters}
    undivided = sorted(set(parallel.undivided((arrays, run.frozen), run.mesh)))
    for name, shape, axis in undivided:
        found.append(f"{name} {list(shape)} is whole over {axis}={run.mesh.shape[axis]}")
    return found


def _partial_dimensions(mesh: Mesh, shape: Sequence[int]) -> list[str]:
    """A note for each axis whose groups span part of a dimension, so that no ring closes."""
    found = []
    for axis in mesh.axis_names:
        members = [mesh.devices.flat[n].coords for n in roofline.group(mesh, (axis,))]
        for dimension, size in enumerate(shape):
            if 1 < len({coords[dimension] for coords in members}) < size:
                found.append(
                    f"mesh.{axis}={mesh.shape[axis]} takes a part of a dimension of the slice, "
                    "where rings are not closed"
                )
                break
    return found
