"""Memory of a device: the arguments of a step, by their shardings, and XLA's temporaries."""

import dataclasses
import math
import pathlib
import re
import tempfile
from typing import Any

import jax
from jax.stages import Compiled, Lowered

#: The parts of a step's arguments, in the order of a report. Gradients are XLA's temporaries.
PARTS = ("teacher", "student", "optimizer", "averages", "adapters", "data", "batch", "counters")
_IN_HBM = re.compile(r"Memory Space: default \(color=0\)\s+Total bytes: (\d+)")


def bytes_per_device(tree: Any) -> int:
    """Bytes per device of arrays, or of `jax.ShapeDtypeStruct`s with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape
        if leaf.sharding is not None:
            shape = leaf.sharding.shard_shape(shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      held: the arguments of a step, by part; see `PARTS`.
      gradients: the gradients of the trained parameters, in their dtype and sharding.
      temporaries: everything else that XLA allocates within a step: gradients, activations,
        workspaces. None if it is not known.
      code: the program.
      padding: what the device's array layouts add to `held`.
      limit: the memory of the device.
      process: on a CPU, a device's share of what else its process holds: libraries, the compiler,
        and images on the host.
    """

    held: dict[str, int]
    gradients: int
    temporaries: int | None
    code: int
    padding: int
    limit: int
    process: int = 0

    @property
    def arguments(self) -> int:
        """What the device holds before a step begins."""
        return sum(self.held.values()) + self.padding

    @property
    def total(self) -> int:
        """The peak of a step; of its temporaries only the gradients if they are not known.

        Without `process`.
        """
        within = self.gradients if self.temporaries is None else self.temporaries
        return self.arguments + within + self.code

    @property
    def fits(self) -> bool:
        """Whether the peak is within the memory of the device."""
        return self.total + self.process <= self.limit


def argument_bytes(state: Any, frozen: Any, resident: Any, batches: Any) -> dict[str, int]:
    """Bytes per device of the arguments of a step, by part.

    Args:
      state: a `TrainState`. All arguments hold arrays or `jax.ShapeDtypeStruct`s with shardings.
      frozen: the `Frozen` parameters of teachers and student.
      resident: the data set on the devices.
      batches: the batches of the steps of one call.
    """
    counters = (state.step, state.seed, state.sums, state.bad_step)
    return {
        "teacher": bytes_per_device(frozen.teachers),
        "student": bytes_per_device((state.params, state.stats, frozen.student)),
        "optimizer": bytes_per_device(state.optimizer),
        "averages": bytes_per_device(state.average),
        "adapters": bytes_per_device((state.adapters, state.memory)),
        "data": bytes_per_device(resident),
        "batch": bytes_per_device(batches),
        "counters": bytes_per_device(counters),
    }


def stats_of(compiled: Compiled) -> Any:
    """XLA's memory analysis of a program, a `CompiledMemoryStats`."""
    stats = compiled.memory_analysis()
    if stats is None:
        raise RuntimeError("XLA gives no memory analysis of this program")
    return stats


def compile_step(lowered: Lowered, platform: str) -> tuple[Compiled, int]:
    """Compiles a step and measures the memory of its arguments, outputs and temporaries.

    On TPUs the bytes come from the memory report that the compiler writes with a program. The
    temporaries of `memory_analysis` are more than it allocates: with these, the total would be 12
    to 19 % too high for five plans of the language pairs of configs/ (libtpu 0.0.42).

    Args:
      lowered: the lowered step.
      platform: "cpu", "gpu" or "tpu".

    Returns:
      The compiled step, and its bytes per device.
    """
    reported = None
    if platform == "tpu":
        with tempfile.TemporaryDirectory() as folder:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
            for report in pathlib.Path(folder).glob("*memory-usage-report.txt"):
                reported = _IN_HBM.search(report.read_text())
    else:
        compiled = lowered.compile()
    if reported:
        return compiled, int(reported[1])
    stats = stats_of(compiled)
    fresh = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
    return compiled, stats.argument_size_in_bytes + stats.temp_size_in_bytes + fresh
