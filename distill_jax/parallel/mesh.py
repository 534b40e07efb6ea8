"""Making the mesh, and the shardings of a batch and of replicated arrays."""

import collections
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill_jax.errors import UsageError
from distill_jax.processes.machine import gpu_present

AXES = ("data", "fsdp", "tensor")
#: The axes that a batch is split over.
BATCH = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`.

    The devices of a process are adjacent, so that each process has its own rows of a batch.

    Args:
      data: devices along the batch axis; -1 takes all that the other axes leave.
      fsdp: devices along the axis of parameter shards.
      tensor: devices along the axis of split layers.
      devices: the devices to use; all by default.

    Raises:
      UsageError: when the sizes ask for more devices than there are, or do not divide them.
    """
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: device.process_index)
    inner = fsdp * tensor
    if data == 0 or (data == -1 and len(devices) % inner):
        raise UsageError(
            f"mesh.data={data}: expected a size >= 1, or -1 with a number of devices "
            f"({len(devices)}) that fsdp*tensor={inner} divides"
        )
    data = len(devices) // inner if data == -1 else data
    if data * inner > len(devices):
        raise UsageError(
            f"mesh.data={data}: the mesh {data}x{fsdp}x{tensor} needs {data * inner} "
            f"devices; expected at most the {len(devices)} that are visible"
        )
    chosen = devices[: data * inner]
    counts = collections.Counter(device.process_index for device in chosen)
    if jax.process_count() > 1 and len({counts[p] for p in range(jax.process_count())}) > 1:
        raise UsageError(
            f"mesh.data={data}: the mesh {data}x{fsdp}x{tensor} takes {len(chosen)} devices of "
            f"{len(devices)} in {jax.process_count()} processes; expected as many of each, such as "
            "mesh.data=-1"
        )
    grid = _grid((data, fsdp, tensor), list(chosen), len(devices))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def _grid(shape: tuple[int, ...], devices: list, present: int) -> np.ndarray:
    """The devices in the shape of a mesh; on a whole TPU slice, axes follow physical neighbours."""
    if devices[0].platform != "tpu" or len(devices) < present:
        return np.asarray(devices).reshape(shape)
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        # An axis is part of a physical dimension of the slice, so its rings are not closed.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension is split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def platform(mesh: Mesh | None) -> str:
    """What a program runs on: "cpu", "gpu" or "tpu", also when it is compiled on another platform.

    Args:
      mesh: of the program; None for the default devices of JAX.
    """
    found = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return "gpu" if found == "cuda" else found


def batch_ways(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def check_divides(mesh: Mesh, key: str, batch_size: int) -> None:
    """UsageError when a batch cannot be split evenly over the mesh."""
    parts = batch_ways(mesh)
    if batch_size % parts:
        raise UsageError(
            f"{key}={batch_size}: expected a multiple of {parts}, "
            f"the devices along mesh.data*mesh.fsdp"
        )


def fix_gpu_order() -> None:
    """Excludes XLA's GPU kernels whose sums have no fixed order, by XLA_FLAGS.

    Has an effect only before the first computation of a process. For the gradient of max-pooling
    XLA has no other kernel; no model here uses it.
    """
    flag = "--xla_gpu_exclude_nondeterministic_ops=true"
    flags = os.environ.get("XLA_FLAGS", "")
    if gpu_present() and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def describe_devices(mesh: Mesh) -> tuple[str, str | None]:
    """What the run computes on, such as "8 x cpu", and a warning when a GPU lies idle."""
    devices = mesh.devices.ravel()
    kind = devices[0].device_kind
    warning = None
    if devices[0].platform == "cpu" and gpu_present():
        warning = (
            "an NVIDIA GPU is present but JAX computes on the CPU; "
            "install the extra that serves it: pip install '.[cuda]'"
        )
    count = jax.process_count()
    return f"{len(devices)} x {kind}" + (f" in {count} processes" if count > 1 else ""), warning
