"""Loading a checkpoint over a mesh: what is read, and what the host holds meanwhile."""

import json
import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from distill_jax import models, parallel
from distill_jax.models import language
from distill_jax.models.language.huggingface import reading, tensor_files, tensor_map

CONFIG = language.DecoderConfig(
    vocab_size=64, dim=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_dim=48
)


EXPERTS = CONFIG.replace(family="mixtral", mlp_dim=24, experts=4, experts_per_token=2)


def by_rules(mesh):
    return lambda name, shape: parallel.sharding(name, shape, mesh)


@pytest.mark.parametrize("config", [CONFIG, EXPERTS], ids=lambda config: config.family)
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_every_value_is_sharded_by_the_rules(tmp_path, config, quantize):
    language.save(tmp_path / "model", language.create(config, seed=2))
    plain = models.split(language.load(tmp_path / "model", quantize=quantize))[1]
    mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
    found = models.split(
        language.load(tmp_path / "model", sharding_fn=by_rules(mesh), quantize=quantize)
    )[1]
    for name, value in plain.items():
        assert found[name].sharding.spec == parallel.sharding(name, value.shape, mesh).spec
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("config", [CONFIG, EXPERTS], ids=lambda config: config.family)
def test_each_part_is_read_once(tmp_path, monkeypatch, config):
    language.save(tmp_path / "model", language.create(config, seed=2))
    total = sum(
        math.prod(shape)
        for shape in tensor_files.shapes(tensor_files.locate(tmp_path / "model")).values()
    )
    read, original = [], tensor_files.Stored.__getitem__

    def counted(self, index):
        part = original(self, index)
        read.append(part.size)
        return part

    monkeypatch.setattr(tensor_files.Stored, "__getitem__", counted)
    language.load(tmp_path / "model", sharding_fn=by_rules(parallel.make_mesh(data=2, fsdp=4)))
    assert sum(read) == total  # though two devices keep each of it
    assert (
        max(read) == 64 * 32 // 4
    )  # of the embedding; nothing is read whole that is kept in parts


_LOAD = """
import resource, sys
import jax, jax.numpy as jnp
from distill_jax import models, parallel
from distill_jax.models import language
mesh = parallel.make_mesh(fsdp=8)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
jax.block_until_ready(jnp.zeros(8) + 1)
before = peak()
model = language.load(sys.argv[1], param_dtype=jnp.bfloat16,
                      sharding_fn=lambda name, shape: parallel.sharding(name, shape, mesh))
print(peak() - before, sum(v.nbytes for v in models.split(model)[1].values()))
"""


@pytest.mark.slow
def test_two_gigabytes_on_eight_devices(tmp_path):
    """The devices share the host's memory: what it holds besides parameters is bounded."""
    config = language.DecoderConfig(
        vocab_size=32000, dim=2048, layers=16, heads=16, kv_heads=16, head_dim=128, mlp_dim=5632
    )
    folder, generator = tmp_path / "model", np.random.default_rng(0)
    folder.mkdir()
    shapes = {t.name: t.shape for t in tensor_map.tensors(config, reading.shapes(config))}
    weights, largest = {}, 0
    for number, (name, shape) in enumerate(shapes.items()):
        block = generator.standard_normal(2**16, np.float32).astype(ml_dtypes.bfloat16)
        tensor = np.resize(block, shape)
        largest = max(largest, tensor.nbytes)
        file = f"model-{number:05d}.safetensors"
        safetensors.numpy.save_file({name: tensor}, folder / file)
        weights[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    (folder / "config.json").write_text(json.dumps(language.to_huggingface(config)))
    output = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder)], check=True, capture_output=True, text=True
    ).stdout.split()
    grown, held = map(int, output)
    assert held > 1.9e9
    assert grown < held + 4 * largest
