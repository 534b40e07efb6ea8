"""What a run reads back is its own: the config, the metrics, the result, the saved models."""

import json
import shutil

import pytest
import small_texts
from small_runs import TEACHER, changed

from distill_jax import cli
from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.runs import experiment, export
from distill_jax.training import loop

CONFIG = changed(TEACHER, training__steps=12, checkpoint__every_steps=4, student__widths=(8,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    experiment.run(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was stopped after its checkpoint of step 8."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    config = changed(CONFIG, logging__every_steps=2)
    stop_after(8, config, folder)
    return folder


def stop_after(step, config, folder):
    from distill_jax.runs import session

    original = session.Session.save

    def save(self, at, now):
        original(self, at, now)
        if at == step:
            raise loop.Preempted

    session.Session.save = save
    try:
        with pytest.raises(loop.Preempted):
            experiment.run(config, folder)
    finally:
        session.Session.save = original


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "run")


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_another_learning_rate_in_config_json_is_refused(interrupted, tmp_path, capsys):
    folder = copy(interrupted, tmp_path)
    edit(folder / "config.json", lambda c: c["optimizer"].update(learning_rate=0.5))
    for command in ("train", "eval", "report"):
        assert cli.main([command, f"--workdir={folder}"]) == 2
        line = capsys.readouterr().err
        assert "optimizer.learning_rate: 0.003 then, 0.5 now" in line, command
    flat = changed(CONFIG, logging__every_steps=2, optimizer__learning_rate=0.5)
    with pytest.raises(UsageError, match=r"config\.json was changed"):
        experiment.run(flat, folder)


def test_a_key_that_may_change_between_starts_may_be_edited(interrupted, tmp_path):
    folder = copy(interrupted, tmp_path)
    edit(folder / "config.json", lambda c: c["checkpoint"].update(keep_last=5))
    assert cli.main(["train", f"--workdir={folder}"]) == 0


def test_metrics_that_were_changed_are_refused_and_lost_ones_are_said(
    interrupted, tmp_path, capsys
):
    folder = copy(interrupted, tmp_path)
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    for content in (lines[1:], lines[:-1], [lines[0].replace(b"0.", b"1."), *lines[1:]]):
        metrics.write_bytes(b"".join(content))
        assert cli.main(["train", f"--workdir={folder}"]) == 2
        assert "metrics.jsonl is not what this run wrote" in capsys.readouterr().err
    metrics.unlink()
    assert cli.main(["train", f"--workdir={folder}", "--config.logging.progress=plain"]) == 0
    assert "metrics.jsonl has lost" in capsys.readouterr().err


def test_checkpoints_of_another_run_are_refused(interrupted, tmp_path):
    other = tmp_path / "other"
    stop_after(8, changed(CONFIG, seed=7, logging__every_steps=2), other)
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(interrupted / "checkpoints", other / "checkpoints")
    with pytest.raises(UsageError, match="checkpoint 8 is of another run"):
        experiment.run(changed(CONFIG, seed=7, logging__every_steps=2), other)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("result.json", lambda r: r["final"]["test"].update(accuracy=1.0), "was changed"),
        ("result.json", lambda r: r.pop("sealed"), "is not of this run"),
        ("metrics.jsonl", None, "not as the run left it"),
    ],
)
def test_changed_figures_are_not_printed(finished, tmp_path, capsys, name, change, message):
    folder = copy(finished, tmp_path)
    if change:
        edit(folder / name, change)
    else:
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:-1]))
    assert cli.main(["report", f"--workdir={folder}"]) == 2
    assert message in capsys.readouterr().err
    if change:
        with pytest.raises(UsageError, match=message):
            experiment.run(CONFIG, folder)


def test_the_result_and_the_model_of_another_run_are_refused(finished, tmp_path, capsys):
    experiment.run(changed(CONFIG, seed=1), tmp_path / "other")
    folder = copy(finished, tmp_path)
    shutil.copy(tmp_path / "other" / "result.json", folder)
    assert cli.main(["report", f"--workdir={folder}"]) == 2
    assert "is of another run" in capsys.readouterr().err
    shutil.copy(finished / "result.json", folder)
    shutil.rmtree(folder / "model")
    shutil.copytree(tmp_path / "other" / "model", folder / "model")
    with pytest.raises(UsageError, match="model is another model"):
        experiment.evaluate(folder, "test", "final", {})


