"""What a single process has of many: placing, fetching, shares; the checks of mesh and workdir."""

import json

import jax
import numpy as np
import pytest

from distill_jax import parallel
from distill_jax.errors import UsageError
from distill_jax.processes import coordination
from distill_jax.runs import workdir


def test_values_come_back_from_the_devices():
    mesh = parallel.make_mesh()
    tree = {"rows": np.arange(16.0).reshape(8, 2), "one": np.float32(3), "keys": None}
    for sharding in (parallel.replicated(mesh), None):
        wanted = sharding or {
            "rows": parallel.batch_sharding(mesh),
            "one": parallel.replicated(mesh),
            "keys": None,
        }
        placed = parallel.put(tree, wanted)
        assert placed["rows"].sharding.device_set == set(jax.devices())
        back = parallel.fetch(placed)
        np.testing.assert_array_equal(back["rows"], tree["rows"])
        assert isinstance(back["rows"], np.ndarray) and back["one"] == 3
    rows = parallel.put_rows(tree["rows"], parallel.batch_sharding(mesh))
    np.testing.assert_array_equal(parallel.local_rows(rows), tree["rows"])
    assert parallel.process_share(mesh) == (0, 1)


def test_a_single_process_decides_and_says_for_itself():
    assert (
        coordination.is_distributed(),
        coordination.is_first(),
        coordination.process_index(),
        coordination.process_count(),
    ) == (False, True, 0, 1)
    values = ("as", {"they": 1}, np.arange(2))
    assert coordination.broadcast_from_first(lambda: values) is values
    coordination.abort(1, "is for many")
    coordination.leave()


class Device:
    """One of a process, as far as a mesh asks before it is made."""

    def __init__(self, process: int):
        self.process_index = process


@pytest.mark.parametrize(("data", "tensor"), [(3, 1), (1, 1), (1, 3)])
def test_a_mesh_takes_as_many_devices_of_each_process(monkeypatch, data, tensor):
    monkeypatch.setattr(parallel.mesh.jax, "process_count", lambda: 2)
    devices = [Device(0), Device(0), Device(1), Device(1)]
    with pytest.raises(UsageError, match=rf"^mesh.data={data}: .* of 4 in 2 processes; expected"):
        parallel.make_mesh(data=data, tensor=tensor, devices=devices)


def test_a_workdir_that_is_not_shared_is_refused(monkeypatch, tmp_path):
    paths = workdir.Workdir(tmp_path)
    for name, value in (("is_distributed", True), ("is_first", False), ("process_index", 3)):
        monkeypatch.setattr(coordination, name, lambda value=value: value)
    monkeypatch.setattr(workdir, "VISIBLE_TIMEOUT", 0.2)
    message = "process 3 does not see what process 0 wrote there"
    for content in (None, "{", json.dumps({"started": "before", "resumed": []})):
        if content:
            paths.manifest.write_text(content)
        with pytest.raises(UsageError, match=message):
            paths.check_shared("now")
    paths.manifest.write_text(json.dumps({"started": "before", "resumed": [{"started": "now"}]}))
    paths.check_shared("now")
