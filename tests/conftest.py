"""What every test stands on: eight virtual CPU devices, one compilation cache, the real data."""

import os
import pathlib
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Almost all of the time goes into compiling for the CPU, which is twice as fast without some of its
# optimisations. What a run ends in is also tested with them, in test_resume.py.
FLAGS = {
    "xla_force_host_platform_device_count": "8",
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",
}
if version("jaxlib") < "0.11":  # a later one ends the process at a flag that it does not know
    FLAGS["xla_cpu_use_fusion_emitters"] = "false"
given = os.environ.get("XLA_FLAGS", "")
wanted = [f"--{name}={value}" for name, value in FLAGS.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *wanted]).strip()

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / ".pytest_cache" / "xla"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    folder = pathlib.Path(os.environ.get("DISTILL_JAX_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set DISTILL_JAX_DATA")
    return folder


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory) -> pathlib.Path:
    """The workdir of a small teacher, trained on the digits."""
    from small_runs import TEACHER

    from distill_jax import experiment

    folder = tmp_path_factory.mktemp("teacher") / "run"
    experiment.run(TEACHER, folder)
    return folder
