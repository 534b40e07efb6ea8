"""Image networks as codes and scales: folders, logits, what is refused."""

import json

import jax
import numpy as np
import pytest

from distill_jax import cli, models
from distill_jax.errors import UsageError
from distill_jax.models.files import quantized_arrays
from distill_jax.quantization import grids

SIZES = {"input_shape": (32, 32, 3), "num_classes": 10}
PIXELS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def network(name):
    """A network whose statistics are those of a batch, as those of a trained one are."""
    model = models.create(name, seed=1, **SIZES)
    graphdef, params, stats = models.split(model)
    rng = np.random.default_rng(0)
    stats = {k: v + 0.1 * rng.random(v.shape, np.float32) for k, v in stats.items()}
    return models.Spec(name=name, options={}, **SIZES, **PIXELS), graphdef, params, stats


def logits(graphdef, params, stats):
    images = np.random.default_rng(1).normal(size=(8, 32, 32, 3)).astype(np.float32)
    apply = jax.jit(lambda p, s, x: models.apply(graphdef, p, s, x, train=False)[0].logits)
    return np.asarray(apply(params, stats, images))


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "deit_tiny"])
def test_int8_is_on_disk_a_quarter_and_its_logits_are_near(tmp_path, name):
    spec, graphdef, params, stats = network(name)
    models.save(tmp_path / "dense", spec, params, stats, trained_on={"data": "x"})
    flags = [f"--workdir={tmp_path / 'dense'}", f"--out={tmp_path / 'int8'}", "--recipe=int8"]
    assert cli.main(["quantize", *flags]) == 0
    saved = models.load(tmp_path / "int8")
    assert saved.trained_on == {"data": "x"} and saved.spec == spec
    kernels = quantized_arrays.kernels({k: v.shape for k, v in params.items()})
    assert set(saved.quantized) == set(quantized_arrays.by_default(kernels))
    left = [n for n in kernels if n not in saved.quantized]
    assert any("stem" in n for n in left) and any("classifier" in n for n in left)
    size = 0
    for key, value in params.items():
        if key not in saved.quantized:
            np.testing.assert_array_equal(saved.params[key], value)
            size += value.nbytes
            continue
        matrix = np.asarray(value).reshape(-1, value.shape[-1])
        decoded = grids.INT8.decode(*grids.INT8.encode(matrix), np.float32)
        np.testing.assert_array_equal(np.asarray(saved.params[key]).reshape(matrix.shape), decoded)
        size += value.size + 4 * value.shape[-1]
    size += sum(value.nbytes for value in stats.values())
    on_disk = (tmp_path / "int8" / "weights.safetensors").stat().st_size
    assert size <= on_disk < size + 300 * len(params) + 300 * len(stats)
    exact, ours = logits(graphdef, params, stats), logits(graphdef, saved.params, saved.stats)
    assert 0 < np.abs(ours - exact).max() < 0.1 * np.abs(exact).max()


def test_a_quantized_network_is_exported_decoded_and_not_rounded_again(tmp_path, capsys):
    spec, _, params, stats = network("resnet8")
    models.save(tmp_path / "dense", spec, params, stats)
    flags = [f"--workdir={tmp_path / 'dense'}", f"--out={tmp_path / 'a'}"]
    assert cli.main(["quantize", *flags, "--recipe=.*first.*=int8"]) == 0
    assert json.loads(capsys.readouterr().out)["grids"] == ["int8"]
    flags = [f"--workdir={tmp_path / 'a'}", f"--out={tmp_path / 'b'}"]
    assert cli.main(["quantize", *flags, "--recipe=int8"]) == 2
    assert "is quantized already (int8), and codes are never" in capsys.readouterr().err
    assert cli.main(["export", *flags, "--format=npz"]) == 0
    assert (tmp_path / "b" / "model.npz").exists()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("int4", "groups of 128 do not divide the"),
        ("w8a8", "rounds activations, which image networks here do not"),
        ("nothing.*=int8", "matches no parameter"),
    ],
)
def test_refusals(tmp_path, capsys, recipe, words):
    spec, _, params, stats = network("resnet8")
    models.save(tmp_path / "dense", spec, params, stats)
    flags = [f"--workdir={tmp_path / 'dense'}", f"--out={tmp_path / 'out'}", f"--recipe={recipe}"]
    assert cli.main(["quantize", *flags]) == 2
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_a_grid_that_does_not_fit_its_codes_is_refused(tmp_path):
    spec, _, params, stats = network("resnet8")
    name = "stage1/0/first/conv/kernel"
    models.save(tmp_path / "a", spec, params, stats, grids={name: grids.INT8})
    file = tmp_path / "a" / "model.json"
    file.write_text(file.read_text().replace('"int8"', '"int4-g128"'))
    with pytest.raises(UsageError, match="model.json is damaged"):
        models.load(tmp_path / "a")
    with pytest.raises(UsageError, match="has not the codes and scales of q8_0"):
        shapes = {k: v.shape for k, v in params.items()}
        arrays = quantized_arrays.encode(params, {name: grids.INT8})
        quantized_arrays.decode(arrays, {name: "q8_0"}, shapes)
