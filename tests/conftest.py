"""What every test stands on: eight virtual CPU devices, one compilation cache, the real data."""

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import compiling

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = compiling.flags(8, os.environ.get("XLA_FLAGS", ""))
os.environ["DISTILL_JAX_CPU_KERNELS"] = "xla"  # whose results are stored; see tests/kernels
os.environ.update(compiling.cache_environment())  # for the processes that tests start, too

# No test reaches a real cloud: without `emulator` everything ends at a closed port.
NOWHERE = "127.0.0.1:9"
GCS_URLS = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
os.environ.update(
    dict.fromkeys(GCS_URLS, f"http://{NOWHERE}"),
    GCE_METADATA_ROOT=NOWHERE,
    GCE_METADATA_HOST=NOWHERE,
    NO_GCE_CHECK="true",
    GOOGLE_AUTH_TOKEN_FOR_TESTING="none",
    # Else gcsfs asks Google itself, beside the emulator, what kind of bucket it is.
    GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",
)
os.environ.pop("GOOGLE_APPLICATION_CREDENTIALS", None)

import jax
import jaxtyping
import pytest
import shape_checks

shape_checks.install()

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_configure(config) -> None:
    compiling.write_cache_entries_atomically()
    if not hasattr(config, "workerinput"):  # once, not in every worker of xdist
        compiling.bound_cache()


def pytest_collection_modifyitems(items) -> None:
    """Runs the files with the most slow tests first: a long file begun last keeps one core idle."""
    slow: dict[str, int] = {}
    for item in items:
        slow[item.path] = slow.get(item.path, 0) + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -slow[item.path])  # stable: files and tests keep their order


#: Folders whose tests refuse implicit broadcasting over more axes and mixing of dtypes.
STRICT = ("losses", "optim", "evaluation", "methods", "parallel")


@pytest.fixture(autouse=True)
def explicit_promotion(request):
    """Makes the package state where it broadcasts and promotes, in the folders of `STRICT`.

    Slow tests, which train whole runs with other rooms' code in the step, are exempt.
    """
    room = request.path.relative_to(ROOT / "tests").parts[0]
    if room not in STRICT or request.node.get_closest_marker("slow"):
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Drops compiled programs after a file once this process holds more than 3 GiB."""
    yield
    status = pathlib.Path("/proc/self/statm")  # of Linux; other systems keep the programs
    pages = int(status.read_text().split()[1]) if status.exists() else 0
    if pages * os.sysconf("SC_PAGE_SIZE") > 3 * 2**30:
        jax.clear_caches()


@pytest.fixture
def unchecked_shapes():
    """For tests of our own errors, which come after those of the shapes in a signature."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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

    from distill_jax.runs import experiment

    folder = tmp_path_factory.mktemp("teacher") / "run"
    experiment.run(TEACHER, folder)
    return folder


@pytest.fixture(scope="session")
def emulator():
    """An empty bucket on this machine, "gs://bucket"."""
    pytest.importorskip("gcsfs", reason="gs:// needs the extra gcs")
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "support" / "fake_gcs.py", "bucket"],
        stdout=subprocess.PIPE,
    )
    before = {name: os.environ[name] for name in GCS_URLS}
    os.environ.update(dict.fromkeys(GCS_URLS, f"http://127.0.0.1:{int(server.stdout.readline())}"))
    yield "gs://bucket"
    os.environ.update(before)
    server.kill()
    server.communicate()


@pytest.fixture
def bucket(emulator, request) -> Any:
    """A folder of its own in the bucket, as an `epath.Path`."""
    from distill_jax import storage

    name = re.sub(r"\W+", "-", request.node.name)
    return storage.resolve_path(f"{emulator}/{name}-{os.getpid()}", "test")
