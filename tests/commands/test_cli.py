"""The command line as a user meets it: what it prints, what it refuses, what it leaves behind."""

import hashlib
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from small_runs import TEACHER, changed

from distill_jax import cli
from distill_jax.commands import report
from distill_jax.config import schema
from distill_jax.runs import experiment


@pytest.fixture
def write_config(tmp_path):
    def write(config: dict, name: str = "mine.py") -> str:
        file = tmp_path / name
        file.write_text(f"def get_config():\n    return {config!r}\n")
        return str(file)

    return write


def refused(capsys, workdir: pathlib.Path, *arguments: str) -> str:
    """The one line of a refusal; nothing may have been written."""
    before = sorted(workdir.rglob("*")) if workdir.exists() else None
    assert cli.main(["train", f"--workdir={workdir}", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    after = sorted(workdir.rglob("*")) if workdir.exists() else None
    assert before == after
    return captured.err


REFUSED = {
    "unknown key": ("training.epoch=3", "did you mean 'training.epochs'"),
    "wrong type": ("training.batch_size=many", "training.batch_size='many': expected an integer"),
    "unknown data set": ("data.name=digit", "data.name='digit'"),
    "batch and mesh": ("mesh.data=3", "training.batch_size=64: expected a multiple of 3"),
    "evaluation and mesh": ("evaluation.batch_size=100", "evaluation.batch_size=100: expected a multiple of 8"),
    "devices": ("mesh.data=9", "the mesh 9x1x1 needs 9 devices; expected at most the 8"),
    "accumulation and mesh": ("training.accumulate=16", "training.accumulate=16: parts of 4 examples"),
    "missing teacher": ("teacher.path=nowhere", "teacher.path='nowhere'"),
    "class index": ("data.only_classes=12", "data.only_classes=(12,): digits has no class 12"),
    "channels": ("data.mean=(0.1,0.2)", "data.mean=(0.1, 0.2): expected 1 numbers, one a channel"),
    "option's range": ("student.dropout=1.5", "student.dropout=1.5"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_and_writes_nothing(case, capsys, tmp_path, write_config):
    override, message = REFUSED[case]
    config = write_config(changed(TEACHER, mesh__data=8))
    line = refused(capsys, tmp_path / "run", f"--config={config}", f"--config.{override}")
    assert message in line
    assert not (tmp_path / "run").exists()


PLACES = ["data.path", "data.tfds_dir", "data.tokenizer", "data.test_path", "teacher.path", "teacher.store", "student.path", "evaluation.prompts", "evaluation.test_prompts"]  # fmt: skip


@pytest.mark.parametrize("key", PLACES)
def test_a_url_is_not_taken_for_a_folder(key, capsys, tmp_path, write_config):
    student = {"name": "decoder", "layers": (0,)} if key == "student.path" else {"name": "mlp"}
    config = write_config({"student": student})
    workdir = tmp_path / "run"
    line = refused(capsys, workdir, f"--config={config}", f"--config.{key}=ftp://host/x")
    assert f"{key}=" in line and "'ftp://host/x'" in line and "expected a local file" in line


@pytest.mark.parametrize(
    "command",
    [
        "train --config=CONFIG --workdir=URL",
        "train --workdir=URL",
        "eval --workdir=URL",
        "report --workdir=URL",
        "store --config=CONFIG --workdir=URL",
        "generate --config=CONFIG --workdir=URL",
        "export --workdir=URL --out=here",
        "export --workdir=here --out=URL",
        "plan --config=CONFIG --target=local --workdir=URL",
        "plan --config=CONFIG --target=local --out=URL",
        "import URL --model=mlp --classes=2 --mean=0,0,0 --std=1,1,1 --workdir=here",
        "import here --model=mlp --classes=2 --mean=0,0,0 --std=1,1,1 --workdir=URL",
    ],
)
def test_a_url_is_no_workdir(command, capsys, tmp_path, write_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_config(TEACHER)
    said = command.replace("CONFIG", config).replace("URL", "ftp://host/run")
    assert cli.main(said.split()) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "'ftp://host/run'" in line and "expected a local" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py"]


def test_a_teacher_of_other_classes_is_refused(capsys, tmp_path, write_config, digits_teacher):
    folder = tmp_path / "images"
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(6):
                Image.new("L", (8, 8), 40 * index).save(folder / split / name / f"{index}.png")
    config = write_config(
        changed(
            TEACHER,
            data__name="folder",
            data__path=str(folder),
            method__name="soft_target",
            teacher__path=str(digits_teacher),
        )
    )
    line = refused(capsys, tmp_path / "run", f"--config={config}")
    assert "teacher.path=" in line and "expected" in line


def test_a_damaged_teacher_is_refused(capsys, tmp_path, write_config, digits_teacher):
    import shutil

    shutil.copytree(digits_teacher / "model", tmp_path / "teacher")
    weights = next((tmp_path / "teacher").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    config = write_config(
        changed(TEACHER, method__name="soft_target", teacher__path=str(tmp_path / "teacher"))
    )
    assert "teacher.path=" in refused(capsys, tmp_path / "run", f"--config={config}")


def test_the_workdir_of_another_config_is_refused(capsys, tmp_path, write_config):
    config = write_config(changed(TEACHER, training__steps=2))
    assert cli.main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    line = refused(capsys, tmp_path / "run", f"--config={config}", "--config.seed=5")
    assert "holds a run of another config" in line and "seed: 0 there, 5 now" in line


def test_a_folder_of_other_files_is_refused(capsys, tmp_path, write_config):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    config = write_config(TEACHER)
    assert "holds files but no config.json" in refused(
        capsys, tmp_path / "run", f"--config={config}"
    )


def test_no_room_on_disk_is_refused(capsys, tmp_path, write_config, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    line = refused(capsys, tmp_path / "run", f"--config={write_config(TEACHER)}")
    assert "workdir=" in line and "1 kB free" in line and "needed" in line


IMPORT = ("import", "--model=resnet20", "--classes=3", "--mean=0", "--std=1", "--workdir=x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice"),
        (["train"], "expected --config=FILE"),
        (["train", "--config.seed"], "expected --config.key=value"),
        (["train", "--config=none.py", "--workdir=x"], "no such file"),
        (["train", "--workdir=/nonexistent/run"], "no run to resume"),
        (["eval", "--workdir=/nonexistent/run"], "no run there"),
        (["report", "--workdir=/nonexistent/run"], "no run there"),
        ([*IMPORT, "none.pth"], "FILE=none.pth: no such file"),
        ([*IMPORT, __file__, "--model=resnet5x"], "--model='resnet5x': unknown model"),
        ([*IMPORT, __file__, "--classes=0"], "--classes=0: expected a positive int"),
        ([*IMPORT, __file__, "--option=shortcuts=pad"], "--option=shortcuts='pad': unknown option"),
        ([*IMPORT, __file__], f"FILE={__file__!r}: expected"),
    ],
)
def test_mistakes_in_the_command_are_one_line(capsys, arguments, message):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_help_config_prints_every_key(capsys):
    assert cli.main(["train", "--help-config"]) == 0
    printed = capsys.readouterr().out
    assert all(path in printed for path in schema.SCHEMA)


def test_help_config_of_a_file_has_the_keys_of_its_kind_and_its_values(capsys, write_config):
    config = write_config(TEACHER)
    assert cli.main(["train", "--help-config", f"--config={config}"]) == 0
    printed = capsys.readouterr().out
    assert "data.augment.crop_padding = 0  (here: 1)" in printed
    assert "student.widths=" in printed and "student.path=''" in printed
    assert "data.tokenizer" not in printed and "vgg" not in printed.split("Models")[1]


def test_print_config_prints_without_running(capsys, tmp_path, write_config):
    config = write_config(TEACHER)
    assert cli.main(["train", f"--config={config}", "--print-config", "--config.seed=9"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 9


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_teacher):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    config = changed(
        TEACHER,
        method__name="soft_target",
        teacher__path=str(digits_teacher),
        student__widths=(8,),
        logging__tensorboard=True,
    )
    return experiment.run(config, workdir)


def test_a_run_leaves_what_the_readme_says(finished):
    names = {path.name for path in finished.workdir.iterdir()}
    assert names == {
        *("config.json", "manifest.json", "metrics.jsonl", "performance.jsonl", "tensorboard"),
        *("checkpoints", "model", "model_selected", "result.json", "report.html", "evaluation"),
    }
    manifest = json.loads((finished.workdir / "manifest.json").read_text())
    assert {"libraries", "devices", "command", "teachers", "data"} <= set(manifest)
    assert len(manifest["teachers"][0]["fingerprint"]) == 64


def test_the_record_has_each_example_once(finished):
    test = finished.values["final"]["test"]
    record = np.load(finished.workdir / "evaluation" / "test.npz")
    assert len(record["each_correct"]) == test["count"]
    assert record["each_correct"].sum() == test["count"] - test["errors"]
    assert record["each_nll"].mean(dtype=np.float64) == pytest.approx(test["nll"], rel=1e-5)


def test_the_tensorboard_shows_the_last_figures(finished):
    (file,) = (finished.workdir / "tensorboard").iterdir()
    content = file.read_bytes()
    for name in ("test/reliability", "test/confusion", "test/soft_targets", "test/accuracy"):
        assert name.encode() in content


def test_train_ends_with_its_figures_and_where_the_page_is(finished, capsys):
    """In a pipe: one JSON object on standard output, lines of key=value on the other."""
    assert cli.main(["train", f"--workdir={finished.workdir}"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["accuracy"] == finished.values["final"]["test"]["accuracy"]
    lines = captured.err.splitlines()
    assert lines[-1] == f"report: {finished.workdir / 'report.html'}"
    for split in ("test", "validation"):
        figures = finished.values["final"][split]
        for model, prefix in (("student", ""), ("teacher", "teacher_")):
            (line,) = [x for x in lines if x.startswith(f"result: split={split} model={model} ")]
            assert f" nll={figures[prefix + 'nll']:.6g}" in line
            assert f" accuracy={figures[prefix + 'accuracy']:.6g}" in line


def test_eval_prints_the_figures_of_the_result(finished, capsys):
    assert cli.main(["eval", f"--workdir={finished.workdir}"]) == 0
    printed = capsys.readouterr().out
    test = finished.values["final"]["test"]
    assert f"{100 * test['accuracy']:.2f}" in printed
    assert "agreement" in printed.lower()


def test_eval_agrees_with_the_run_to_the_digit(finished):
    again = experiment.evaluate(finished.workdir, "test", "final", {})
    assert again == finished.values["final"]["test"]
    selected = experiment.evaluate(finished.workdir, "validation", "selected", {})
    assert selected == finished.values["selected"]["validation"]


def test_eval_refuses_an_override_that_changes_the_run(finished, capsys):
    assert cli.main(["eval", f"--workdir={finished.workdir}", "--config.seed=3"]) == 2
    assert "seed" in capsys.readouterr().err


def test_a_run_records_the_predictions_that_its_figures_count(finished):
    content = (finished.workdir / "evaluation" / "test.npz").read_bytes()
    values = json.loads((finished.workdir / "result.json").read_text())
    seal = values["sealed"]["files"]["evaluation/test.npz"]
    assert seal == hashlib.sha256(content).hexdigest()
    record = np.load(io.BytesIO(content))
    test = values["final"]["test"]
    for name, errors in (("student", test["errors"]), ("teacher", test["teacher_errors"])):
        row, column, count = record[f"pairs_{name}"]
        assert count.sum() == test["count"] and count[row != column].sum() == errors
        assert len(record[name]) == len(record["ids"]) == min(1000, test["count"])
    row, column, count = record["pairs_both"]
    assert count[row == column].sum() / test["count"] == test["agreement"]
    assert record["teacher_errors"][0] == test["teacher_errors"]
    assert len(record["thumbnail_ends"]) == len(record["ids"])
    assert record["thumbnails"][:4].tobytes() == b"RIFF"
    # The logits are those of the examples of these numbers.
    logs = record["student"].astype(np.float64)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    own = logs[np.arange(len(logs)), record["labels"]]
    assert -own.mean() == pytest.approx(test["nll"], rel=1e-5)


def test_report_opens_the_page(finished, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(report.webbrowser, "open", lambda url: not opened.append(url))
    assert cli.main(["report", f"--workdir={finished.workdir}", "--open"]) == 0
    assert opened == [(finished.workdir / "report.html").as_uri()]
    monkeypatch.setattr(report.webbrowser, "open", lambda url: False)
    assert cli.main(["report", f"--workdir={finished.workdir}", "--open"]) == 2
    assert "--open: found no browser here" in capsys.readouterr().err


def test_report_writes_the_page_again(finished, capsys):
    (finished.workdir / "report.html").unlink()
    assert cli.main(["report", f"--workdir={finished.workdir}"]) == 0
    assert (finished.workdir / "report.html").stat().st_size > 1000


def test_a_diverged_run_says_where_and_exits_with_1(capsys, tmp_path, write_config):
    config = write_config(
        changed(
            TEACHER, optimizer__name="sgd", optimizer__learning_rate=1e25, checkpoint__every_steps=1
        )
    )
    assert cli.main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 1
    line = capsys.readouterr().err
    assert "not finite in step" in line and "ids of the batch" in line and "last good" in line
    assert not (tmp_path / "run" / "result.json").exists()


def test_training_imports_no_tensorflow(tmp_path, write_config):
    config = write_config(changed(TEACHER, training__steps=2))
    code = (
        "import sys; from distill_jax import cli; "
        f"code = cli.main(['train', '--config={config}', '--workdir={tmp_path / 'run'}']); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'tensorflow')); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
