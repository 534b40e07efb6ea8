"""One plan: the step of a config compiled for a target, and what that says of a run there."""

import dataclasses
import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import parallel
from distill_jax.config import schema
from distill_jax.errors import UsageError
from distill_jax.planning import abstract, gpus, hlo, memory, roofline, step_flops
from distill_jax.planning.collectives import Collective, collectives
from distill_jax.planning.targets import Target
from distill_jax.training.step import compile_steps

# The TPU compiler's words for a program that has no room: of all that it needs, of its temporaries
# (among which its arguments are counted where all of the HBM is called available), or of an array.
_USED = re.compile(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm")
_WITHIN = re.compile(r"temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)")
_ARRAY = re.compile(r"Allocation \(size=(\d+)()\) would exceed memory \(size=(\d+)()\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config would be on a target.

    Attributes:
      config: resolved.
      target: the devices.
      mesh: their shape.
      parameters: how many numbers "student" and "teacher" are.
      memory: bytes of a device.
      fits: whether the step has room there.
      flops: FLOPs of a step; None where the step was not compiled for want of room.
      traffic: bytes that a device moves from and to its HBM in a step; likewise.
      messages: what it sends in a step; likewise.
      times: of a step; None too where the chip is in no table.
      unit: what a batch has so many of, "tokens" or "images".
      units: of them a step.
      steps: of the run; None where only the data can tell.
      notes: what a reader must know of these figures, a line each.
    """

    config: ConfigDict
    target: Target
    mesh: Mesh
    parameters: dict[str, int]
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
        """Model FLOPs over what the chips could have done in the time of an overlapped step."""
        if self.times is None:
            return None
        peak = self.target.chip.flops * self.mesh.size * self.times.overlapped
        return self.flops.model / peak

    @property
    def units_per_second(self) -> float | None:
        """Tokens or images, at best."""
        return self.units / self.times.overlapped if self.times else None

    @property
    def chip_hours(self) -> float | None:
        """Of the configured run's steps at best, without evaluations and checkpoints."""
        if self.times is None or self.steps is None:
            return None
        return self.steps * self.times.overlapped * self.mesh.size / 3600


def make_plan(config: ConfigDict, target: Target) -> Plan:
    """Compiles the step of a resolved config for a target; runs nothing.

    Raises:
      UsageError: the config does not fit the target's devices, or the teacher the student.
    """
    config, notes = _kernels(config, target)
    run = abstract.prepare(config, target.devices)
    where = jax.tree.map(lambda a: a.sharding, run.state)
    arguments = (run.state, run.frozen, run.resident, run.batches)
    lowered = compile_steps(run.recipe, run.mesh, where).lower(*arguments)
    held = memory.argument_bytes(*arguments)
    trained = {"student": run.state.params, "adapters": run.state.adapters}
    gradients = memory.bytes_per_device(trained)
    notes += notes_of(run, target)
    try:
        with warnings.catch_warnings():
            # A persistent cache of programs cannot hold those for devices that are not here.
            warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
            compiled, taken = memory.compile_step(lowered, target.platform)
    except jax.errors.JaxRuntimeError as error:
        needed = _refused(str(error), sum(held.values()), target.memory)
        if needed is None:
            raise
        within, limit = needed
        found = memory.Memory(held, gradients, within, 0, 0, limit)
        return _plan(run, target, found, False, None, None, (), None, notes)
    stats = compiled.memory_analysis()
    padding = stats.argument_size_in_bytes - sum(held.values())
    within = taken - stats.argument_size_in_bytes
    code = stats.generated_code_size_in_bytes
    found = memory.Memory(held, gradients, within, code, padding, target.memory)
    module = hlo.parse(compiled.as_text())
    if hlo.executed_computations(module)[1]:
        notes.append("a loop whose turns depend on its values counts once in traffic and messages")
    count = run.recipe.ahead
    messages = tuple(
        dataclasses.replace(c, count=c.count // count, bytes=c.bytes // count)
        for c in collectives(module, run.mesh)
    )
    done, traffic, times = step_flops.count_step(run), hlo.traffic(module) // count, None
    if target.chip is not None:
        times = roofline.times(
            target.chip,
            run.mesh,
            target.shape,
            flops=done.program,
            traffic=traffic,
            messages=messages,
        )
    fits = target.platform == "tpu" or found.fits  # the TPU compiler refuses what does not
    return _plan(run, target, found, fits, done, traffic, messages, times, notes)


def _kernels(config: ConfigDict, target: Target) -> tuple[ConfigDict, list[str]]:
    """A config whose kernels can be compiled here, and what a reader must know of that."""
    asked, absent = config.training.attention, target.platform == "gpu" and not gpus.cudnn()
    if config.data.name != schema.TEXT or not absent or asked not in ("auto", "cudnn"):
        return config, []
    if asked == "cudnn":
        raise UsageError(
            "training.attention='cudnn': cuDNN is not here to compile it; expected auto, xla, or "
            "pip install '.[cuda]'"
        )
    plain = configs.resolve(configs.apply_overrides(config, {"training.attention": "xla"}))
    return plain, [
        "attention is planned as XLA's, which keeps more and moves more than cuDNN's: cuDNN is not "
        "here to compile it (pip install '.[cuda]')"
    ]


def _refused(said: str, held: int, most: int) -> tuple[int, int] | None:
    """What a program needs beside its arguments, and what there is, of the compiler's refusal."""
    for pattern in (_USED, _WITHIN, _ARRAY):
        found = pattern.search(said)
        if not found:
            continue
        needed, limit = (round(float(found[n]) * _UNITS[found[n + 1]]) for n in (1, 3))
        if pattern is _WITHIN and limit + held <= most:  # what the arguments leave
            return needed, limit + held
        return needed if pattern is _ARRAY else max(needed - held, 0), limit
    return None


def _plan(run, target, found, fits, done, traffic, messages, times, notes) -> Plan:
    return Plan(
        config=run.config,
        target=target,
        mesh=run.mesh,
        parameters=run.parameters,
        memory=found,
        fits=fits,
        flops=done,
        traffic=traffic,
        messages=messages,
        times=times,
        unit=run.unit,
        units=run.units,
        steps=run.total_steps,
        notes=tuple(notes),
    )


def notes_of(run: abstract.Abstract, target: Target) -> list[str]:
    """What a reader must know of a plan beside its figures, and what is not divided."""
    found = []
    if run.config.training.compute_dtype == "float32" and target.chip is not None:
        found.append("the student computes in float32; the times are those of bfloat16's peak")
    if run.config.teacher.store and run.config.teacher.path:
        found.append("the teacher of evaluations, which lies on the devices too, is not counted")
    if target.shape:
        found += _parts_of_dimensions(run.mesh, target.shape)
    arrays = {"params": run.state.params, "adapters": run.state.adapters}
    for name, shape, axis in _undivided((arrays, run.frozen), run.mesh):
        found.append(f"{name} {list(shape)} is whole over {axis}={run.mesh.shape[axis]}")
    return found


def _undivided(tree: Any, mesh: Mesh) -> list[tuple[str, tuple[int, ...], str]]:
    return sorted(set(parallel.undivided(tree, mesh)))


def _parts_of_dimensions(mesh: Mesh, shape: Sequence[int]) -> list[str]:
    """Axes whose groups are parts of a dimension of the slice, and so closed rings on none."""
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
