"""Huge pages for the memory that a CPU computes in, which make a step 1.1 to 1.25 times as fast.

XLA asks malloc for the temporaries of each step, and the kernel pages them in anew, 4 KiB at a
time; in pages of 2 MiB this costs next to nothing. glibc (2.35 or newer) requests huge pages if
GLIBC_TUNABLES says so when a process starts, so a program that computes on a CPU starts once more,
in place: `execve` keeps the process id, the arguments, open files and the standard streams.

    DISTILL_JAX_HUGE_PAGES=0                  a program leaves its memory as it is
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1     for a program of one's own, which imports this package

Only programs of this project start again, never a process that imports it. Nothing happens on other
systems and C libraries, with an accelerator, where the kernel's setting is "always" (which needs no
request) or "never", or where GLIBC_TUNABLES has its own value of this tunable.
"""

import os
import pathlib
import platform
import sys
from collections.abc import Mapping

from distill_jax.errors import UsageError
from distill_jax.processes import machine

VARIABLE = "DISTILL_JAX_HUGE_PAGES"
TUNABLES = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
#: Names the process that has started again, so that it does not do so for ever where something
#: removes GLIBC_TUNABLES; its child processes have other ids.
_STARTED_AGAIN = "DISTILL_JAX_STARTED_AGAIN"
_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_again(module: str, script: str = "") -> None:
    """Replaces this program by itself with huge pages, where they help; else returns.

    To be called before the first computation with JAX.

    Args:
      module: the program's name in `python -m NAME`.
      script: the name of its console script.

    Raises:
      UsageError: DISTILL_JAX_HUGE_PAGES has another value than 0 or 1.
    """
    if not _is_program(module, script):
        return
    environment = with_huge_pages(os.environ)
    if environment is None or not sys.executable:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:
        return  # such as an interpreter that has been replaced: huge pages are no condition


def _is_program(module: str, script: str) -> bool:
    """Whether this process was started as `python -m module` or as a console script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return spec.name == module
    return bool(script) and pathlib.Path(sys.argv[0]).name == script


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The variables for a process with huge pages; None where nothing is to be changed."""
    wanted = environment.get(VARIABLE, "1")
    if wanted not in ("0", "1"):
        raise UsageError(f"{VARIABLE}={wanted}: expected 0 or 1")
    if wanted == "0" or environment.get(_STARTED_AGAIN) == str(os.getpid()):
        return None
    tunables = environment.get(TUNABLES, "")
    if TUNABLE in tunables or not _on_cpu(environment) or not _libc_can():
        return None
    if setting() != "madvise":
        return None
    chosen = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    return {**environment, TUNABLES: chosen, _STARTED_AGAIN: str(os.getpid())}


def _on_cpu(environment: Mapping[str, str]) -> bool:
    """Whether JAX will compute on the CPU, as far as can be known without loading it."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0].strip() == "cpu"
    return not machine.accelerator_present()


def _libc_can() -> bool:
    """Whether the C library is glibc 2.35 or newer."""
    if platform.system() != "Linux":
        return False
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor = (int(part) for part in version.split(".")[:2])
    except (ValueError, OSError):
        return False
    return name == "glibc" and (major, minor) >= (2, 35)


def setting() -> str:
    """The kernel's setting of transparent huge pages: always, madvise or never; "" if unknown."""
    try:
        text = _SETTING.read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]


def describe() -> dict[str, str | None]:
    """What a manifest records: the kernel's setting, and the variable that glibc has read."""
    return {"transparent_huge_pages": setting() or None, TUNABLES: os.environ.get(TUNABLES)}
