"""The targets of a plan: absent TPU slices, absent GPUs, or the devices of this machine.

    tpu:v5p:4x4x4    a slice, described by libtpu; XLA's TPU compiler needs no chip
    gpu:h100:8       GPUs, described by a table; XLA's GPU compiler needs no GPU
    local            the devices of this machine

Left out on purpose: several slices, and pods of mixed chips.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.planning import chips, gpus
from distill_jax.processes import machine

EXPECTED = (
    "tpu:CHIP:SHAPE such as tpu:v5p:4x4x4, gpu:CHIP:COUNT such as gpu:h100:8, or local; chips: "
    + ", ".join(chips.CHIPS)
)
#: The share of a GPU's memory that JAX takes (the default of XLA_PYTHON_CLIENT_MEM_FRACTION).
_GPU_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
      name: the user's --target.
      kind: the chip's name in `chips.CHIPS`; "" for one that is not in the table.
      chip: its entry in the table, or None.
      devices: the devices to compile for.
      shape: the shape of a TPU slice; () otherwise.
      memory: bytes of a device that a program may use; of a CPU, its share of this machine's
        memory, or of the limit of this process' control group.
    """

    name: str
    kind: str
    chip: chips.Chip | None
    devices: tuple[Any, ...]
    shape: tuple[int, ...]
    memory: int

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        found = self.devices[0].platform
        return "gpu" if found == "cuda" else found


def parse(target: str) -> tuple[str, str, tuple[int, ...]]:
    """("tpu" | "gpu" | "local", chip, shape) of a target; for GPUs the shape is (count,).

    Raises:
      UsageError: the target is not valid.
    """
    if target == "local":
        return "local", "", ()
    match = re.fullmatch(r"(tpu|gpu):(\w+):([1-9]\d*(?:x[1-9]\d*)*)", target)
    if match is None:
        raise UsageError(f"--target={target}: expected {EXPECTED}")
    platform, name, sizes = match[1], match[2], tuple(map(int, match[3].split("x")))
    chip = chips.find(name, platform, target)
    wanted = chip.torus or 1
    if len(sizes) != wanted:
        example = "x".join("4" * wanted) if chip.torus else "8"
        raise UsageError(
            f"--target={target}: expected {wanted} sizes, as in {platform}:{name}:{example}"
        )
    if chip.torus and max(sizes) > chip.most:
        raise UsageError(
            f"--target={target}: expected sizes of at most {chip.most}, the largest slice of {name}"
        )
    return platform, name, sizes


def prepare_process(target: str) -> None:
    """Sets the environment variables that JAX and libtpu read once; call it before importing JAX.

    Raises:
      UsageError: the target is not valid.
    """
    platform, _, sizes = parse(target)
    if platform == "local":
        return
    # A plan executes nothing, and another process may be using this machine's accelerators.
    os.environ["JAX_PLATFORMS"] = "cpu"
    wanted = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    if platform == "tpu":
        wanted |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is opened
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "",
            "TPU_MIN_LOG_LEVEL": "3",
        }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def open_target(target: str) -> Target:
    """The devices of a target.

    Raises:
      UsageError: the target is not valid, or its compiler is missing or knows no such slice.
    """
    platform, name, sizes = parse(target)
    if platform == "tpu":
        return _slice(target, name, sizes)
    if platform == "gpu":
        return _gpus(target, name, *sizes)
    import jax

    devices = tuple(jax.devices())
    kind = chips.of_kind(devices[0].device_kind) or ""
    chip = chips.CHIPS.get(kind)
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or (chip.memory if chip else machine.memory() // len(devices))
    return Target(target, kind, chip, devices, (), memory)


def _slice(target: str, name: str, sizes: tuple[int, ...]) -> Target:
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            f"--target={target}: compiling for a TPU needs libtpu; expected pip install '.[plan]'"
        )
    layout = "x".join(map(str, sizes))
    options: dict[str, Any] = {"chip_config_name": "megacore"} if name == "v4" else {}
    if sizes[0] % 2 or sizes[1] % 2:
        # A host has 2x2 chips, unless the slice is a part of a host.
        options["chips_per_host_bounds"] = [1, 1, 1]
    chip, devices = chips.CHIPS[name], _topology(target, f"{name}:{layout}", "tpu", **options)
    return Target(target, name, chip, devices, sizes, chip.memory)


def _gpus(target: str, name: str, count: int) -> Target:
    chip, layout = chips.CHIPS[name], gpus.topology(count)
    if layout is None:
        raise UsageError(
            f"--target={target}: expected up to {chips.GPUS_PER_HOST} GPUs, or a multiple of "
            f"{chips.GPUS_PER_HOST}"
        )
    if not gpus.installed():
        raise UsageError(
            f"--target={target}: compiling for a GPU needs JAX's CUDA plugin; expected "
            "pip install '.[plan-gpu]'"
        )
    described = gpus.description(name, chip)
    devices = _topology(target, name, "cuda", topology=layout, target_config=described)
    return Target(target, name, chip, devices, (), round(chip.memory * _GPU_FRACTION))


def _topology(target: str, name: str, platform: str, **options: Any) -> tuple[Any, ...]:
    from jax.experimental import topologies

    try:
        with _silent():
            found = topologies.get_topology_desc(name, platform=platform, **options)
    except Exception as error:  # of the compiler, of no fixed type
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--target={target}: its compiler knows no such devices: {reason}"
        ) from error
    return tuple(found.devices)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discards what the compilers write to standard error about absent devices."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
