"""Transfers from the host to the devices and back, in a single process."""

import jax
import numpy as np

from distill_jax import parallel


def test_values_come_back_from_the_devices():
    mesh = parallel.make_mesh()
    tree = {"rows": np.arange(16.0).reshape(8, 2), "one": np.float32(3), "keys": None}
    for sharding in (parallel.replicated(mesh), None):
        wanted = sharding or {
            "rows": parallel.batch_sharding(mesh),
            "one": parallel.replicated(mesh),
            "keys": None,
        }
        on_devices = parallel.put(tree, wanted)
        assert on_devices["rows"].sharding.device_set == set(jax.devices())
        back = parallel.fetch(on_devices)
        np.testing.assert_array_equal(back["rows"], tree["rows"])
        assert isinstance(back["rows"], np.ndarray) and back["one"] == 3
    rows = parallel.put_rows(tree["rows"], parallel.batch_sharding(mesh))
    np.testing.assert_array_equal(parallel.local_rows(rows), tree["rows"])
    assert parallel.process_share(mesh) == (0, 1)
