"""How a process finds the others of its run: flags, variables, or what started it.

What JAX can detect (SLURM, Open MPI up to 4, TPU slices) it detects itself, in
`jax.distributed.initialize`. This module decides whether to ask it, so that a single process
neither waits for a server that may not answer nor for processes that do not exist. Left out on
purpose: Kubernetes without TPUs, where an index of a job may as well be one of many runs; there the
flags say it (experiments/launch).
"""

import dataclasses
import importlib.util
import os
import pathlib
import re
import urllib.request
from collections.abc import Mapping

from distill_jax.errors import UsageError

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process is joined with the others.

    Attributes:
      coordinator: host:port of the first process; None where the cluster tells it.
      processes: how many there are; None likewise.
      process: which this is, from 0; None likewise.
      cluster: the name by which `jax.distributed` knows what started them; None for flags alone.
      devices: numbers of the host's devices that the process takes, () for all; None for JAX's
        choice: all, or where a cluster starts several on a host, the one of the local number.
    """

    coordinator: str | None
    processes: int | None
    process: int | None
    cluster: str | None = None
    devices: tuple[int, ...] | None = None


def discover(
    coordinator: str | None = None,
    processes: str | None = None,
    process: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Launch | None:
    """What flags and environment say of the other processes; None for a single process.

    A flag goes before its variable: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    What neither says is asked of the cluster. One process, by flag or variable, asks nothing.

    Args:
      coordinator: --coordinator, host:port of the first process.
      processes: --num_processes.
      process: --process_id, from 0.
      environment: the variables; those of this process by default.

    Raises:
      UsageError: a value of the wrong kind, or one that is missing.
    """
    environment = os.environ if environment is None else environment
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    processes = processes or environment.get("JAX_NUM_PROCESSES")
    process = process or environment.get("JAX_PROCESS_ID")
    count = _whole("num_processes", processes, 1)
    number = _whole("process_id", process, 0)
    if count == 1 and not number:
        return None
    if coordinator and not re.fullmatch(r"(\[[^]]+\]|[^:\s]+):[0-9]+", coordinator):
        raise UsageError(f"--coordinator={coordinator}: expected host:port of the first process")
    if count is not None and number is not None and number >= count:
        raise UsageError(
            f"--process_id={number}: expected a number from 0 to {count - 1}, as "
            f"--num_processes={count}"
        )
    if coordinator and count is not None and number is not None:
        return Launch(coordinator, count, number)
    found = _cluster(environment)
    if found is None:
        found = _open_mpi_without_address(environment)
    if found is not None:
        own = dataclasses.replace(
            found,
            coordinator=coordinator or found.coordinator,
            processes=found.processes if count is None else count,
            process=found.process if number is None else number,
        )
        if own.cluster or own.coordinator:
            return own
        coordinator, count, number = own.coordinator, own.processes, own.process
    said = {"coordinator": coordinator, "num_processes": count, "process_id": number}
    missing = [name for name, value in said.items() if value is None]
    if len(missing) == len(said):
        return None
    given = ", ".join(f"--{name}={value}" for name, value in said.items() if value is not None)
    raise UsageError(
        f"--{missing[0]}: missing beside {given}; expected all of --coordinator, --num_processes "
        "and --process_id, or a cluster that tells them"
    )


def _whole(name: str, said: str | None, low: int) -> int | None:
    if said is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", said) or int(said) < low:
        raise UsageError(f"--{name}={said}: expected an integer >= {low}")
    return int(said)


def _cluster(environment: Mapping[str, str]) -> Launch | None:
    """What has started several processes, of those that JAX itself knows; None for one."""

    def number(name: str, default: str = "1") -> int:
        said = environment.get(name) or default
        return int(said) if said.isdigit() else 1

    if all(name in environment for name in _SLURM):
        # In a shell within an allocation SLURM_NTASKS is the job's, the step has one task.
        tasks = number("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])
        nodes = number("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1"))
        if tasks > 1:
            whole = tasks == nodes or _one_gpu(environment)
            return Launch(None, None, None, "slurm", () if whole else None)
        return None
    if "OMPI_MCA_orte_hnp_uri" in environment and number(_OPEN_MPI[0]) > 1:
        whole = number("OMPI_COMM_WORLD_LOCAL_SIZE") == 1 or _one_gpu(environment)
        return Launch(None, None, None, "ompi", () if whole else None)
    if "tpu" in environment.get("JAX_PLATFORMS", "tpu") and importlib.util.find_spec("libtpu"):
        named = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        if named:
            many = "," in named or number("MEGASCALE_NUM_SLICES") > 1
            return Launch(None, None, None, "gketpu") if many else None
        if _tpu_devices() and _several_tpu_hosts(environment):
            return Launch(None, None, None, "gcetpu")
    return None


def _open_mpi_without_address(environment: Mapping[str, str]) -> Launch | None:
    """The numbers that Open MPI from version 5 on tells, which has no address for JAX."""
    size, rank = (environment.get(name, "") for name in _OPEN_MPI)
    if not (size.isdigit() and rank.isdigit()) or int(size) < 2:
        return None
    local = environment.get("OMPI_COMM_WORLD_LOCAL_RANK", "")
    alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or _one_gpu(environment)
    devices = () if alone or not local.isdigit() else (int(local),)
    return Launch(None, int(size), int(rank), devices=devices)


def _one_gpu(environment: Mapping[str, str]) -> bool:
    """Whether the launcher itself shows this process one GPU alone."""
    shown = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    return bool(shown) and "," not in shown


def _tpu_devices() -> bool:
    folders = (("/dev", "accel[0-9]*"), ("/dev/vfio", "[0-9]*"))
    return any(any(pathlib.Path(folder).glob(name)) for folder, name in folders)


def _several_tpu_hosts(environment: Mapping[str, str]) -> bool:
    """Whether a Cloud TPU VM has others beside it, by the metadata of Compute Engine."""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")

    def attribute(name: str) -> str:
        request = urllib.request.Request(
            f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                return answer.read().decode()
        except OSError:  # no such attribute, or no such server: a machine of its own
            return ""

    slices = re.search(r"MEGASCALE_NUM_SLICES:\s*'?([0-9]+)", attribute("tpu-env"))
    return "," in attribute("worker-network-endpoints") or bool(slices) and int(slices[1]) > 1
