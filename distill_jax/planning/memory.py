"""Bytes of a device: of what it holds between steps by its shardings, and within a step by XLA."""

import dataclasses
import math
import pathlib
import re
import tempfile
from typing import Any

import jax

#: What a device holds, in the order of a report. Gradients are a part of what XLA needs in a step.
HELD = ("teacher", "student", "optimizer", "averages", "adapters", "data", "batch", "counters")
_IN_HBM = re.compile(r"Memory Space: default \(color=0\)\s+Total bytes: (\d+)")


def bytes_per_device(tree: Any) -> int:
    """Bytes a device of arrays, or of `jax.ShapeDtypeStruct`s with shardings."""
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
      held: of the arguments of a step by part, see `HELD`.
      gradients: of the trained parameters' gradients, as they are kept.
      temporaries: all that XLA needs within a step: gradients, activations, workspaces. None where
        it is not known.
      code: of the program.
      padding: what the device's layout of arrays takes above `held`.
      limit: of the device.
    """

    held: dict[str, int]
    gradients: int
    temporaries: int | None
    code: int
    padding: int
    limit: int

    @property
    def arguments(self) -> int:
        """What is there before a step begins."""
        return sum(self.held.values()) + self.padding

    @property
    def total(self) -> int:
        """The most that a step needs; without its temporaries where they are not known."""
        within = self.gradients if self.temporaries is None else self.temporaries
        return self.arguments + within + self.code

    @property
    def fits(self) -> bool:
        """Whether the device has so much."""
        return self.total <= self.limit


def argument_bytes(state: Any, frozen: Any, resident: Any, batches: Any) -> dict[str, int]:
    """Bytes a device of the arguments of a step, by part.

    Args:
      state: a `TrainState`; as the others, of arrays or `jax.ShapeDtypeStruct`s with shardings.
      frozen: the `Frozen` parameters of teachers and student.
      resident: the data set on the devices.
      batches: of the steps of one call.
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


def compile_step(lowered: Any, platform: str) -> tuple[Any, int]:
    """Compiles a step; also, what its arguments, outputs and temporaries take of a device.

    On TPUs the bytes are of the memory report that the compiler writes beside a program. The
    temporaries of `memory_analysis` are more than is allocated there: the whole would be 12 to 19 %
    too high for five plans of the language pairs of configs/ (libtpu 0.0.42).

    Args:
      lowered: a `jax.stages.Lowered`.
      platform: "cpu", "gpu" or "tpu".

    Returns:
      The `jax.stages.Compiled`, and bytes.
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
    stats = compiled.memory_analysis()
    fresh = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
    return compiled, stats.argument_size_in_bytes + stats.temp_size_in_bytes + fresh
