"""Whole networks: folded, native and plain forms agree, in any process and on any threads."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import native_kernels
import numpy as np
import pytest

from distill_jax import kernels, models
from distill_jax.models.vision import layers

NETWORKS = ("resnet8", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "wrn_16_1")


def draw(name, batch=8):
    """A network with statistics and scales that are not its first ones, and images."""
    module = models.create(name, input_shape=(32, 32, 3), num_classes=10, seed=0)
    graphdef, params, stats = models.split(module)
    rng = np.random.default_rng(2)

    def near(value, width):
        return value + jnp.float32(width * rng.uniform(-1, 1, value.shape))

    params = {k: near(v, 0.3) if v.ndim == 1 else v for k, v in params.items()}
    stats = {k: near(v, 0.4) for k, v in stats.items()}
    return graphdef, params, stats, jnp.float32(rng.normal(size=(batch, 32, 32, 3)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_computes_what_convolutions_and_norms_in_turn_compute(name, monkeypatch):
    graphdef, params, stats, images = draw(name)
    folded = models.apply(graphdef, params, stats, images)[0]

    def in_turn(conv, norm, x, *, train, residual=None, relu=False):
        return norm(conv(x), train=train, residual=residual, relu=relu)

    monkeypatch.setattr(layers, "convolve_and_normalize", in_turn)
    plain = models.apply(graphdef, params, stats, images)[0]
    for got, wanted in zip(jax.tree.leaves(folded), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@native_kernels.needed
@pytest.mark.parametrize("name", NETWORKS)
def test_native_kernels_give_the_same_outputs_and_statistics(name):
    graphdef, params, stats, images = draw(name)

    def both(params, stats, images):
        return (
            models.apply(graphdef, params, stats, images),
            models.apply(graphdef, params, stats, images, train=True),
        )

    results = []
    for choice in ("xla", "onednn"):
        with kernels.selected(choice):
            results.append(jax.tree.leaves(jax.jit(both)(params, stats, images)))
    for wanted, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-5 * np.abs(wanted).max() + 1e-7)


STEP = """
import hashlib, json, sys
import jax, jax.numpy as jnp, numpy as np
from distill_jax import kernels, models
print(kernels.select("onednn"), file=sys.stderr)
graphdef, params, stats = models.split(
    models.create("resnet8", input_shape=(32, 32, 3), num_classes=10, seed=0))
images = jnp.float32(np.random.default_rng(0).normal(size=(21, 32, 32, 3)))
@jax.jit
def step(params, stats):
    def loss(params):
        outputs, new = models.apply(graphdef, params, stats, images, train=True)
        return jnp.square(outputs.logits).mean(), new
    (_, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return {k: v - 0.1 * gradient[k] for k, v in params.items()}, new
for _ in range(2):
    params, stats = step(params, stats)
bits = b"".join(np.asarray(v).tobytes() for v in (*params.values(), *stats.values()))
print(json.dumps(hashlib.sha256(bits).hexdigest()))
"""


@native_kernels.needed
@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset")
def test_the_number_of_threads_changes_no_bit():
    """One core, so one thread, against all of them."""
    hashes = set()
    one = str(min(os.sched_getaffinity(0)))
    for prefix in (["taskset", "-c", one], []):
        done = subprocess.run(
            [*prefix, sys.executable, "-c", STEP],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"XLA_FLAGS": ""},
        )
        hashes.add(json.loads(done.stdout))
    assert len(hashes) == 1
