"""How a process finds the others: what flags, variables and clusters say, and what is refused."""

import http.server
import threading

import pytest

from distill_jax import cli
from distill_jax.errors import UsageError
from distill_jax.processes import discovery
from distill_jax.processes.discovery import Rendezvous

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
MPI_LOCAL = {**MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "0",
}


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((None, None, None), {}, None),
        (("host:1234", "4", "2"), {}, Rendezvous("host:1234", 4, 2)),
        (("[::1]:1234", "4", "2"), {}, Rendezvous("[::1]:1234", 4, 2)),
        ((None, None, None), JAX, Rendezvous("a:1", 3, 0)),
        ((None, None, "2"), JAX, Rendezvous("a:1", 3, 2)),
        # One process is one process, whatever surrounds it.
        ((None, "1", None), SLURM, None),
        ((None, None, None), {**SLURM, "JAX_NUM_PROCESSES": "1"}, None),
        # One task a node has all devices; several have one each, as JAX chooses.
        ((None, None, None), SLURM, Rendezvous(None, None, None, "slurm", ())),
        (
            (None, None, None),
            {**SLURM, "SLURM_STEP_NUM_TASKS": "16"},
            Rendezvous(None, None, None, "slurm"),
        ),
        (
            (None, None, None),
            {**SLURM, "SLURM_STEP_NUM_TASKS": "16", "CUDA_VISIBLE_DEVICES": "5"},
            Rendezvous(None, None, None, "slurm", ()),
        ),
        (("a:1", None, None), SLURM, Rendezvous("a:1", None, None, "slurm", ())),
        # A shell in an allocation of two tasks, and a batch script outside of a step.
        ((None, None, None), {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ((None, None, None), {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2"}, None),
        (
            (None, None, None),
            {**MPI_LOCAL, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5"},
            Rendezvous(None, None, None, "ompi"),
        ),
        (("a:1", None, None), MPI_LOCAL, Rendezvous("a:1", 4, 3, None, (1,))),
        (("a:1", None, None), MPI, Rendezvous("a:1", 4, 3, None, ())),
        (
            (None, None, None),
            {**MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
            None,
        ),
    ],
)
def test_what_flags_and_environment_say(flags, environment, expected):
    assert discovery.discover(*flags, environment) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("host", "2", "0"), {}, "--coordinator=host: expected host:port"),
        (("http://host:1", "2", "0"), {}, "--coordinator=http://host:1: expected host:port"),
        (("host:1", "0", "0"), {}, "--num_processes=0: expected an integer >= 1"),
        (("host:1", "two", "0"), {}, "--num_processes=two: expected an integer >= 1"),
        (("host:1", "2", "-1"), {}, "--process_id=-1: expected an integer >= 0"),
        (("host:1", "2", "2"), {}, "--process_id=2: expected an index from 0 to 1"),
        ((None, "1", "1"), {}, "--process_id=1: expected an index from 0 to 0"),
        (("host:1", None, None), {}, "--num_processes: missing, with --coordinator=host:1"),
        ((None, "2", "1"), {}, "--coordinator: missing, with --num_processes=2, --process_id=1"),
        ((None, None, None), MPI, "--coordinator: missing, with --num_processes=4"),
    ],
)
def test_mistakes_are_said_in_one_line(flags, environment, message):
    with pytest.raises(UsageError) as caught:
        discovery.discover(*flags, environment)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_the_command_line_refuses_them_before_anything_is_written(tmp_path, capsys, verb):
    workdir = tmp_path / "run"
    for flag, message in (
        ("--process_id=1", "--coordinator: missing, with --process_id=1"),
        ("--host_timeout=0", "--host_timeout=0: expected seconds from 1 to 86400"),
        ("--step_timeout=-1", "--step_timeout=-1: expected 0, or seconds from 1 to 604800"),
        ("--host_timeout=soon", "--host_timeout=soon: expected numbers"),
    ):
        assert cli.main([verb, f"--workdir={workdir}", flag]) == 2
        assert capsys.readouterr().err.startswith(f"distill-jax: error: {message}")
    assert not workdir.exists()


@pytest.fixture
def tpu_machine(monkeypatch):
    """A machine with libtpu and chips."""
    find = discovery.importlib.util.find_spec
    monkeypatch.setattr(
        discovery.importlib.util, "find_spec", lambda name: name == "libtpu" or find(name)
    )
    monkeypatch.setattr(discovery, "_has_tpu_devices", lambda: True)


@pytest.fixture
def metadata():
    """A server of Compute Engine's metadata: set its attributes."""
    attributes = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            assert self.path == f"/computeMetadata/v1/instance/attributes/{name}"
            found = name in attributes and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(attributes.get(name, "").encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield attributes, {"GCE_METADATA_IP": f"localhost:{server.server_port}"}
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, None),
        ({"worker-network-endpoints": "10.0.0.1"}, None),
        ({"worker-network-endpoints": "a:b:10.0.0.1,a:b:10.0.0.2"}, "gcetpu"),
        (
            {
                "worker-network-endpoints": "10.0.0.1",
                "tpu-env": "A: 'b'\nMEGASCALE_NUM_SLICES: '2'",
            },
            "gcetpu",
        ),
    ],
)
def test_a_cloud_tpu_vm_asks_its_metadata(tpu_machine, metadata, told, expected):
    attributes, environment = metadata
    attributes.update(told)
    found = discovery.discover(environment=environment)
    assert found == (expected and Rendezvous(None, None, None, expected))
    # Where JAX is told to compute elsewhere, nobody is asked.
    assert discovery.discover(environment={**environment, "JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a-0,a-1"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a-0:8476,a-1:8476"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a-0", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_a_pod_with_tpus_is_told_by_its_variables(tpu_machine, environment, several):
    found = discovery.discover(environment=environment)
    assert found == (Rendezvous(None, None, None, "gketpu") if several else None)


def test_without_a_tpu_no_server_is_asked(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("a server was asked")

    monkeypatch.setattr(discovery.urllib.request, "urlopen", refuse)
    assert discovery.discover(environment={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
