"""Programs start again with huge pages where these help, and in no other process."""

import os
import subprocess
import sys

import pytest

from distill_jax.errors import UsageError
from distill_jax.processes import huge_pages, machine

TUNABLES = "GLIBC_TUNABLES"
WANTED = "glibc.malloc.hugetlb=1"


@pytest.fixture
def able(monkeypatch):
    """A machine where huge pages help: glibc 2.35, madvise, no accelerator."""
    monkeypatch.setattr(huge_pages, "setting", lambda: "madvise")
    monkeypatch.setattr(huge_pages.platform, "system", lambda: "Linux")
    monkeypatch.setattr(huge_pages.os, "confstr", lambda name: "glibc 2.35")
    monkeypatch.setattr(machine, "accelerator_present", lambda: False)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "tunables"),
    [
        ({}, WANTED),
        ({"JAX_PLATFORMS": "cpu"}, WANTED),
        ({TUNABLES: "glibc.malloc.arena_max=2"}, f"glibc.malloc.arena_max=2:{WANTED}"),
        ({TUNABLES: "glibc.malloc.hugetlb=2"}, None),
        ({huge_pages.VARIABLE: "0"}, None),
        ({"JAX_PLATFORMS": "cuda,cpu"}, None),
        ({huge_pages._STARTED_AGAIN: str(os.getpid())}, None),  # something removed GLIBC_TUNABLES
        ({huge_pages._STARTED_AGAIN: "1"}, WANTED),  # its parent has started again
    ],
)
def test_only_the_tunable_of_huge_pages_is_added(able, given, tunables):
    found = huge_pages.with_huge_pages({"HOME": "/home/a", **given})
    assert (found and found[TUNABLES]) == tunables
    assert found is None or found["HOME"] == "/home/a"
    assert found is None or huge_pages.with_huge_pages(found) is None


@pytest.mark.parametrize("libc", ["glibc 2.34", "musl 1.2", "glibc", "", None])
def test_another_c_library_is_left_alone(able, libc):
    able.setattr(huge_pages.os, "confstr", lambda name: libc)
    assert huge_pages.with_huge_pages({}) is None


@pytest.mark.parametrize("setting", ["never", "always", ""])
def test_the_kernels_setting_decides(able, setting):
    able.setattr(huge_pages, "setting", lambda: setting)
    assert huge_pages.with_huge_pages({}) is None


def test_an_accelerator_or_another_system_is_left_alone(able):
    able.setattr(machine, "accelerator_present", lambda: True)
    assert huge_pages.with_huge_pages({}) is None
    assert huge_pages.with_huge_pages({"JAX_PLATFORMS": "cpu"}) is not None
    able.setattr(huge_pages.platform, "system", lambda: "Darwin")
    assert huge_pages.with_huge_pages({"JAX_PLATFORMS": "cpu"}) is None


def test_a_wrong_value_of_the_variable_is_refused(able):
    with pytest.raises(UsageError, match="DISTILL_JAX_HUGE_PAGES=yes: expected 0 or 1"):
        huge_pages.with_huge_pages({huge_pages.VARIABLE: "yes"})


PROGRAM = """
import os, sys
from distill_jax.processes import huge_pages
print("start", os.getpid(), *sys.argv[1:], flush=True)
huge_pages.start_again("program", script="distill-jax")
print("work", os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.stdin.read())
"""


def _run(folder, *command) -> list[list[str]]:
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        input="typed",
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(
    huge_pages.with_huge_pages({"JAX_PLATFORMS": "cpu"}) is None,
    reason="huge pages cannot be requested here",
)
@pytest.mark.parametrize("name", ["program.py", "distill-jax"])
def test_a_program_starts_again_with_its_id_arguments_and_input(tmp_path, name):
    (tmp_path / name).write_text(PROGRAM)
    command = ["-m", "program"] if name == "program.py" else [str(tmp_path / name)]
    first, second, work = _run(tmp_path, *command, "--config.a=b c")
    assert first == second == ["start", work[1], "--config.a=b", "c"]
    assert work[2:] == [WANTED, "typed"]


def test_a_process_that_imports_the_package_never_starts_again(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "other.py").write_text("import program")
    for command in (["program.py"], ["-m", "other"], ["-c", PROGRAM]):
        starts = [line for line in _run(tmp_path, *command) if line[0] == "start"]
        assert len(starts) == 1
