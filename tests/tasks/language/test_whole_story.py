"""What a user runs: distil logits, let the teacher write, train on what it wrote, export."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import small_texts

from distill_jax import cli, models
from distill_jax.models import language

CONFIGS = pathlib.Path(__file__).resolve().parents[3] / "configs"
SMALL = [
    "--config.data.length=64", "--config.data.validation=8", "--config.training.batch_size=8",
    "--config.evaluation.batch_size=8", "--config.training.steps=6", "--config.mesh.data=1",
    "--config.optimizer.learning_rate=0.01", "--config.logging.every_steps=2",
    "--config.logging.progress=off", "--config.logging.tensorboard=false",
    "--config.student.layers=(1,)",
]  # fmt: skip


def run(capsys, *arguments) -> dict:
    assert cli.main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_logits_then_text_of_the_teacher_then_export(tmp_path, capsys):
    teacher = small_texts.make_teacher(tmp_path / "teacher")
    records = tmp_path / "records.jsonl"
    small_texts.write_records(records)

    logits = ["train", f"--config={CONFIGS / 'lm_logits.py'}", f"--workdir={tmp_path / 'lm'}"]
    paths = [f"--config.teacher.path={teacher}", f"--config.data.path={records}"]
    said = run(capsys, *logits, *paths, *SMALL)
    assert 0 < said["kl"] < 5 and said["perplexity"] > 1

    prompts = ["generate", f"--config={CONFIGS / 'lm_generate.py'}"]
    prompts += [f"--workdir={tmp_path / 'written'}", f"--config.teacher.path={teacher}"]
    prompts += [f"--config.prompts={records}", "--config.generate.max_new_tokens=8"]
    said = run(capsys, *prompts, "--config.generate.shard=25")
    assert said["responses"] == 60
    lines = (tmp_path / "written" / "responses.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(60))

    sequence = ["train", f"--config={CONFIGS / 'lm_sequence.py'}"]
    sequence += [f"--workdir={tmp_path / 'sequence'}", f"--config.student.path={teacher}"]
    written = f"--config.data.path={tmp_path / 'written' / 'responses.jsonl'}"
    said = run(capsys, *sequence, written, *SMALL)
    assert np.isfinite(said["nll"]) and "kl" not in said

    out = tmp_path / "student"
    run(capsys, "export", f"--workdir={tmp_path / 'sequence'}", f"--out={out}")
    model = language.load(out)
    assert model.config.layers == 1
    assert jnp.isfinite(model(jnp.array([[0, 5, 7]])).hidden).all()
    assert models.parameter_count(models.split(model)[1]) > 0


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.generate.top_p=2", "generate.top_p=2"),
        (
            "--config.generate.topp=1",
            "'generate.topp': unknown key; did you mean 'generate.top_p'?",
        ),
        ("--config.prompts=/no/such.jsonl", "/no/such.jsonl"),
        ("--config.teacher.path=/no/such", "teacher.path='/no/such'"),
    ],
)
def test_what_cannot_be_generated_is_said_in_one_line(tmp_path, capsys, flag, words):
    small_texts.write_tokenizer(tmp_path)
    given = {"--config.teacher.path": tmp_path, "--config.prompts": tmp_path / "prompts.jsonl"}
    given[flag.partition("=")[0]] = flag.partition("=")[2]
    flags = [f"{name}={value}" for name, value in given.items()]
    command = ["generate", f"--config={CONFIGS / 'lm_generate.py'}", f"--workdir={tmp_path / 'w'}"]
    assert cli.main([*command, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "w").exists()
