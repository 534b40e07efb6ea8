"""What a plan is made for: TPU slices that are not here, GPUs that are not here, or what is here.

    tpu:v5p:4x4x4    the slice as libtpu describes it; XLA's TPU compiler runs without a chip
    gpu:h100:8       GPUs as a table describes them; XLA's GPU compiler runs without one
    local            the devices of this machine

Left out on purpose: several slices, and pods that mix chips.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.planning import chips, gpus

EXPECTED = (
    "tpu:CHIP:SHAPE such as tpu:v5p:4x4x4, gpu:CHIP:COUNT such as gpu:h100:8, or local; chips: "
    + ", ".join(chips.CHIPS)
)
#: The part of a GPU's memory that JAX takes (XLA_PYTHON_CLIENT_MEM_FRACTION's default).
_GPU_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
      name: what the user said.
      kind: of the chip, as in `chips.CHIPS`; "" for one that is not in the table.
      chip: its numbers; None for one that is not in the table.
      devices: to compile for.
      shape: of the slice of a TPU; () otherwise.
      memory: bytes of a device that a program may take.
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


def parse(said: str) -> tuple[str, str, tuple[int, ...]]:
    """("tpu" | "gpu" | "local", chip, shape) of a target; for GPUs the shape is (count,).

    Raises:
      UsageError: the target is none, with what was expected.
    """
    if said == "local":
        return "local", "", ()
    match = re.fullmatch(r"(tpu|gpu):(\w+):([1-9]\d*(?:x[1-9]\d*)*)", said)
    if match is None:
        raise UsageError(f"--target={said}: expected {EXPECTED}")
    platform, name, sizes = match[1], match[2], tuple(map(int, match[3].split("x")))
    chip = chips.find(name, platform, said)
    wanted = chip.torus or 1
    if len(sizes) != wanted:
        example = "x".join("4" * wanted) if chip.torus else "8"
        raise UsageError(
            f"--target={said}: expected {wanted} sizes, as in {platform}:{name}:{example}"
        )
    if chip.torus and max(sizes) > chip.most:
        raise UsageError(
            f"--target={said}: expected sizes of at most {chip.most}, the largest slice of {name}"
        )
    return platform, name, sizes


def prepare_process(said: str) -> None:
    """Sets what JAX and libtpu read once, when they start: called before the first use of JAX.

    Raises:
      UsageError: the target is none.
    """
    platform, _, sizes = parse(said)
    if platform == "local":
        return
    # Nothing of a plan runs, and another process may hold this machine's accelerators.
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


def open_target(said: str) -> Target:
    """The devices of a target.

    Raises:
      UsageError: the target is none, or its compiler is missing or knows no such slice.
    """
    platform, name, sizes = parse(said)
    if platform == "tpu":
        return _slice(said, name, sizes)
    if platform == "gpu":
        return _gpus(said, name, *sizes)
    import jax

    devices = tuple(jax.devices())
    kind = chips.of_kind(devices[0].device_kind) or ""
    chip = chips.CHIPS.get(kind)
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or (chip.memory if chip else _host_memory(len(devices)))
    return Target(said, kind, chip, devices, (), memory)


def _host_memory(devices: int) -> int:
    """A CPU device's share of the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // devices


def _slice(said: str, name: str, sizes: tuple[int, ...]) -> Target:
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            f"--target={said}: compiling for a TPU needs libtpu; expected pip install '.[plan]'"
        )
    layout = "x".join(map(str, sizes))
    options = {"chip_config_name": "megacore"} if name == "v4" else {}
    if sizes[0] % 2 or sizes[1] % 2:
        # Hosts have 2x2 chips, but for slices of a part of a host.
        options["chips_per_host_bounds"] = [1, 1, 1]
    chip, devices = chips.CHIPS[name], _topology(said, f"{name}:{layout}", "tpu", **options)
    return Target(said, name, chip, devices, sizes, chip.memory)


def _gpus(said: str, name: str, count: int) -> Target:
    chip, layout = chips.CHIPS[name], gpus.topology(count)
    if layout is None:
        raise UsageError(
            f"--target={said}: expected up to {chips.GPUS_A_HOST} GPUs, or a multiple of "
            f"{chips.GPUS_A_HOST}"
        )
    if not gpus.installed():
        raise UsageError(
            f"--target={said}: compiling for a GPU needs JAX's CUDA plugin; expected "
            "pip install '.[plan-gpu]'"
        )
    described = gpus.description(name, chip)
    devices = _topology(said, name, "cuda", topology=layout, target_config=described)
    return Target(said, name, chip, devices, (), round(chip.memory * _GPU_FRACTION))


def _topology(said: str, name: str, platform: str, **options: Any) -> tuple[Any, ...]:
    from jax.experimental import topologies

    try:
        with _silent():
            found = topologies.get_topology_desc(name, platform=platform, **options)
    except Exception as error:  # the compiler's own, of no fixed kind
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--target={said}: its compiler knows no such devices: {reason}"
        ) from error
    return tuple(found.devices)


@contextlib.contextmanager
def _silent():
    """Drops what the compilers say on standard error of the devices that are not there."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
