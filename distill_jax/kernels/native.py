"""Builds, loads and selects the native kernels: one library of ours on top of oneDNN.

The library is compiled once, when a run first needs it, from the C++ files in this folder, with the
headers of jaxlib and of oneDNN (`pip install 'distill_jax[cpu]'`) and the machine's C++ compiler.
It is kept in the user's cache folder under a name that has a hash of all that went into it.
Whatever is missing, XLA's own kernels are used, and `status` gives the reason.
"""

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import jax
import jaxlib

from distill_jax.errors import UsageError

_SOURCES = ("convolution.cc", "batch_norm.cc", "matmul.cc")
_HEADERS = ("parallel.h", "primitives.h")
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-w")
_TARGETS = (
    "convolution",
    "convolution_to_input",
    "convolution_to_kernel",
    "batch_norm",
    "batch_norm_gradient",
    "matmul",
)
_ONEDNN = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
_BUILD_SECONDS = 300

#: The environment variable with the choice that "auto" stands for: "onednn" or "xla".
VARIABLE = "DISTILL_JAX_CPU_KERNELS"
CHOICES = ("auto", "onednn", "xla")


class Unavailable(Exception):
    """The native kernels cannot be used here; the message is the reason, in one line."""


@dataclasses.dataclass(frozen=True)
class Status:
    """Which kernels computations on a CPU use.

    Attributes:
      name: "onednn" or "xla".
      detail: oneDNN's version, or the reason why it is not used.
    """

    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})"


_status = Status("xla", "not selected")


def status() -> Status:
    """Which kernels are in use."""
    return _status


def enabled() -> bool:
    """Whether a computation that is traced now uses the native kernels when it runs on a CPU."""
    return _status.name == "onednn"


def select(choice: str, *, platform: str = "cpu", devices: int = 1) -> Status:
    """Selects the kernels of the computations that are traced from now on.

    Args:
      choice: "xla"; "onednn"; or "auto": what the environment variable DISTILL_JAX_CPU_KERNELS
        names, else oneDNN wherever it can be used.
      platform: of the mesh; native kernels are for "cpu".
      devices: of the mesh. A program for several CPU devices keeps XLA's kernels, because its
        partitioner cannot split a native call.

    Returns:
      The new status.

    Raises:
      Unavailable: "onednn" was chosen and cannot be used.
    """
    choice = os.environ.get(VARIABLE, choice) if choice == "auto" else choice
    if choice not in CHOICES:
        raise UsageError(f"{VARIABLE}={choice}: expected {' or '.join(CHOICES)}")
    try:
        if choice == "xla":
            return _set(Status("xla", "as configured"))
        if platform != "cpu":
            raise Unavailable(f"a mesh of {platform} devices")
        if devices > 1:
            raise Unavailable(f"a mesh of {devices} devices")
        return _set(Status("onednn", _load()))
    except Unavailable as error:
        if choice == "onednn":
            raise
        return _set(Status("xla", str(error)))


def _set(status: Status) -> Status:
    """Sets the status; programs that were traced with other kernels are not used again."""
    global _status
    if status.name != _status.name:
        jax.clear_caches()
    _status = status
    return status


@contextlib.contextmanager
def selected(choice: str) -> Iterator[None]:
    """Within the context, computations of one device that are traced use the chosen kernels."""
    before = _status
    select(choice)
    try:
        yield
    finally:
        _set(before)


@functools.cache
def _load() -> str:
    """Builds the library if need be, loads it and registers its calls; returns the version."""
    from distill_jax.kernels import matmul  # which asks this module what is in use

    version = _register(_library())
    matmul.install()
    return version


def _register(library: pathlib.Path) -> str:
    try:
        loaded = ctypes.cdll.LoadLibrary(str(library))
    except OSError as error:
        raise Unavailable(f"{library} cannot be loaded: {error}") from None
    for name in _TARGETS:
        capsule = jax.ffi.pycapsule(getattr(loaded, f"distill_{name}"))
        jax.ffi.register_ffi_target(f"distill_{name}", capsule, platform="cpu")
    return f"version {importlib.metadata.version(_ONEDNN[0])}"


def _library() -> pathlib.Path:
    """The compiled library, from the cache or built now."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise Unavailable(f"built for Linux on x86-64 alone, this is {platform.platform()}")
    include, dnnl = _onednn()
    here = pathlib.Path(__file__).parent
    key = hashlib.sha256()
    for name in (*_SOURCES, *_HEADERS):
        key.update((here / name).read_bytes())
    key.update(repr((_FLAGS, jaxlib.__version__, str(dnnl), dnnl.stat().st_size, _cpu())).encode())
    folder = cache_folder()
    library = folder / f"kernels-{key.hexdigest()[:20]}.so"
    if not library.exists():
        _compile(here, include, dnnl, library)
    return library


def cache_folder() -> pathlib.Path:
    """Where compiled libraries are kept: $XDG_CACHE_HOME/distill_jax, or ~/.cache/distill_jax."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base) / "distill_jax" / "kernels"


def _cpu() -> str:
    """The processor's instruction sets, for which the library is compiled."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return line
    return platform.processor()


def _onednn() -> tuple[pathlib.Path, pathlib.Path]:
    """The folder of oneDNN's headers, and its library."""
    found = {}
    for package in _ONEDNN:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            raise Unavailable(
                f"{package} is not installed; pip install 'distill_jax[cpu]'"
            ) from None
        for file in files:
            if file.name in ("dnnl.hpp", "libdnnl.so.3"):
                found[str(file)] = pathlib.Path(str(file.locate())).resolve()
    header = next((p for n, p in found.items() if n.endswith("oneapi/dnnl/dnnl.hpp")), None)
    library = next((p for n, p in found.items() if n.endswith("libdnnl.so.3")), None)
    if header is None or library is None or not header.exists() or not library.exists():
        raise Unavailable(f"{' and '.join(_ONEDNN)} lack dnnl.hpp or libdnnl.so.3")
    return header.parents[2], library


def _compile(
    here: pathlib.Path, include: pathlib.Path, dnnl: pathlib.Path, library: pathlib.Path
) -> None:
    """Compiles into a temporary file, which then takes the library's name at once."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("no C++ compiler: expected g++ or clang++ on PATH, or CXX")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(suffix=".so", dir=library.parent)
        os.close(handle)
    except OSError as error:
        raise Unavailable(f"{library.parent} cannot be written: {error.strerror}") from None
    command = [
        *(compiler, *_FLAGS),
        *(f"-I{jax.ffi.include_dir()}", f"-I{include}", f"-I{here}"),
        *(str(here / name) for name in _SOURCES),
        *(str(dnnl), f"-Wl,-rpath,{dnnl.parent}", "-o", made),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            reason = (lines or done.stderr.splitlines() or ["no message"])[0]
            raise Unavailable(f"{compiler} failed: {reason.strip()[:160]}")
        os.replace(made, library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{compiler} failed: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(made)
