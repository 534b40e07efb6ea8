"""Lower bounds of a step's time: its arithmetic, its HBM traffic and its collectives.

Each is its amount divided by a peak (Williams et al. 2009, "Roofline"; Austin et al. 2025, "How to
scale your model", chapter 1). The longest is the bound: the time of a step in which the other two
overlap with it. The sum is the time of a step without overlap. Left out on purpose: latencies, and
the share of a peak that a kernel reaches.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from distill_jax.planning.chips import GPUS_PER_HOST, Chip
from distill_jax.planning.collectives import Collective


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Seconds of one step.

    Attributes:
      compute: the arithmetic, at the peak of bfloat16.
      memory: the traffic between chip and HBM.
      interconnect: the collectives between chips.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def bound(self) -> str:
        """Which of the three is the longest."""
        parts = dataclasses.asdict(self)
        return max(parts, key=lambda name: parts[name])

    @property
    def overlapped(self) -> float:
        """The time of a step in which the shorter parts overlap with the longest."""
        return max(dataclasses.astuple(self))

    @property
    def without_overlap(self) -> float:
        """The time of a step in which nothing overlaps."""
        return sum(dataclasses.astuple(self))


def times(
    chip: Chip,
    mesh: Mesh,
    shape: Sequence[int],
    *,
    flops: int,
    traffic: int,
    messages: Sequence[Collective],
) -> StepTimes:
    """The three lower bounds of a step.

    Args:
      chip: the kind of the devices.
      mesh: the devices.
      shape: the shape of a TPU slice; () for GPUs.
      flops: FLOPs of the program, over all devices.
      traffic: bytes that each device moves from and to its HBM.
      messages: the collectives of the step.
    """
    interconnect = sum(c.bytes / speed(chip, mesh, shape, c.axes) for c in messages)
    return StepTimes(
        compute=flops / mesh.size / chip.flops,
        memory=traffic / chip.bandwidth,
        interconnect=interconnect,
    )


def speed(chip: Chip, mesh: Mesh, shape: Sequence[int], axes: Sequence[str]) -> float:
    """Bytes a second that a chip can send within its group along some axes of the mesh.

    A TPU uses its links along each dimension of the slice that the group spans: in both directions
    where the group closes a ring, in one where it is a line. A GPU uses NVLink within a host, else
    the network.
    """
    members = group(mesh, axes or mesh.axis_names)
    if chip.platform == "gpu":
        hosts = {index // GPUS_PER_HOST for index in members}
        return chip.link if len(hosts) == 1 else chip.network
    coords = np.array([mesh.devices.flat[index].coords for index in members])
    total = 0.0
    for dimension, size in enumerate(shape):
        spanned = len(set(coords[:, dimension]))
        if spanned > 1:
            closed = spanned == size and size % chip.ring == 0
            total += chip.link * (2 if closed else 1)
    return total or chip.link


def group(mesh: Mesh, axes: Sequence[str]) -> list[int]:
    """The indices, in the order of the mesh, of the first device's group along axes."""
    numbers = np.arange(math.prod(mesh.devices.shape)).reshape(mesh.devices.shape)
    kept = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    return [int(n) for n in numbers[kept].ravel()]
