"""A finished run on text as a Hugging Face folder."""

import errno
import json
import os

import numpy as np
import pytest
import small_texts
import tokenizers

from distill_jax import cli, models, storage
from distill_jax.models import language
from distill_jax.models.files import safetensors_writer
from distill_jax.runs import experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    records = folder / "records.jsonl"
    small_texts.write_records(records)
    teacher = small_texts.make_teacher(folder / "teacher")
    settings = json.loads((teacher / "tokenizer_config.json").read_text())
    (teacher / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "the"}))
    config = small_texts.config(teacher, records)
    config["training"]["steps"] = 2
    experiment.run(config, folder / "run")
    return folder / "run"


def test_the_folder_has_the_student_and_its_tokenizer(run, tmp_path, capsys):
    out = tmp_path / "student"
    assert cli.main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (
        said["parameters_sha256"]
        == json.loads((run / "result.json").read_text())["parameters_sha256"]
    )
    saved, exported = (models.split(language.load(path))[1] for path in (run / "model", out))
    for name, value in saved.items():
        np.testing.assert_array_equal(exported[name], value)
    tokenizer = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    config = json.loads((out / "config.json").read_text())
    assert tokenizer.id_to_token(config["eos_token_id"]) == "</s>"
    assert config["pad_token_id"] == tokenizer.token_to_id("the")
    assert (out / "tokenizer_config.json").exists()
    # Not over what is there.
    assert cli.main(["export", f"--workdir={run}", f"--out={out}"]) == 2
    assert "exists and holds 'README.md'; expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir=/no/such"], "no run there"),
        (["--format=onxx"], "--format='onxx'"),
        (["--format=safetensors"], "is of text; expected huggingface"),
        (["--format=npz"], "--format=npz"),
        (["--config.seed=1"], "--config.seed: export takes no config keys"),
    ],
)
def test_what_cannot_be_exported_is_said(run, tmp_path, capsys, flags, words):
    flags = flags if "--workdir" in flags[0] else [f"--workdir={run}", *flags]
    assert cli.main(["export", *flags, f"--out={tmp_path / 'out'}"]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_folder_is_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["export", f"--workdir={run}", f"--out={tmp_path}"]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A small public network, as `import` writes it, and a set of images for it."""
    folder = tmp_path_factory.mktemp("imported")
    spec = models.Spec("resnet8", {}, (8, 8, 1), 3, (0.4,), (0.2,))
    module = models.create("resnet8", input_shape=(8, 8, 1), num_classes=3, seed=1)
    _, params, stats = models.split(module)
    models.save(folder / "model", spec, params, stats)
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)
    labels = np.arange(50) % 3
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:20], "y_test": labels[:20]}
    np.savez(folder / "set.npz", **arrays)
    return folder / "model", folder / "set.npz"


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_an_image_model_as_a_state_dict_that_import_reads_back(imported, tmp_path, capsys, form):
    model, _ = imported
    out = tmp_path / "out"
    assert cli.main(["export", f"--workdir={model}", f"--out={out}", f"--format={form}"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    saved = models.load(model)
    assert said["fingerprint"] == saved.fingerprint
    state = models.read_state_dict(out / f"model.{form}")
    assert {"conv1.weight", "layer1.0.bn1.running_var", "fc.bias"} <= state.keys()
    names = json.loads((out / "model.json").read_text())["name_map"]
    assert names.keys() == state.keys() and names["conv1.weight"] == "stem/conv/kernel"
    kernel = saved.params["stem/conv/kernel"]
    np.testing.assert_array_equal(state["conv1.weight"], np.transpose(kernel, (3, 2, 0, 1)))
    flags = ["--model=resnet8", "--classes=3", "--mean=.4", "--std=.2", "--image=8,8,1"]
    again = tmp_path / "again"
    assert cli.main(["import", str(out / f"model.{form}"), *flags, f"--workdir={again}"]) == 0
    assert models.load(again).fingerprint == saved.fingerprint


def test_an_imported_network_is_evaluated_and_its_logits_are_written(imported, tmp_path, capsys):
    model, images = imported
    flags = [f"--workdir={model}", "--config.data.name=npz", f"--config.data.path={images}"]
    flags += ["--config.mesh.data=1", "--config.evaluation.batch_size=8"]
    dump = tmp_path / "logits.npz"
    assert cli.main(["eval", *flags, f"--dump={dump}", "--taps=pooled"]) == 0
    said = capsys.readouterr().out
    with np.load(dump) as found, np.load(images) as arrays:
        saved = models.load(model)
        module = models.abstract("resnet8", input_shape=(8, 8, 1), num_classes=3)
        inputs = models.normalise(arrays["x_test"][..., None] / 255.0, (0.4,), (0.2,))
        outputs = models.apply(models.split(module)[0], saved.params, saved.stats, inputs)[0]
        np.testing.assert_allclose(found["logits"], outputs.logits, atol=1e-5)
        np.testing.assert_allclose(found["pooled"], outputs.taps["pooled"], atol=1e-5)
        np.testing.assert_array_equal(found["labels"], arrays["y_test"])
        np.testing.assert_array_equal(found["ids"], np.arange(20))
        accuracy = np.mean(found["logits"].argmax(-1) == arrays["y_test"])
    assert f"{100 * accuracy:.2f}" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--config.data.name: --workdir holds a model without a run"),
        (["--which=selected"], "--which=selected: an imported model is one"),
        (["--config.optimizer.momentum=0"], "--config.optimizer.momentum: has no meaning"),
        (["--config.data.name=digits"], "num_classes"),
        (["--config.data.name=digits", "--taps=pooled"], "--dump"),
    ],
)
def test_what_an_imported_network_cannot_be_evaluated_on(imported, capsys, flags, words):
    assert cli.main(["eval", f"--workdir={imported[0]}", "--config.mesh.data=1", *flags]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "words"),
    [("huggingface", "--format=huggingface"), ("npz", "mlp has no counterpart in PyTorch")],
)
def test_what_a_run_on_images_cannot_be_written_as(digits_teacher, tmp_path, capsys, form, words):
    flags = [f"--workdir={digits_teacher}", f"--out={tmp_path / 'out'}", f"--format={form}"]
    assert cli.main(["export", *flags]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_another_process_writes_is_left_alone(run, tmp_path, capsys):
    out = tmp_path / "student"
    with storage.holding(out, "--out", beside=True):
        assert cli.main(["export", f"--workdir={run}", f"--out={out}"]) == 2
    assert "--out=" in (line := capsys.readouterr().err) and "in use by process" in line
    assert not out.exists()


def test_a_disk_that_fills_leaves_one_line_and_nothing_else(run, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "student")

    monkeypatch.setattr(safetensors_writer, "write", full)
    assert cli.main(["export", f"--workdir={run}", f"--out={tmp_path / 'student'}"]) == 1
    assert capsys.readouterr().err == "distill-jax: failed: student: No space left on device\n"
    assert list(tmp_path.iterdir()) == []
