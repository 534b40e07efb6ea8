"""What a host holds beside the arrays while a checkpoint is read: a bounded number of bytes."""

import subprocess
import sys

import pytest

_RESTORE = """
import resource, sys
import jax, jax.numpy as jnp
from distill_jax import parallel
from distill_jax.training import checkpoints
from distill_jax.training.checkpoints import arrays

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder, at_once = sys.argv[1], int(sys.argv[2])
where = jax.sharding.NamedSharding(parallel.make_mesh(fsdp=8), jax.sharding.PartitionSpec("fsdp"))
shape = jax.ShapeDtypeStruct((64, 2**17), jnp.float32, sharding=where)
shapes = {str(n): shape for n in range(24)}  # of 32 MiB each
saved = checkpoints.Checkpoints(folder)
if not at_once:
    make = jax.jit(lambda value: jnp.full(shape.shape, value), out_shardings=where)
    state = {name: make(float(name)) for name in shapes}
    saved.save(1, state, {})
else:
    arrays._READ_AT_ONCE = at_once
    jax.block_until_ready(jnp.zeros(8) + 1)
    before = peak()
    state = jax.block_until_ready(saved.restore(shapes).state)
    print(peak() - before, sum(leaf.nbytes for leaf in state.values()))
    assert all(float(leaf[3, 5]) == float(name) for name, leaf in state.items())
saved.close()
"""


@pytest.mark.slow
def test_a_restore_holds_its_arrays_and_what_is_read_at_once(tmp_path):
    """The devices of this machine are its own memory."""

    def run(at_once: int) -> str:
        command = [sys.executable, "-c", _RESTORE, str(tmp_path / "saved"), str(at_once)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run(0)
    grown, held = map(int, run(2**26).split())
    assert held == 24 * 2**25
    assert grown < held + 2 * 2**26 + 2**26  # what is read, twice, and what the libraries take
