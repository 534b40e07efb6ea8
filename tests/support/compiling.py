"""How XLA compiles in the tests: for eight CPU devices or another number, quickly, and once.

Compiling for the CPU takes most of the tests' time; without some optimisations it takes half as
long. test_resume.py also checks with all of them what a run ends in. Compiled programs stay in a
cache outside the checkout, which test runs, parallel workers and the processes of tests share.
"""

import os
import pathlib
from importlib.metadata import version

QUICK = {"xla_backend_optimization_level": "0", "xla_cpu_parallel_codegen_split_count": "1"}
if version("jaxlib") < "0.11":  # a later one ends the process at a flag that it does not know
    QUICK["xla_cpu_use_fusion_emitters"] = "false"
#: Compiler options for what is to be equal bit by bit however the compiler cuts it up: as users
#: have them, since the older way of fusing rounds otherwise.
ROUNDING = {name: True for name in QUICK if name == "xla_cpu_use_fusion_emitters"}
#: Compiler options, as users have them, for what computes much longer than it compiles.
FULL = {"xla_backend_optimization_level": 3, **ROUNDING}


def flags(devices: int, given: str = "") -> str:
    """XLA_FLAGS with so many CPU devices; what is given goes before."""
    wanted = {"xla_force_host_platform_device_count": str(devices)} | QUICK
    more = (f"--{name}={value}" for name, value in wanted.items() if name not in given)
    return " ".join([given, *more]).strip()


#: Bytes of compiled programs kept from one test run to the next.
CACHE_LIMIT = 4 * 2**30


def cache_folder() -> pathlib.Path:
    """The folder of compiled programs, one for each version of jaxlib.

    `DISTILL_JAX_TEST_CACHE` names another one than `distill_jax/tests` in the user's cache folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = os.environ.get("DISTILL_JAX_TEST_CACHE") or f"{base}/distill_jax/tests"
    return pathlib.Path(folder) / f"jaxlib-{version('jaxlib')}"


def cache_environment(*, write: bool = True) -> dict[str, str]:
    """The variables with which JAX uses the cache.

    Args:
      write: whether the process adds programs. JAX writes a file in place: a process that a test
        kills could leave half of one, so it only reads.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": os.environ.get("MINC", "0.1")
        if write
        else "1e9",
    }


def write_cache_entries_atomically() -> None:
    """Makes this process rename each finished file into the cache.

    JAX writes in place, and a parallel worker could read half a program.
    """
    from jax._src import lru_cache

    from distill_jax.training.compilation_cache import write_whole

    def put(cache, key: str, value: bytes) -> None:
        write_whole(pathlib.Path(cache._path) / f"{key}{lru_cache._CACHE_SUFFIX}", value)

    lru_cache.LRUCache.put = put


def bound_cache(limit: int = CACHE_LIMIT) -> None:
    """Deletes the least recently used programs until the folder holds at most `limit` bytes."""
    from distill_jax.training.compilation_cache import bound

    bound(cache_folder(), limit)
