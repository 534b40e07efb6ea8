"""Image models as StableHLO and ONNX: the same logits from raw pixels, at any batch size."""

import importlib.util
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import cli, models

BATCHES = (1, 3, 128)
SMALL = {
    "resnet8": {},
    "mobilenet_v2": {},
    "shufflenet_v1": {},
    "shufflenet_v2": {},
    "wrn_16_1": {},
    "vgg8": {},
    "mlp": {"widths": (16,)},
    "cnn": {"channels": (4, 8), "dense": 8},
    "deit_tiny": {"patch": 8},
    "imagenet_resnet18": {},
}
# A process that must not find distill_jax loads the file and writes logits.
LOAD = """
import sys
sys.modules["distill_jax"] = None
import jax, numpy as np
content = open(sys.argv[1], "rb").read()
call = jax.export.deserialize(bytearray(content)).call
with np.load(sys.argv[2]) as given:
    np.savez(sys.argv[3], **{name: np.asarray(call(given[name])) for name in given})
"""


def saved_network(folder, name, options, size=32):
    """A network with statistics that normalise something, saved; its path."""
    module = models.create(name, input_shape=(size, size, 3), num_classes=7, seed=1, **options)
    _, params, stats = models.split(module)
    draw = np.random.default_rng(0)
    for key, value in stats.items():
        centre, spread = (0.0, 0.05) if key.endswith("mean") else (0.3, 0.05)
        drawn = np.abs(draw.normal(centre, spread, value.shape)) * (1 if centre else 0.1)
        stats[key] = jnp.asarray(drawn, value.dtype)
    for key, value in params.items():
        if "classifier" in key or key.endswith("token"):
            params[key] = jnp.asarray(draw.normal(0, 0.2, value.shape), value.dtype)
        elif key.endswith("bias"):  # keeps units of deep networks alive
            params[key] = jnp.asarray(draw.normal(0.2, 0.2, value.shape), value.dtype)
    classes = tuple(f"class {k}" for k in range(7))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    spec = models.Spec(name, options, (size, size, 3), 7, mean, std, classes)
    models.save(folder, spec, params, stats)
    return folder


def images(size=32):
    draw = np.random.default_rng(1)
    return {str(n): draw.integers(0, 256, (n, size, size, 3), np.uint8) for n in BATCHES}


def expected(folder, pixels):
    """The logits of this project."""
    saved = models.load(folder)
    spec = saved.spec
    module = models.abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    inputs = models.normalise(pixels.astype(np.float32) / 255, spec.mean, spec.std)
    graphdef = models.split(module)[0]
    return np.asarray(models.apply(graphdef, saved.params, saved.stats, inputs)[0].logits)


def export(folder, out, form):
    assert cli.main(["export", f"--workdir={folder}", f"--out={out}", f"--format={form}"]) == 0
    return json.loads((out / "model.json").read_text())


def check_onnx(folder, out, batches=BATCHES):
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx")
    about = export(folder, out, "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(out / "model.onnx"), options)
    assert session.get_inputs()[0].shape[0] == "batch"
    for name, pixels in images().items():
        if int(name) in batches:
            want = expected(folder, pixels)
            assert np.ptp(want, axis=1).min() > 1e-3 and len(np.unique(want[:, 0])) == len(want)
            (got,) = session.run(None, {"pixels": pixels})
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    return about, session


def test_onnx_has_the_same_logits_at_any_batch_size(tmp_path):
    folder = saved_network(tmp_path / "model", "resnet8", {})
    about, session = check_onnx(folder, tmp_path / "out")
    assert about["opset"] == 17 and about["input"]["dtype"] == "uint8"
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"])[6] == "class 6"
    assert json.loads(metadata["mean"]) == [0.5, 0.4, 0.3]
    assert metadata["licence"] == "unknown"
    assert "library_name: onnx" in (tmp_path / "out" / "README.md").read_text()


def test_stablehlo_is_loaded_without_this_project(tmp_path):
    folder = saved_network(tmp_path / "model", "resnet8", {})
    about = export(folder, tmp_path / "out", "stablehlo")
    assert about["input"]["shape"] == ["batch", 32, 32, 3]
    np.savez(tmp_path / "pixels.npz", **images())
    files = [tmp_path / "out" / about["file"], tmp_path / "pixels.npz", tmp_path / "logits.npz"]
    subprocess.run([sys.executable, "-c", LOAD, *map(str, files)], check=True, cwd=tmp_path)
    with np.load(tmp_path / "logits.npz") as found:
        for name, pixels in images().items():
            want = expected(folder, pixels)
            close = {"rtol": 1e-5, "atol": 1e-5 * np.abs(want).max()}
            np.testing.assert_allclose(found[name], want, **close)


def test_a_primitive_without_a_rule_is_refused_by_its_name(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx", reason="the extra onnx")
    from distill_jax.models.files import onnx_graph

    rules = {name: rule for name, rule in onnx_graph._RULES.items() if name != "max"}
    monkeypatch.setattr(onnx_graph, "_RULES", rules)
    folder = saved_network(tmp_path / "model", "mlp", {"widths": (4,)})
    out = tmp_path / "out"
    command = ["export", f"--workdir={folder}", f"--out={out}", "--format=onnx"]
    assert cli.main(command) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--format=onnx" in line and "the primitive max" in line
    assert not out.exists()


def test_onnx_needs_its_package(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *given: None if name == "onnx" else find(name, *given),
    )
    folder = saved_network(tmp_path / "model", "mlp", {"widths": (4,)})
    command = ["export", f"--workdir={folder}", f"--out={tmp_path / 'out'}", "--format=onnx"]
    assert cli.main(command) == 2
    assert "pip install 'distill_jax[onnx]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_network_is_written_as_onnx(tmp_path, name):
    options = SMALL.get(name, {})
    check_onnx(saved_network(tmp_path / "model", name, options), tmp_path / "out", batches=(1, 3))
