"""Saving a decoder that lies over a mesh: the same bytes, and what the host holds meanwhile."""

import hashlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from distill_jax import models, parallel
from distill_jax.models import language
from distill_jax.models.files import model_folder, safetensors_writer
from distill_jax.models.language import lora

CONFIG = language.DecoderConfig(
    vocab_size=64, dim=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_dim=48
)
EXPERTS = CONFIG.replace(family="mixtral", mlp_dim=24, experts=4, experts_per_token=2)
FUSED = CONFIG.replace(family="phi3", tied=False)


def placed(params, mesh):
    return {
        name: parallel.put(value, parallel.sharding(name, value.shape, mesh))
        for name, value in params.items()
    }


@pytest.mark.parametrize(
    ("config", "dtype"),
    [(CONFIG, "float32"), (EXPERTS, "float32"), (FUSED, "bfloat16")],
    ids=lambda value: getattr(value, "family", value),
)
def test_shards_are_written_as_whole_arrays_are(tmp_path, config, dtype):
    whole = models.split(language.create(config, seed=2))[1]
    own = placed(whole, parallel.make_mesh(data=2, fsdp=2, tensor=2))
    language.save_params(tmp_path / "shards", config, own, dtype=dtype, shard_bytes=20_000)
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 1
    found = {}
    for file in files:
        arrays = safetensors.numpy.load_file(file)
        # The library itself writes the same bytes.
        assert safetensors.numpy.save(arrays, {"format": "pt"}) == file.read_bytes()
        found |= arrays
    expected = np.asarray(whole["runs/0/mlp/down/kernel"].astype(dtype))[1]
    if not config.experts:
        np.testing.assert_array_equal(found["model.layers.1.mlp.down_proj.weight"], expected.T)
    loaded = models.split(language.load(tmp_path / "shards"))[1]
    for name, value in whole.items():
        np.testing.assert_array_equal(loaded[name], value.astype(dtype), err_msg=name)


@pytest.mark.parametrize("large", [2**24, 1000])
def test_the_fingerprint_is_that_of_the_merged_arrays(monkeypatch, large):
    """Whatever lies where, and comes in what parts."""
    monkeypatch.setattr(model_folder, "_LARGE", large)
    model = lora.adapt(language.create(CONFIG, seed=2), rank=2, alpha=8.0, seed=3)
    params = models.split(model)[1]
    generator = np.random.default_rng(0)
    params = {n: jnp.asarray(generator.normal(size=v.shape), v.dtype) for n, v in params.items()}
    trained, base = lora.split_adapters(placed(params, parallel.make_mesh(fsdp=8)))
    definition = CONFIG.definition()

    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode())
    for name in sorted(base):
        dense = np.asarray(params[name])
        stem = name.removesuffix("/kernel") + "/low_rank/"
        if stem + "a/kernel" in params:
            a, b = (np.asarray(params[f"{stem}{end}/kernel"]) for end in "ab")
            dense = dense + np.float32(4.0) * (a @ b)
        digest.update(f"\n{name} float32 {list(dense.shape)}\n".encode() + dense.tobytes())
    merged = lora.merge_adapters(trained, base, 4.0)
    for fetch in (parallel.fetch_slice, parallel.fetch_to_first):
        assert models.fingerprint_of(definition, merged, fetch) == digest.hexdigest()


def test_a_file_of_many_dtypes_is_the_one_that_the_library_writes(tmp_path):
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "a": np.ones((), np.float16),
        "ä": np.zeros((0, 3), np.float32),
        "c": np.arange(5, dtype=np.int8),
    }
    digest = hashlib.sha256()
    safetensors_writer.write(tmp_path / "file", arrays, arrays.__getitem__, digest=digest)
    content = (tmp_path / "file").read_bytes()
    assert content == safetensors.numpy.save(
        {name: np.ascontiguousarray(value) for name, value in arrays.items()} | {"a": arrays["a"]}
    )
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


def test_a_value_of_another_shape_than_said_is_not_written(tmp_path):
    kinds = {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(ValueError, match="a: float32"):
        safetensors_writer.write(tmp_path / "file", kinds, lambda name: np.zeros(3, np.float32))


_SAVE = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np
from distill_jax import models, parallel
from distill_jax.models import language
from distill_jax.models.language.huggingface import reading

config = language.DecoderConfig(
    vocab_size=16000, dim=1024, layers=16, heads=16, kv_heads=16, head_dim=64, mlp_dim=2816
)
mesh = parallel.make_mesh(fsdp=8)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
params = {}
for name, shape in reading.shapes(config).items():
    where = parallel.sharding(name, shape, mesh)
    params[name] = jax.jit(lambda s=shape: jnp.full(s, 0.5), out_shardings=where)()
jax.block_until_ready(params)
before = peak()
models.fingerprint_of(config.definition(), params, parallel.fetch_to_first)
language.save_params(sys.argv[1], config, params)
print(peak() - before, sum(v.nbytes for v in params.values()))
"""


@pytest.mark.slow
def test_a_gigabyte_on_eight_devices(tmp_path):
    """The devices of this machine are its own memory: what grows is in addition to the model."""
    output = subprocess.run(
        [sys.executable, "-c", _SAVE, str(tmp_path / "model")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    grown, held = map(int, output)
    assert held > 0.85e9
    # The embedding, of 66 MB, on the devices and on the host, and what the libraries take.
    assert grown < held / 3
    print(f"a model of {held / 1e9:.2f} GB was saved with {grown / 1e9:.2f} GB in addition")
