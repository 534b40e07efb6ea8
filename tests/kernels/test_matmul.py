"""oneDNN's products of bfloat16 matrices against float64; skipped without a compiler."""

import functools
import hashlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import native_kernels
import numpy as np
import pytest

from distill_jax import kernels
from distill_jax.kernels import matmul

pytestmark = [
    native_kernels.needed,
    pytest.mark.skipif(not matmul._has_instructions(), reason="no instructions for bfloat16"),
]

#: (shape of x, shape of y, dimension numbers): both sides of each operand, several axes as one,
#: batches, and lengths that no piece divides.
PRODUCTS = [
    ((301, 96), (96, 205), (((1,), (0,)), ((), ()))),
    ((301, 96), (205, 96), (((1,), (1,)), ((), ()))),
    ((96, 301), (96, 205), (((0,), (0,)), ((), ()))),
    ((3, 101, 96), (3, 101, 96), (((0, 1), (0, 1)), ((), ()))),
    ((3, 101, 96), (96, 2, 64), (((2,), (0,)), ((), ()))),
    ((5, 64, 96), (5, 96, 128), (((2,), (1,)), ((0,), (0,)))),
    ((64, 5, 96), (96, 5, 128), (((2,), (0,)), ((1,), (1,)))),
    ((40, 96), (96, 2090), (((1,), (0,)), ((), ()))),
    ((1030, 64), (64, 300), (((1,), (0,)), ((), ()))),
]


def operands(x, y):
    keys = jax.random.split(jax.random.key(0))
    return tuple(
        jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, (x, y), strict=True)
    )


def is_native(program, *arrays):
    return "distill_matmul" in jax.jit(program).lower(*arrays).as_text()


def exact(x, y, numbers):
    """The product in float64, and the sum of the products' sizes, which scales its rounding."""
    (x_contracted, y_contracted), (x_batch, y_batch) = numbers
    letters = iter("abcdefgh")
    of_x = [next(letters) for _ in x.shape]
    of_y = [next(letters) for _ in y.shape]
    for i, j in zip((*x_contracted, *x_batch), (*y_contracted, *y_batch), strict=True):
        of_y[j] = of_x[i]
    batch = [of_x[i] for i in x_batch]
    summed = {of_x[i] for i in x_contracted}
    rest = [a for a in (*of_x, *of_y) if a not in batch and a not in summed]
    text = f"{''.join(of_x)},{''.join(of_y)}->{''.join(batch + rest)}"
    wide = [np.asarray(a, np.float64) for a in (x, y)]
    return np.einsum(text, *wide), np.einsum(text, *map(np.abs, wide))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("x", "y", "numbers"), PRODUCTS, ids=str)
def test_products(x, y, numbers, dtype, monkeypatch):
    monkeypatch.setattr(matmul, "_LEAST", 0)
    monkeypatch.setattr(matmul, "_LEAST_A_PIECE", 2**18)
    arrays = operands(x, y)
    program = functools.partial(
        jax.lax.dot_general, dimension_numbers=numbers, preferred_element_type=dtype
    )
    with kernels.selected("onednn"):
        assert is_native(program, *arrays)
        found = np.asarray(jax.jit(program)(*arrays), np.float64)
    wanted, size = exact(*arrays, numbers)
    rounding = 2**-20 * size + (2**-8 * np.abs(wanted) if dtype == jnp.bfloat16 else 0)
    assert found.shape == wanted.shape
    assert np.all(np.abs(found - wanted) <= rounding)


@pytest.mark.parametrize(
    ("x", "y", "numbers"),
    [
        ((64, 96), (96, 64), (((1,), (0,)), ((), ()))),  # small
        ((4, 128, 96), (128, 512, 4), (((0, 1), (2, 0)), ((), ()))),  # axes in another order
        ((4, 128, 3, 3, 64), (4, 128, 3, 64), (((4,), (3,)), ((0, 2), (0, 2)))),
    ],
    ids=["small", "order", "grouped queries"],
)
def test_what_has_no_form_is_xlas(x, y, numbers):
    program = functools.partial(jax.lax.dot_general, dimension_numbers=numbers)
    with kernels.selected("onednn"):
        assert not is_native(program, *operands(x, y))


def test_other_dtypes_and_selections_are_xlas():
    x, y = operands((512, 512), (512, 512))
    with kernels.selected("onednn"):
        assert is_native(jnp.matmul, x, y)
        assert not is_native(jnp.matmul, x.astype(jnp.float32), y.astype(jnp.float32))
        assert not is_native(functools.partial(jnp.matmul, precision="highest"), x, y)
    with kernels.selected("xla"):
        assert not is_native(jnp.matmul, x, y)


def scanned(x, ws):
    """A loss with its gradients through a rematerialised scan."""

    def layer(x, w):
        return jnp.tanh(x @ w), None

    def loss(x, ws):
        y = jax.lax.scan(jax.checkpoint(layer), x, ws)[0]
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    return jax.value_and_grad(loss, argnums=(0, 1))(x, ws)


def test_gradients_within_a_scan_are_near_xlas():
    x, ws = operands((256, 128), (3, 128, 128))
    ws = ws * 0.1
    results = {}
    for name in ("onednn", "xla"):
        with kernels.selected(name):
            assert is_native(scanned, x, ws) == (name == "onednn")
            results[name] = jax.jit(scanned)(x, ws)
    for found, wanted in zip(*map(jax.tree.leaves, results.values()), strict=True):
        wanted = np.asarray(wanted, np.float64)
        off = np.abs(np.asarray(found, np.float64) - wanted)
        assert off.max() <= 2e-2 * np.abs(wanted).max()


PROCESS = """
import hashlib, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from distill_jax import kernels
import test_matmul as own
x, ws = own.operands((512, 256), (3, 256, 256))
with kernels.selected("onednn"):
    leaves = jax.tree.leaves(jax.jit(own.scanned)(x, ws * 0.1))
print(hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in leaves)).hexdigest())
"""


@pytest.mark.slow
def test_the_bits_do_not_depend_on_the_number_of_cores():
    here = os.path.dirname(__file__)
    support = os.path.join(os.path.dirname(here), "support")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([support, *sys.path])}
    cores = sorted(os.sched_getaffinity(0))
    found = set()
    for chosen in (cores, cores[:1]):
        listed = ",".join(map(str, chosen))
        command = ["taskset", "-c", listed, sys.executable, "-c", PROCESS, here]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1 and len(found.pop().strip()) == hashlib.sha256().digest_size * 2
