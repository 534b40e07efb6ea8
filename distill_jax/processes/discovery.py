"""How a process finds its run: from flags, from variables, or from the cluster that started it.

What JAX can detect (SLURM, Open MPI up to 4, TPU slices) JAX detects itself, in
`jax.distributed.initialize`. This module decides whether to let it, so that a single process waits
neither for a server that may not answer nor for processes that do not exist. Left out on purpose:
Kubernetes without TPUs, where the index of a job may as well number independent runs; pass the
flags there (experiments/launch).
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
class Rendezvous:
    """How this process joins its run; None stands for what JAX detects from the cluster.

    Attributes:
      coordinator: host:port of process 0.
      process_count: the number of processes.
      process_index: the index of this process, from 0.
      cluster: the name by which `jax.distributed` knows the cluster; None for flags alone.
      devices: indices of the host's devices that this process uses, () for all; None for JAX's
        choice: all, or the one of its local index where a cluster starts several on a host.
    """

    coordinator: str | None
    process_count: int | None
    process_index: int | None
    cluster: str | None = None
    devices: tuple[int, ...] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left for JAX to detect."""
        return None not in (self.coordinator, self.process_count, self.process_index)

    def overridden_by(self, given: "Rendezvous") -> "Rendezvous":
        """This, with the address, count and index of `given` where it has them."""
        return dataclasses.replace(
            self,
            coordinator=given.coordinator or self.coordinator,
            process_count=_first_known(given.process_count, self.process_count),
            process_index=_first_known(given.process_index, self.process_index),
        )


def _first_known(first: int | None, second: int | None) -> int | None:
    return second if first is None else first


def discover(
    coordinator: str | None = None,
    process_count: str | None = None,
    process_index: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Rendezvous | None:
    """How this process joins its run; None for a single process.

    A flag overrides its variable: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID. The
    cluster provides what neither gives. One process, by flag or variable, consults no cluster.

    Args:
      coordinator: --coordinator, host:port of process 0.
      process_count: --num_processes.
      process_index: --process_id, from 0.
      environment: the variables; those of this process by default.

    Raises:
      UsageError: a value of the wrong type, or one that is missing.
    """
    environment = os.environ if environment is None else environment
    given = _given(coordinator, process_count, process_index, environment)
    if given.process_count == 1 and not given.process_index:
        return None
    if given.is_complete:
        return given
    found = _detect_cluster(environment) or _detect_open_mpi_5(environment)
    merged = given if found is None else found.overridden_by(given)
    if merged.cluster or merged.is_complete:
        return merged
    values = {
        "coordinator": merged.coordinator,
        "num_processes": merged.process_count,
        "process_id": merged.process_index,
    }
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return None
    known = ", ".join(f"--{name}={value}" for name, value in values.items() if value is not None)
    raise UsageError(
        f"--{missing[0]}: missing, with {known}; expected all of --coordinator, --num_processes "
        "and --process_id, or a cluster that provides them"
    )


def _given(
    coordinator: str | None,
    process_count: str | None,
    process_index: str | None,
    environment: Mapping[str, str],
) -> Rendezvous:
    """What flags and variables give, checked."""
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    count = _integer("num_processes", process_count or environment.get("JAX_NUM_PROCESSES"), 1)
    index = _integer("process_id", process_index or environment.get("JAX_PROCESS_ID"), 0)
    if count == 1 and not index:
        return Rendezvous(None, 1, index)
    if coordinator and not re.fullmatch(r"(\[[^]]+\]|[^:\s]+):[0-9]+", coordinator):
        raise UsageError(f"--coordinator={coordinator}: expected host:port of process 0")
    if count is not None and index is not None and index >= count:
        raise UsageError(
            f"--process_id={index}: expected an index from 0 to {count - 1}, because "
            f"--num_processes={count}"
        )
    return Rendezvous(coordinator or None, count, index)


def _integer(flag: str, value: str | None, low: int) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < low:
        raise UsageError(f"--{flag}={value}: expected an integer >= {low}")
    return int(value)


def _detect_cluster(environment: Mapping[str, str]) -> Rendezvous | None:
    """A cluster that JAX knows and that has started several processes; None for any other."""

    def number(name: str, default: str = "1") -> int:
        value = environment.get(name) or default
        return int(value) if value.isdigit() else 1

    if all(name in environment for name in _SLURM):
        # In a shell inside an allocation SLURM_NTASKS counts the job's tasks; the step has one.
        tasks = number("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])
        nodes = number("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1"))
        if tasks > 1:
            all_devices = tasks == nodes or _sees_one_gpu(environment)
            return Rendezvous(None, None, None, "slurm", () if all_devices else None)
        return None
    if "OMPI_MCA_orte_hnp_uri" in environment and number(_OPEN_MPI[0]) > 1:
        all_devices = number("OMPI_COMM_WORLD_LOCAL_SIZE") == 1 or _sees_one_gpu(environment)
        return Rendezvous(None, None, None, "ompi", () if all_devices else None)
    if "tpu" in environment.get("JAX_PLATFORMS", "tpu") and importlib.util.find_spec("libtpu"):
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        if hosts:
            several = "," in hosts or number("MEGASCALE_NUM_SLICES") > 1
            return Rendezvous(None, None, None, "gketpu") if several else None
        if _has_tpu_devices() and _has_several_tpu_hosts(environment):
            return Rendezvous(None, None, None, "gcetpu")
    return None


def _detect_open_mpi_5(environment: Mapping[str, str]) -> Rendezvous | None:
    """Count and index from Open MPI 5 or later, which gives JAX no address."""
    size, rank = (environment.get(name, "") for name in _OPEN_MPI)
    if not (size.isdigit() and rank.isdigit()) or int(size) < 2:
        return None
    local = environment.get("OMPI_COMM_WORLD_LOCAL_RANK", "")
    alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or _sees_one_gpu(environment)
    devices = () if alone or not local.isdigit() else (int(local),)
    return Rendezvous(None, int(size), int(rank), devices=devices)


def _sees_one_gpu(environment: Mapping[str, str]) -> bool:
    """Whether the launcher has made a single GPU visible to this process."""
    visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    return bool(visible) and "," not in str(visible)


def _has_tpu_devices() -> bool:
    folders = (("/dev", "accel[0-9]*"), ("/dev/vfio", "[0-9]*"))
    return any(any(pathlib.Path(folder).glob(name)) for folder, name in folders)


def _has_several_tpu_hosts(environment: Mapping[str, str]) -> bool:
    """Whether this Cloud TPU VM is one host of several, by the metadata of Compute Engine."""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")

    def attribute(name: str) -> str:
        request = urllib.request.Request(
            f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with urllib.request.urlopen(request, timeout=2) as reply:
                return reply.read().decode()
        except OSError:  # no such attribute, or no such server: a single machine
            return ""

    slices = re.search(r"MEGASCALE_NUM_SLICES:\s*'?([0-9]+)", attribute("tpu-env"))
    return "," in attribute("worker-network-endpoints") or bool(slices and int(slices[1]) > 1)