def test_a_run_of_an_earlier_version_has_no_seals(finished, tmp_path):
    folder = copy(finished, tmp_path)
    edit(folder / "manifest.json", lambda m: (m.pop("run"), m.pop("config"), m.pop("notes")))
    edit(folder / "result.json", lambda r: r.pop("sealed"))
    assert cli.main(["report", f"--workdir={folder}"]) == 0
    assert experiment.evaluate(folder, "test", "final", {})["count"] == 500
    assert experiment.run(CONFIG, folder).values["steps"] == 12


@pytest.fixture(scope="module")
def decoder_run(tmp_path_factory):
    """A finished run on text."""
    root = tmp_path_factory.mktemp("text")
    small_texts.write_records(root / "records.jsonl")
    teacher = small_texts.make_teacher(root / "teacher")
    config = small_texts.config(teacher, root / "records.jsonl")
    config = changed(config, training__steps=2, training__ema_decay=0.0, data__validation=0)
    config = changed(config, data__test_path=str(root / "records.jsonl"))
    experiment.run(config, root / "run")
    return root, config


def flip(path):
    """Flips the highest bit of an exponent in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[(len(content) // 2) | 3] ^= 0x40
    path.write_bytes(content)


def test_a_flipped_bit_of_a_decoder_is_refused_wherever_one_is_read(decoder_run, tmp_path, capsys):
    root, config = decoder_run
    run = copy(root / "run", tmp_path)
    out = export.write(run, tmp_path / "whole", "final")
    flip(run / "model" / "model.safetensors")
    for command in ("eval", f"export --out={tmp_path / 'out'}"):
        assert cli.main([*command.split(), f"--workdir={run}"]) == 2, command
        assert "model.safetensors is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    shutil.copy(root / "teacher" / "tokenizer.json", run / "model")
    as_student = configs.flatten(config)
    as_student = {k: v for k, v in as_student.items() if not k.startswith("student.")}
    as_student |= {"student.name": "decoder", "student.path": str(run / "model")}
    for again in (
        changed(config, teacher__path=(str(run),)),
        configs.unflatten(as_student),
    ):
        with pytest.raises(UsageError, match=r"model\.safetensors is damaged"):
            experiment.prepare(configs.resolve(again))
    flip(tmp_path / "whole" / "model.safetensors")
    again = changed(config, teacher__path=(out["path"],))
    with pytest.raises(UsageError, match=r"model\.safetensors is damaged"):
        experiment.prepare(configs.resolve(again))


def test_a_plan_reads_the_config_of_a_decoder_as_it_was_written(decoder_run, tmp_path):
    import jax

    from distill_jax import tasks

    root, config = decoder_run
    run = copy(root / "run", tmp_path)
    resolved = configs.resolve(changed(config, teacher__path=(str(run),)))
    assert tasks.abstract_step(resolved, jax.devices()[:1]).parameters["teacher"]
    path = run / "model" / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        tasks.abstract_step(resolved, jax.devices()[:1])


def test_an_export_needs_the_tokenizer_of_the_run(decoder_run, tmp_path):
    root, config = decoder_run
    tokenizer = root / "teacher" / "tokenizer.json"
    before = tokenizer.read_text()
    content = json.loads(before)
    vocabulary = content["model"]["vocab"]
    (a, i), (b, j) = list(vocabulary.items())[-2:]
    vocabulary |= {a: j, b: i}
    tokenizer.write_text(json.dumps(content))
    try:
        with pytest.raises(UsageError, match="another tokenizer than the run began with"):
            export.write(root / "run", tmp_path / "out", "final")
    finally:
        tokenizer.write_text(before)


def test_a_decoder_of_an_earlier_version_is_read_and_said_to_be_unverified(
    decoder_run, tmp_path, capsys
):
    run = copy(decoder_run[0] / "run", tmp_path)
    (run / "model" / "SHA256SUMS").unlink()
    export.write(run, tmp_path / "out", "final")
    assert "not verified" in capsys.readouterr().err
