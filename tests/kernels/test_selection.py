"""Which kernels are used, and what is refused; no compiler needed but where marked."""

import pytest

from distill_jax import kernels
from distill_jax.errors import UsageError
from distill_jax.kernels import native
from distill_jax.runs import manifest


@pytest.fixture(autouse=True)
def restored():
    with kernels.selected("xla"):
        yield


@pytest.fixture
def no_variable(monkeypatch):
    monkeypatch.delenv(native.VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("platform", "devices", "reason"),
    [("tpu", 1, "a mesh of tpu devices"), ("cpu", 8, "a mesh of 8 devices")],
)
def test_other_meshes_keep_xlas_kernels(no_variable, platform, devices, reason):
    status = kernels.select("auto", platform=platform, devices=devices)
    assert status == kernels.Status("xla", reason)
    assert not kernels.enabled()
    with pytest.raises(kernels.Unavailable, match=reason):
        kernels.select("onednn", platform=platform, devices=devices)


def test_without_a_compiler_the_reason_is_given(no_variable, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    monkeypatch.setattr(native, "_onednn", lambda: (tmp_path, _file(tmp_path / "libdnnl.so.3")))
    native._load.cache_clear()
    assert "no C++ compiler" in kernels.select("auto").detail
    assert list((tmp_path / "distill_jax").rglob("*.so")) == []


def test_a_compiler_that_fails_leaves_nothing(no_variable, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(native, "_onednn", lambda: (tmp_path, _file(tmp_path / "libdnnl.so.3")))
    native._load.cache_clear()
    assert "false failed" in kernels.select("auto").detail
    assert list((tmp_path / "distill_jax").rglob("*.so")) == []


def _file(path):
    path.write_bytes(b"")
    return path


def test_the_variable_decides_for_auto_alone(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "xla")
    assert kernels.select("auto") == kernels.Status("xla", "as configured")
    monkeypatch.setenv(native.VARIABLE, "mkl")
    with pytest.raises(UsageError, match="DISTILL_JAX_CPU_KERNELS=mkl: expected auto or onednn"):
        kernels.select("auto")
    assert kernels.select("xla").name == "xla"


def test_a_run_that_resumes_with_other_kernels_is_warned():
    onednn, xla = {"cpu_kernels": "onednn (version 3)"}, {"cpu_kernels": "xla (as configured)"}
    assert manifest.other_kernels(onednn, onednn) is None
    assert manifest.other_kernels({}, xla) is None  # written before there were others
    assert "training.cpu_kernels=onednn" in manifest.other_kernels(onednn, xla)
