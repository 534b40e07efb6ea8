"""GGUF on the command line: what is refused, and a real model."""

import dataclasses
import json
import os
import pathlib
import shutil

import pytest
import small_texts

from distill_jax import cli
from distill_jax.models import language


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf") / "model"
    config = dataclasses.replace(small_texts.TEACHER, dim=32, heads=4, mlp_dim=48)
    language.save(folder, language.create(config))
    small_texts.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def file(model):
    out = model.parent / "model.gguf"
    assert cli.main(["export", f"--workdir={model}", "--format=gguf", f"--out={out}"]) == 0
    return out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out=model.txt"], "ends in .gguf"),
        (["--out=gs://bucket/model.gguf"], "on a disk"),
        (["--out=x.gguf", "--type=q5_k"], "--type='q5_k': unknown type of a GGUF file"),
        # 48 numbers in a row of the MLP's second matrix.
        (["--out=x.gguf", "--type=q4_0"], "expected a multiple of 32"),
        (["--out=x.gguf", "--which=selected"], "--which=selected"),
        (["--out=x", "--format=huggingface", "--type=f16"], "--type=f16"),
    ],
)
def test_what_is_not_exported(model, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", f"--workdir={model}", "--format=gguf", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_not_replaced(model, file, capsys):
    before = file.read_bytes()
    assert cli.main(["export", f"--workdir={model}", "--format=gguf", f"--out={file}"]) == 2
    assert f"--out={file}: exists" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(family="phi3"), "the family 'phi3'"),
        (dict(window=8, sliding=(True,), family="mistral"), "decoder.window=8"),
        (dict(experts=2, experts_per_token=1, family="mixtral"), "the family 'mixtral'"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(tmp_path, capsys, fields, words):
    language.save(tmp_path / "m", language.create(small_texts.TEACHER.replace(**fields)))
    small_texts.write_tokenizer(tmp_path / "m")
    out = tmp_path / "m.gguf"
    assert cli.main(["export", f"--workdir={tmp_path / 'm'}", "--format=gguf", f"--out={out}"]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model=resnet56"], "--model: has no meaning for a GGUF file"),
        (["--class-names=x"], "--class-names: has no meaning"),
    ],
)
def test_flags_of_networks_mean_nothing_for_a_file(file, tmp_path, capsys, flags, words):
    assert cli.main(["import", str(file), f"--workdir={tmp_path / 'm'}", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_state_dict_needs_its_flags(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(b"x")
    assert cli.main(["import", str(tmp_path / "a.pth"), f"--workdir={tmp_path / 'm'}"]) == 2
    assert "--model, --classes, --mean, --std" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_replaced(file, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert cli.main(["import", str(file), f"--workdir={tmp_path}"]) == 2
    assert "holds 'README.md'; expected a new folder" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_folder_is_in_the_dtype_that_was_asked_for(file, tmp_path, capsys):
    out = tmp_path / "m"
    assert cli.main(["import", str(file), f"--workdir={out}", "--dtype=bfloat16"]) == 0
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert json.loads(capsys.readouterr().out)["types"] == {"F16": 16, "F32": 5}


def test_the_licence_goes_along(model, file, tmp_path, capsys):
    """Of a model card into a file, and of a file into a model card."""
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\n---\n# M\nlicense: gpl-3.0\n")
    flags = [f"--workdir={tmp_path / 'm'}", "--format=gguf", f"--out={tmp_path / 'm.gguf'}"]
    assert cli.main(["export", *flags]) == 0
    assert cli.main(["import", str(tmp_path / "m.gguf"), f"--workdir={tmp_path / 'back'}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["licence"] == "mit"
    assert "license: mit" in (tmp_path / "back" / "README.md").read_text().splitlines()


_SMOLLM2 = os.environ.get("DISTILL_JAX_SMOLLM2", "")


@pytest.mark.nightly
@pytest.mark.skipif(not _SMOLLM2, reason="DISTILL_JAX_SMOLLM2 names no GGUF file of SmolLM2")
def test_a_real_model_answers_and_goes_to_llama_cpp_and_back(tmp_path, capsys):
    import llama_cpp

    from distill_jax.data import text

    llama_cpp.need()
    folder, out = tmp_path / "smollm2", tmp_path / "smollm2.gguf"
    assert cli.main(["import", _SMOLLM2, f"--workdir={folder}"]) == 0
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert cli.main(["export", f"--workdir={folder}", "--format=gguf", f"--out={out}"]) == 0
    tokenizer = text.load_tokenizer(folder)
    ids = tokenizer.encode(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    server = llama_cpp.Server(pathlib.Path(out), 512)
    assert tokenizer.decode(server.generate(ids, 12)) == "The capital of France is Paris."
