"""Compiled programs on disk: the same parameters with and without them, and honest lines."""

import os

import jax
import pytest
from small_runs import TEACHER

from distill_jax import config as configs
from distill_jax.processes import machine
from distill_jax.runs import experiment
from distill_jax.training import compilation_cache


@pytest.fixture
def uncached(monkeypatch, tmp_path):
    """No compilation cache but that of the config, in a home of its own."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.jax_cache.reset_cache()
    yield tmp_path / "home" / "distill_jax" / "programs"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.jax_cache.reset_cache()


def _train(folder, capsys, cache="auto") -> tuple[str, str]:
    """The fingerprint of the parameters, and what the user saw."""
    jax.clear_caches()
    config = configs.resolve(
        configs.apply_overrides(
            TEACHER, {"training.compilation_cache": str(cache), "training.steps": "4"}
        )
    )
    with config.unlocked():
        config.logging.progress = "plain"
    values = experiment.run(config, folder).values
    return values["parameters_sha256"], capsys.readouterr().err


def test_a_run_is_the_same_whether_its_programs_are_compiled_or_read(uncached, tmp_path, capsys):
    first, told = _train(tmp_path / "a", capsys)
    assert "step: compiling\nstep: compiled in" in told
    kept = compilation_cache.folder_of(uncached)
    assert list(kept.glob("jit_steps-*-cache"))
    second, told = _train(tmp_path / "b", capsys)
    assert f"step: cached, its program is read from {kept}\n" in told and "compil" not in told
    third, told = _train(tmp_path / "c", capsys, "off")
    assert "step: compiling, without a cache\n" in told
    assert first == second == third
    assert jax.config.jax_compilation_cache_dir is None


def test_a_damaged_program_is_compiled_again(uncached, tmp_path, capsys):
    first, _ = _train(tmp_path / "a", capsys)
    for path in uncached.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:1000])
    second, told = _train(tmp_path / "b", capsys)
    assert first == second
    assert "step: compiling\nstep: compiled in" in told
    _, told = _train(tmp_path / "c", capsys)
    assert "step: cached" in told


def test_a_folder_that_cannot_be_used_costs_one_line(uncached, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    _, told = _train(tmp_path / "a", capsys, tmp_path / "file")
    assert told.count("compilation cache: ") == 1 and "Not a directory" in told
    assert "step: compiling, without a cache\n" in told


def test_another_cpu_or_number_of_threads_has_programs_of_its_own(monkeypatch):
    here = compilation_cache.folder_of("base")
    monkeypatch.setattr(machine, "usable_cpus", lambda: 999)
    assert compilation_cache.folder_of("base") != here
    monkeypatch.setattr(machine, "cpu_identity", lambda: "another")
    assert compilation_cache.folder_of("base").name == "another-999"


def test_a_cache_of_the_users_own_is_left_alone(uncached, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with compilation_cache.opened("auto", print):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert not uncached.exists()


def test_several_processes_use_no_folder_that_they_may_not_share(uncached, monkeypatch, tmp_path):
    monkeypatch.setattr(compilation_cache.coordination, "is_distributed", lambda: True)
    with compilation_cache.opened("auto", print):
        assert jax.config.jax_compilation_cache_dir is None
    with compilation_cache.opened(str(tmp_path), print):
        assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path))


def test_the_least_recently_used_programs_make_room(tmp_path):
    for number in range(4):
        path = tmp_path / f"cpu{number % 2}" / f"{number}-cache"
        path.parent.mkdir(exist_ok=True)
        compilation_cache.write_whole(path, bytes(100))
        os.utime(path, (number, number))
    (tmp_path / "notes.txt").write_text("not ours")
    compilation_cache.bound(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*-cache")) == ["2-cache", "3-cache"]
    assert (tmp_path / "notes.txt").exists()


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    assert compilation_cache.write_whole(tmp_path / "a-cache", b"whole")
    assert not compilation_cache.write_whole(tmp_path / "none" / "b-cache", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a-cache"]
