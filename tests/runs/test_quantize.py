"""`distill-jax quantize` end to end: folders, what reads them, what is refused."""

import hashlib
import json
import shutil

import jax.numpy as jnp
import language_reference as reference
import numpy as np
import pytest
import small_texts

from distill_jax import cli, models
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import quantized
from distill_jax.models.language.huggingface.reading import grids_of
from distill_jax.quantization import recipes
from distill_jax.runs import experiment, export

CONFIG = language.DecoderConfig(
    vocab_size=320, dim=64, layers=2, heads=2, kv_heads=1, head_dim=32, mlp_dim=128
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = small_texts.make_teacher(tmp_path_factory.mktemp("teacher") / "dense", CONFIG)
    (folder / "generation_config.json").write_text('{"temperature": 0.5}\n')
    return folder


@pytest.fixture(scope="module")
def int4(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int4") / "folder"
    flags = [f"--workdir={teacher}", "--recipe=int4-g32", f"--out={folder}"]
    assert cli.main(["quantize", *flags]) == 0
    return folder


@pytest.mark.parametrize("recipe", ["int8", "int4-g64", "w8a8", "fp8", "q4_0", "q8_0"])
def test_what_is_saved_and_loaded_is_the_model_in_memory(teacher, tmp_path, recipe):
    out = tmp_path / "out"
    written = export.write_quantized(teacher, out, "final", recipe)
    dense = models.split(language.load(teacher))[1]
    kernels = quantized.kernels(language.shapes(CONFIG))
    chosen = recipes.parse(recipe, "--recipe").choose(kernels, kernels, "--recipe")
    held = quantized.encode(dense, chosen)
    found = models.split(language.load(out))[1]
    assert found.keys() == held.keys() and grids_of(out) == chosen
    for name, value in held.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value), err_msg=name)
    here = language.from_params(CONFIG, held, activations=quantized.activations(chosen))
    logits = reference.logits(here, reference.TOKENS)
    np.testing.assert_array_equal(reference.logits(language.load(out), reference.TOKENS), logits)
    error = np.abs(logits - reference.logits(language.load(teacher), reference.TOKENS)).max()
    assert 0 < error < np.abs(logits).max()
    # The size is that of the bits asked for, without the header of names.
    header = int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little")
    weights = sum(int(np.prod(shape)) for shape in kernels.values())
    left = 4 * (sum(value.size for value in dense.values()) - weights)
    bits = 8 * (written["bytes"] - 8 - header - left) / weights
    assert bits == pytest.approx(written["bits_per_weight"], rel=0.05)


def test_the_folder_has_the_tokenizer_and_the_settings_as_they_came(teacher, int4):
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (int4 / name).read_bytes() == (teacher / name).read_bytes()
    about = json.loads((int4 / "config.json").read_text())["quantization_config"]
    assert about["format"] == "pack-quantized" and about["ignore"] == ["lm_head"]
    assert about["config_groups"]["group_0"]["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "dynamic": False,
        "group_size": 32,
    }  # fmt: skip


