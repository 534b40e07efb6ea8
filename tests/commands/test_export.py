"""A finished run on text as a Hugging Face folder."""

import json

import numpy as np
import pytest
import small_texts
import tokenizers

from distill_jax import cli, models
from distill_jax.models import language
from distill_jax.runs import experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    records = folder / "records.jsonl"
    small_texts.write_records(records)
    teacher = small_texts.make_teacher(folder / "teacher")
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
    assert (out / "tokenizer_config.json").exists()
    # Again, over what is there.
    assert cli.main(["export", f"--workdir={run}", f"--out={out}"]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir=/no/such"], "no run there"),
        (["--format=onnx"], "--format"),
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


def test_a_run_on_images_is_refused(digits_teacher, tmp_path, capsys):
    assert cli.main(["export", f"--workdir={digits_teacher}", f"--out={tmp_path / 'out'}"]) == 2
    assert "a run on images" in capsys.readouterr().err
