"""Descriptions of GPUs, from which XLA compiles ahead of time without one.

XLA compiles for a GPU that is not present from a `GpuTargetConfigProto`. Its memory size guides
scheduling; the other fields decide tiles and kernels. Left out on purpose: autotuning, for which
XLA runs kernels on the GPU itself; matrix products use its default choice here.
"""

import ctypes
import dataclasses
import importlib.util

from distill_jax.planning.chips import GPUS_PER_HOST, Chip

#: The modules of JAX's CUDA plugins; either contains XLA's GPU compiler.
PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
#: The versions of CUDA and cuDNN that kernels are compiled for.
_CUDA, _CUDNN = (13, 0), (9, 12)


@dataclasses.dataclass(frozen=True)
class Processor:
    """The properties of a GPU that the compiler needs.

    Attributes:
      name: its name in the driver.
      capability: CUDA's compute capability.
      cores: the number of streaming multiprocessors.
      lanes: float32 units of each multiprocessor.
      clock: the highest clock rate, GHz.
      cache: bytes of L2 cache.
      shared: bytes of shared memory of each multiprocessor.
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
    """Whether a plugin with XLA's GPU compiler is installed."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(name) is not None for name in PLUGINS
    )


def cudnn() -> bool:
    """Whether the cuDNN library is installed, which JAX needs to lower cuDNN's attention."""
    try:
        ctypes.CDLL("libcudnn.so.9")  # from the loader's path, or loaded by the plugin
    except OSError:
        return False
    return True


def description(name: str, chip: Chip) -> str:
    """The text of the `GpuTargetConfigProto` of a GPU.

    Args:
      name: a key of `PROCESSORS`.
      chip: its entry in `chips.CHIPS`.
    """
    own = PROCESSORS[name]
    system = 2**10  # shared memory that CUDA reserves in every block
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
    """XLA's topology of `count` GPUs, "slices x hosts x GPUs of a host"; None for other counts.

    GPUs are on one host, or on several hosts of `GPUS_PER_HOST` each.
    """
    if count <= GPUS_PER_HOST:
        return f"1x1x{count}"
    hosts, left = divmod(count, GPUS_PER_HOST)
    return None if left else f"1x{hosts}x{GPUS_PER_HOST}"