def test_a_run_is_quantized_evaluated_and_used_as_a_teacher(int4, tmp_path):
    records = tmp_path / "records.jsonl"
    small_texts.write_records(records)
    config = small_texts.config(int4, records)
    config["training"]["steps"] = 2
    config["student"] |= {"dim": 32, "mlp_dim": 32}
    experiment.run(config, tmp_path / "run")  # the teacher is the quantized folder
    out = tmp_path / "student-int8"
    flags = [f"--workdir={tmp_path / 'run'}", "--recipe=int8", f"--out={out}"]
    assert cli.main(["quantize", *flags]) == 0
    assert (out / "tokenizer.json").exists()
    data = {f"data.{name}": str(value) for name, value in config["data"].items()}
    data["evaluation.batch_size"] = "8"
    rounded = experiment.evaluate(out, "test", "final", data)["nll"]
    exact = experiment.evaluate(tmp_path / "run", "test", "final", {})["nll"]
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
    with pytest.raises(UsageError, match="student.path=.* is quantized .int8., and codes cannot"):
        changed = {**config, "student": {"name": "decoder", "path": str(out)}}
        experiment.run(changed, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_exports_of_a_quantized_folder_copy_codes_or_decode_them(int4, tmp_path):
    flags = [f"--workdir={int4}", "--format=compressed-tensors", f"--out={tmp_path / 'copy'}"]
    assert cli.main(["export", *flags]) == 0
    original, copied = (models.split(language.load(f))[1] for f in (int4, tmp_path / "copy"))
    for name, value in original.items():
        np.testing.assert_array_equal(np.asarray(copied[name]), np.asarray(value))
    assert cli.main(["export", f"--workdir={int4}", f"--out={tmp_path / 'dense'}"]) == 0
    dense = models.split(language.load(tmp_path / "dense"))[1]
    wanted = quantized.decode(original, grids_of(int4), jnp.float32)
    assert dense.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(np.asarray(dense[name]), np.asarray(value))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--recipe=int5"], "--recipe='int5': unknown recipe"),
        (["--recipe=int4"], "groups of 128 do not divide the 64 inputs of runs/0/attention/"),
        (["--recipe=.*embedding.*=int8"], "matches no parameter that can be quantized; expected a"),
        (["--recipe=int8", "--workdir={int4}"], "is quantized already (int4-g32)"),
        (["--recipe=int8", "--out={int4}"], "exists and holds"),
        (["--recipe=int8", "--workdir={none}"], "no run there"),
        (["--recipe=int8", "--which=selected"], "expected final"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(teacher, int4, tmp_path, capsys, flags, words):
    flags = [flag.format(int4=int4, none=tmp_path / "none") for flag in flags]
    given = [f"--workdir={teacher}", f"--out={tmp_path / 'out'}", *flags]
    before = sorted(int4.iterdir())
    assert cli.main(["quantize", *given]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir()) and sorted(int4.iterdir()) == before


def test_a_kernel_with_nan_is_refused(teacher, tmp_path, capsys):
    model = language.load(teacher)
    graphdef, params, _ = models.split(model)
    name = "runs/0/mlp/up/kernel"
    params[name] = params[name].at[1, 2, 3].set(jnp.nan)
    language.save(tmp_path / "nan", language.from_params(CONFIG, params))
    shutil.copy(teacher / "tokenizer.json", tmp_path / "nan")
    flags = [f"--workdir={tmp_path / 'nan'}", "--recipe=int8", f"--out={tmp_path / 'out'}"]
    assert cli.main(["quantize", *flags]) == 2
    assert f"{name}: has NaN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_calibration_text_gives_other_codes_and_is_recorded(teacher, int4, tmp_path, capsys):
    small_texts.write_records(tmp_path / "records.jsonl")
    text = tmp_path / "records.jsonl"
    flags = [f"--workdir={teacher}", "--recipe=int4-g32", f"--calibration={text}"]
    flags += ["--calibration-rows=3", f"--out={tmp_path / 'gptq'}"]
    assert cli.main(["quantize", *flags]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    recorded = json.loads((tmp_path / "gptq" / "config.json").read_text())["_calibration"]
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    assert printed["calibration"] == recorded
    assert (
        recorded.items()
        >= {
            "method": "gptq",
            "damping": 0.01,
            "file": "records.jsonl",
            "sha256": digest,
            "rows": 3,
        }.items()
    )
    nearest, calibrated = (models.split(language.load(f))[1] for f in (int4, tmp_path / "gptq"))
    assert {n: (v.shape, v.dtype) for n, v in nearest.items()} == {
        n: (v.shape, v.dtype) for n, v in calibrated.items()
    }
    assert all(
        np.any(nearest[name] != calibrated[name])
        for name in quantized.kernels(language.shapes(CONFIG))
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--calibration-rows=4"], "--calibration-rows=4: has no meaning without --calibration"),
        (["--calibration={text}", "--calibration-rows=0"], "--calibration-rows=0: expected at lea"),
        (["--calibration={empty}"], "empty.txt': is empty; expected text of two tokens or more"),
    ],
)
def test_calibration_that_is_none_is_refused(teacher, tmp_path, capsys, flags, words):
    (tmp_path / "empty.txt").write_text("\n")
    small_texts.write_records(tmp_path / "records.jsonl")
    files = {"text": tmp_path / "records.jsonl", "empty": tmp_path / "empty.txt"}
    given = [flag.format(**files) for flag in flags]
    out = tmp_path / "out"
    command = ["quantize", f"--workdir={teacher}", "--recipe=int4-g32", f"--out={out}", *given]
    assert cli.main(command) == 2
    assert words in capsys.readouterr().err and not out.exists()
