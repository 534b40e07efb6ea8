"""How long a step takes at least: its arithmetic, its HBM traffic and its messages, each alone.

Three times by three peaks (Williams et al. 2009, "Roofline"; Austin et al. 2025, "How to scale your
model", chapter 1). The longest is the bound, and the time of a step in which the other two hide
behind it; the sum is that of one in which nothing overlaps. Left out on purpose: latencies, and
what a kernel reaches of a peak.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from distill_jax.planning.chips import GPUS_A_HOST, Chip
from distill_jax.planning.collectives import Collective


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Seconds of one step.

    Attributes:
      compute: of the arithmetic, at the peak of bfloat16.
      memory: of the traffic between chip and HBM.
      interconnect: of the messages between chips.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def bound(self) -> str:
        """Which of the three is the longest."""
        parts = dataclasses.asdict(self)
        return max(parts, key=parts.get)

    @property
    def overlapped(self) -> float:
        """Of a step in which all else hides behind the longest."""
        return max(dataclasses.astuple(self))

    @property
    def without_overlap(self) -> float:
        """Of a step in which nothing overlaps."""
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
    """The three times of a step.

    Args:
      chip: of the devices.
      mesh: the devices.
      shape: of the slice of a TPU; () for GPUs.
      flops: of the program, over all devices.
      traffic: bytes that a device moves from and to its HBM.
      messages: what it sends.
    """
    interconnect = sum(c.bytes / speed(chip, mesh, shape, c.axes) for c in messages)
    return StepTimes(
        compute=flops / mesh.size / chip.flops,
        memory=traffic / chip.bandwidth,
        interconnect=interconnect,
    )


def speed(chip: Chip, mesh: Mesh, shape: Sequence[int], axes: Sequence[str]) -> float:
    """Bytes a second that a chip can send to the others of a group along some axes.

    Of a TPU: its links along each dimension of the slice that the axes span, both ways round where
    the group is a closed ring, one way where it is a line. Of a GPU: NVLink within a host, else the
    network.
    """
    members = group(mesh, axes or mesh.axis_names)
    if chip.platform == "gpu":
        places = {index // GPUS_A_HOST for index in members}
        return chip.link if len(places) == 1 else chip.network
    coords = np.array([mesh.devices.flat[index].coords for index in members])
    total = 0.0
    for dimension, size in enumerate(shape):
        spanned = len(set(coords[:, dimension]))
        if spanned > 1:
            closed = spanned == size and size % chip.ring == 0
            total += chip.link * (2 if closed else 1)
    return total or chip.link


def group(mesh: Mesh, axes: Sequence[str]) -> list[int]:
    """The places, in the order of the mesh, of the first device and its neighbours along axes."""
    numbers = np.arange(math.prod(mesh.devices.shape)).reshape(mesh.devices.shape)
    kept = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    return [int(n) for n in numbers[kept].ravel()]
