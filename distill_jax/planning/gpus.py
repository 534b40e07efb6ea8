"""GPUs as XLA's compiler wants them described where there is none to ask.

XLA compiles for a GPU ahead of time from a description of it, `GpuTargetConfigProto`. Of what it
says, the memory decides how XLA schedules, the rest which tiles and kernels it takes. Left out on
purpose: tuning, for which XLA runs kernels on the GPU itself; products take its first choice here.
"""

import ctypes
import dataclasses
import importlib.util

from distill_jax.planning.chips import GPUS_A_HOST, Chip

#: Modules of JAX's CUDA plugins; one of them brings XLA's GPU compiler.
PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
#: The CUDA and cuDNN that kernels are compiled for.
_CUDA, _CUDNN = (13, 0), (9, 12)


@dataclasses.dataclass(frozen=True)
class Processor:
    """The parts of a GPU that a compiler asks for.

    Attributes:
      name: as its driver calls it.
      capability: CUDA's compute capability.
      cores: streaming multiprocessors.
      lanes: float32 units of one of them.
      clock: GHz, at most.
      cache: bytes of L2.
      shared: bytes of shared memory of a multiprocessor.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    clock: float
    cache: int
    shared: int


# NVIDIA's white papers of the A100, the H100 and Blackwell; the table "Technical specifications per
# compute capability" of the CUDA programming guide.
PROCESSORS = {
    "a100": Processor("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 40 * 2**20, 164 * 2**10),
    "h100": Processor("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10),
    "h200": Processor("NVIDIA H200", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10),
    "b200": Processor("NVIDIA B200", (10, 0), 148, 128, 1.965, 126 * 2**20, 228 * 2**10),
}


def installed() -> bool:
    """Whether a plugin with XLA's GPU compiler is."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(name) is not None for name in PLUGINS
    )


def cudnn() -> bool:
    """Whether cuDNN's library is here, without which JAX does not lower its attention."""
    try:
        ctypes.CDLL("libcudnn.so.9")  # found where it lies, or as loaded by the plugin
    except OSError:
        return False
    return True


def description(name: str, chip: Chip) -> str:
    """The text of the `GpuTargetConfigProto` of a GPU.

    Args:
      name: in `PROCESSORS`.
      chip: its numbers in `chips.CHIPS`.
    """
    own = PROCESSORS[name]
    system = 2**10  # of shared memory that CUDA keeps for itself in every block
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_core: {own.shared}
  shared_memory_per_block_optin: {own.shared - system}
  threads_per_core_limit: 2048
  core_count: {own.cores}
  fpus_per_core: {own.lanes}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {own.cache}
  clock_rate_ghz: {own.clock}
  device_memory_size: {chip.memory}
  cuda_compute_capability {{ major: {own.capability[0]} minor: {own.capability[1]} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
runtime_version {{ major: {_CUDA[0]} minor: {_CUDA[1]} }}
dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} }}
device_description_str: "{own.name}"
"""


def topology(count: int) -> str | None:
    """Slices, hosts of a slice and GPUs of a host, as XLA writes them; None for no such number.

    GPUs fill one host, or several of `GPUS_A_HOST`.
    """
    if count <= GPUS_A_HOST:
        return f"1x1x{count}"
    hosts, left = divmod(count, GPUS_A_HOST)
    return None if left else f"1x{hosts}x{GPUS_A_HOST}"
