"""Facts about this machine that are known without JAX: its CPU, memory and accelerators.

Each function returns what the operating system tells, and nothing where it does not tell.
"""

import functools
import hashlib
import os
import pathlib
import platform
import resource
import sys

_NVIDIA = pathlib.Path("/proc/driver/nvidia/version")
#: Devices of AMD GPUs and of TPUs.
_OTHERS = ("dev/kfd", "dev/accel*", "dev/accel/accel*", "dev/vfio/[0-9]*")
_CGROUPS = pathlib.Path("/sys/fs/cgroup")


def gpu_present() -> bool:
    """Whether this machine has an NVIDIA driver, whether or not JAX uses it."""
    return _NVIDIA.exists()


def accelerator_present() -> bool:
    """Whether this machine has a GPU or a TPU, whether or not JAX uses it."""
    return gpu_present() or any(any(pathlib.Path("/").glob(name)) for name in _OTHERS)


def usable_cpus() -> int:
    """The number of CPUs that this process may use; XLA starts as many threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _cpu_facts() -> dict[str, str]:
    """What Linux tells of the first CPU; {} on other systems."""
    try:
        first = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_identity() -> str:
    """Twelve hexadecimal digits of the CPU's model and instruction sets.

    Machine code for one identity may be illegal on a machine of another.
    """
    facts = _cpu_facts()
    told = [platform.machine(), platform.processor()]
    for name in ("vendor_id", "cpu family", "model", "model name", "CPU part"):
        told.append(f"{name}={facts.get(name)}")
    flags = facts.get("flags", facts.get("Features", ""))
    told.append(" ".join(sorted(flags.split())))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def describe_cpu() -> dict[str, str | int]:
    """What a manifest records: the model, its identity, and how many CPUs a process may use."""
    facts = _cpu_facts()
    model = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts]
    return {
        "model": ", ".join([model, *numbers]),
        "identity": cpu_identity(),
        "usable": usable_cpus(),
    }


def memory() -> int:
    """Bytes that this process may use: the machine's, or the smaller limit of its control group."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_group_limits()])


def resident() -> int:
    """Bytes of memory that this process holds now; its peak where the system does not tell."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _group_limits(groups: pathlib.Path = _CGROUPS, own: str = "/proc/self/cgroup") -> list[int]:
    """The limits of the control groups that this process is in, of both versions."""
    try:
        lines = pathlib.Path(own).read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = groups / "memory" if controllers else groups
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = base / path.lstrip("/")
        # Within a container the path may be that of the host, and the limit at the root.
        for place in (folder, *folder.parents):
            if place.is_relative_to(base):
                limits.append(_read_limit(place / name))
    return [limit for limit in limits if limit]


def _read_limit(file: pathlib.Path) -> int:
    try:
        text = file.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
