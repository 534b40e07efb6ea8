"""One process at a time writes a workdir; what a killed one left is completed."""

import json
import os
import signal
import subprocess
import sys

import pytest
from small_runs import TEACHER, changed

from distill_jax import cli, storage
from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.runs.session import Session

RUN = changed(TEACHER, training__steps=4)


def test_two_runs_in_one_workdir(tmp_path, capsys):
    with storage.holding(tmp_path / "run", "--workdir"):
        with pytest.raises(UsageError, match=f"--workdir=.*: in use by process {os.getpid()} on "):
            experiment.run(RUN, tmp_path / "run")
    experiment.run(RUN, tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()
    with storage.holding(tmp_path / "run", "--workdir"):
        experiment.run(RUN, tmp_path / "run")  # a finished run is only read


@pytest.mark.parametrize("verb", ["train", "store"])
def test_a_verb_that_writes_a_folder_respects_its_holder(verb, tmp_path, digits_teacher, capsys):
    config = tmp_path / "mine.py"
    config.write_text(f"def get_config():\n    return {RUN!r}\n")
    flags = [f"--config={config}", f"--config.teacher.path={digits_teacher}"]
    flags += ["--config.method.name=soft_target", f"--workdir={tmp_path / 'out'}"]
    with storage.holding(tmp_path / "out", "--workdir"):
        assert cli.main([verb, *flags]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "in use by process" in line
    assert not (tmp_path / "out").exists()


def test_a_run_killed_before_its_report_gets_one(tmp_path):
    experiment.run(RUN, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "report.html").unlink()
    torn = tmp_path / "run" / ".report.html.ab12_x9z"
    torn.write_text("<html>")
    mine = tmp_path / "run" / ".notes.ab12_x9z"
    mine.write_text("kept")
    experiment.run(RUN, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text() == page
    assert not torn.exists() and mine.exists()


def test_ctrl_c_saves_and_the_same_command_resumes(tmp_path, monkeypatch, capsys):
    config = tmp_path / "mine.py"
    config.write_text(f"def get_config():\n    return {changed(RUN, logging__every_steps=1)!r}\n")
    command = ["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    log = Session.log
    with monkeypatch.context() as patch:

        def log_and_interrupt(self, at, sums):
            log(self, at, sums)
            if at == 2:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(Session, "log", log_and_interrupt)
        assert cli.main(command) == 0
    assert "stopped by Ctrl-C; the same command resumes" in capsys.readouterr().err
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["2"]
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4


@pytest.mark.parametrize("verb", ["train", "store", "generate", "report"])
def test_ctrl_c_at_once_ends_in_one_line(verb, monkeypatch, capsys):
    from distill_jax import commands

    chosen = next(v for v in commands.VERBS if verb in (v.name, *v.aliases))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chosen.load(), "run", interrupted)
    flags = {"report": ["--workdir=x"]}.get(verb, ["--config=x", "--workdir=x"])
    assert cli.main([verb, *flags]) == 130
    resumes = "" if verb == "report" else "; the same command resumes"
    assert capsys.readouterr().err == f"distill-jax: stopped by Ctrl-C{resumes}\n"


def test_the_modules_that_a_workdir_names_are_not_run(tmp_path, capsys):
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    experiment.run(RUN, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    saved["imports"] = [str(hostile)]
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["config"] = saved
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    own = tmp_path / "mine.py"
    own.write_text(f"def get_config():\n    return {RUN!r}\n")
    workdir = f"--workdir={tmp_path / 'run'}"
    for command in (
        ["report", workdir],
        ["eval", workdir],
        ["export", workdir, f"--out={tmp_path / 'out'}"],
        ["train", workdir],
        ["train", workdir, f"--config={own}"],
    ):
        assert cli.main(command) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and "--trust-imports" in line and "hostile.py" in line
        assert not (tmp_path / "executed").exists()
    assert cli.main(["report", workdir, "--trust-imports"]) == 0
    assert (tmp_path / "executed").exists()


def test_only_installed_packages_count_as_installed(tmp_path, monkeypatch):
    from distill_jax.config import user_modules

    (tmp_path / "optax.py").write_text("")
    assert user_modules._is_installed("optax")
    assert not user_modules._is_installed("optax.py")
    assert not user_modules._is_installed("antigravity")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not user_modules._is_installed("optax")  # this is the one that would be imported


def test_nothing_is_written_before_a_refusal(tmp_path, monkeypatch, capsys):
    config = tmp_path / "mine.py"
    config.write_text(f"def get_config():\n    return {RUN!r}\n")
    command = ["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    minus = "-" * 5000 + "1"
    for key, word in (
        ("logging.wandb=project", "wandb is not installed"),
        ("seed=1e999", "seed=inf: expected"),
        (f"seed={minus}", "expected an integer"),
        ("data.name=folder", "data.path"),
    ):
        assert cli.main([*command, f"--config.{key}"]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and word in line
        assert not (tmp_path / "run").exists()


def test_without_git_on_the_path_a_run_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    experiment.run(RUN, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["git_revision"] is None


@pytest.mark.parametrize("content", ["[]", "{}", '{"data": [], "teachers": {}}', "null"])
def test_a_foreign_manifest_is_refused(content, tmp_path, capsys):
    experiment.run(RUN, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(content)
    (tmp_path / "run" / "result.json").unlink()
    for verb in ("train", "eval"):
        assert cli.main([verb, f"--workdir={tmp_path / 'run'}"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_same_train_twice_at_once(tmp_path):
    """One of two trains to its end; the other one is refused and writes nothing."""
    config = tmp_path / "mine.py"
    config.write_text(f"def get_config():\n    return {changed(RUN, training__steps=300)!r}\n")
    command = [sys.executable, "-m", "distill_jax.cli", "train", f"--config={config}"]
    command += [f"--workdir={tmp_path / 'run'}"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], errors
    assert f"in use by process {both[codes.index(0)].pid} on " in errors[codes.index(2)]
