"""Models in a bucket, against an emulator: the same as on a disk."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small_texts
from bucket_contents import put

from distill_jax import models, parallel, storage
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.files import safetensors_ranges
from distill_jax.storage import gcs


def test_a_model_in_a_bucket_is_a_teacher(bucket, digits_teacher, tmp_path):
    for name in ("model.json", "weights.safetensors"):
        gcs.write(bucket / "model" / name, (digits_teacher / "model" / name).read_bytes())
    here, there = models.load(digits_teacher), models.load(str(bucket))
    assert here.fingerprint == there.fingerprint == models.load(bucket / "model").fingerprint
    with storage.staging_folder(bucket / "copy", "model.json") as folder:  # as `import` does
        models.save(folder, here.spec, here.params, here.stats)
    assert models.load(bucket / "copy").fingerprint == here.fingerprint
    content = bytearray((digits_teacher / "model" / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    gcs.write(bucket / "model" / "weights.safetensors", bytes(content))
    with pytest.raises(
        UsageError, match=f"teacher.path='{bucket}': weights.safetensors is damaged"
    ):
        models.load(str(bucket))
    with pytest.raises(UsageError, match="no model here"):
        models.load(f"{bucket}/none")


@pytest.fixture
def decoder(tmp_path):
    """A Hugging Face folder of a small decoder, in several files."""
    folder = small_texts.make_teacher(tmp_path / "decoder")
    model = language.load(folder)
    language.save(tmp_path / "shards", model, shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    return tmp_path / "shards"


def test_a_decoder_in_a_bucket_is_the_one_on_a_disk(bucket, decoder, monkeypatch):
    put(decoder, bucket)
    mesh = parallel.make_mesh(fsdp=4, tensor=2)

    def layout(name, shape):
        return parallel.sharding(name, shape, mesh)

    read = []
    whole = gcs.read
    monkeypatch.setattr(gcs, "read", lambda *at: read.append(at) or whole(*at))
    monkeypatch.setattr(
        safetensors_ranges, "_BLOCK", 100
    )  # blocks of rows, also of one that is longer
    for placed in (None, layout):
        here, there = (
            models.split(language.load(path, sharding_fn=placed))[1]
            for path in (decoder, str(bucket))
        )
        assert here.keys() == there.keys()
        for name in here:
            np.testing.assert_array_equal(here[name], there[name])
            assert here[name].sharding == there[name].sharding
    assert len(read) > 100


def test_slices_of_a_tensor_in_a_bucket_are_those_of_numpy(bucket, tmp_path, monkeypatch):
    arrays = {
        "matrix": np.arange(35, dtype=np.float32).reshape(5, 7),
        "half": np.arange(24).reshape(2, 3, 4).astype(jnp.bfloat16),
        "scalar": np.array(3.0),
        "empty": np.zeros((0, 3), np.float16),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    gcs.write(bucket / "x.safetensors", (tmp_path / "x.safetensors").read_bytes())
    monkeypatch.setattr(safetensors_ranges, "_BLOCK", 60)
    file = safetensors_ranges.File(bucket / "x.safetensors")
    assert file.keys() == sorted(arrays)
    for name, array in arrays.items():
        found = file.get_slice(name)
        assert tuple(found.get_shape()) == array.shape
        for index in [
            (slice(None),) * array.ndim,
            (slice(1, 2), slice(0, 2), slice(3))[: array.ndim],
            (slice(1, 1), slice(None), slice(1, 3))[: array.ndim],
        ]:
            np.testing.assert_array_equal(found[index], array[index], strict=True)
    np.testing.assert_array_equal(file.get_slice("matrix")[1:5], arrays["matrix"][1:5])
    reads = []
    whole = gcs.read
    monkeypatch.setattr(gcs, "read", lambda path, a, b: reads.append(b - a) or whole(path, a, b))
    _ = file.get_slice("matrix")[2:4]
    assert reads == [2 * 7 * 4]  # no byte of another row


@pytest.mark.parametrize("how", ["truncated", "no header", "longer"])
def test_a_damaged_file_of_tensors_in_a_bucket_is_refused(how, bucket, decoder):
    put(decoder, bucket)
    name = sorted(file.name for file in decoder.glob("*.safetensors"))[0]
    content = (decoder / name).read_bytes()
    content = {"truncated": content[:-1], "no header": content[:5], "longer": content + b"x"}[how]
    gcs.write(bucket / name, content)
    with pytest.raises(UsageError, match=f"path='{bucket}': {name} is damaged or truncated"):
        language.load(str(bucket))
