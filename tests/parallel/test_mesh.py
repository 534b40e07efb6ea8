"""Meshes over the devices of several processes."""

import pytest

from distill_jax import parallel
from distill_jax.errors import UsageError


class Device:
    """As much of a device as `make_mesh` reads before it makes a mesh."""

    def __init__(self, process: int):
        self.process_index = process


@pytest.mark.parametrize(("data", "tensor"), [(3, 1), (1, 1), (1, 3)])
def test_a_mesh_takes_as_many_devices_of_each_process(monkeypatch, data, tensor):
    monkeypatch.setattr(parallel.mesh.jax, "process_count", lambda: 2)
    devices = [Device(0), Device(0), Device(1), Device(1)]
    with pytest.raises(UsageError, match=rf"^mesh.data={data}: .* of 4 in 2 processes; expected"):
        parallel.make_mesh(data=data, tensor=tensor, devices=devices)
