"""A teacher whose licence forbids a student: `train`, `store`, `generate` and `export` stop."""

import itertools
import json
import shutil

import pytest
import small_texts
import yaml
from small_runs import STUDENT, changed

from distill_jax import cli

STATED = "--config.teacher.outputs_may_train_other_models=true"
FORBIDDING = "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta Llama 3 Version Release Date"


@pytest.fixture
def write_config(tmp_path):
    numbers = itertools.count()

    def write(config: dict) -> str:
        file = tmp_path / f"config{next(numbers)}.py"
        file.write_text(f"def get_config():\n    return {config!r}\n")
        return str(file)

    return write


@pytest.fixture
def teacher(digits_teacher, tmp_path):
    """A copy of a teacher, with a licence that forbids other models."""
    folder = tmp_path / "teacher"
    shutil.copytree(digits_teacher, folder)
    (folder / "LICENSE").write_text(FORBIDDING)
    return folder


@pytest.fixture
def config(teacher, write_config):
    small = {"training__steps": 4, "checkpoint__every_steps": 0, "student__channels": (4, 4)}
    return write_config(changed(STUDENT, teacher__path=(str(teacher),), **small))


def run(capsys, *command) -> tuple[int, str, str]:
    code = cli.main([str(part) for part in command])
    said = capsys.readouterr()
    return code, said.out, said.err


def done(capsys, *command) -> str:
    code, _, err = run(capsys, *command)
    assert code == 0, err
    return err


def refused(capsys, *command) -> str:
    code, _, line = run(capsys, *command)
    assert code == 2 and line.count("\n") == 1, line
    return line


def test_a_student_of_a_forbidding_teacher(config, teacher, tmp_path, capsys):
    out = tmp_path / "out"
    train = ["train", f"--config={config}", f"--workdir={out}"]
    for command in (train, ["store", f"--config={config}", f"--workdir={out}"]):
        line = refused(capsys, *command)
        for words in (f"teacher.path='{teacher}'", "llama3 (LICENSE)", "1.b.v", STATED[9:-5]):
            assert words in line
        assert not out.exists()
    forbidden = "--config.teacher.licence=apache-2.0"
    line = refused(capsys, *train, forbidden, STATED.replace("true", "false"))
    assert "outputs_may_train_other_models=False" in line and not out.exists()

    done(capsys, *train, STATED)
    manifest = json.loads((out / "manifest.json").read_text())
    licence = manifest["teachers"][0]["licence"]
    assert licence["name"] == "llama3" and licence["permission_stated"] is True
    # A student of the student does not ask again, and its record has the statement too.
    third = tmp_path / "third"
    flags = [f"--config.teacher.path={out}", f"--workdir={third}"]
    done(capsys, "train", f"--config={config}", *flags)
    again = json.loads((third / "manifest.json").read_text())["teachers"][0]["licence"]
    assert again["of"][0] == licence


def test_a_store_keeps_the_licence_and_the_statement(config, tmp_path, capsys):
    store, out = tmp_path / "store", tmp_path / "out"
    flags = ["--config.data.augment.mixup=0.0", "--config.training.batch_size=64"]
    command = ["store", f"--config={config}", f"--workdir={store}", *flags]
    done(capsys, *command, STATED)
    kept = json.loads((store / "manifest.json").read_text())["teacher"]["licence"]
    assert kept["name"] == "llama3" and kept["permission_stated"] is True
    flags += ["--config.teacher.path=()", f"--config.teacher.store={store}"]
    train = ["train", f"--config={config}", f"--workdir={out}", *flags]
    line = refused(capsys, *train, "--config.teacher.licence=llama2")  # of another opinion
    assert "teacher.store" in line and "llama2 (teacher.licence)" in line
    done(capsys, *train)
    assert json.loads((out / "manifest.json").read_text())["teachers"][0]["licence"] == kept


def test_licence_keys_are_one_a_teacher(config, tmp_path, capsys):
    train = ["train", f"--config={config}", f"--workdir={tmp_path / 'out'}"]
    for flag, words in (
        ("teacher.licence=('mit','mit')", "expected 1 of them"),
        ("teacher.outputs_may_train_other_models=(True,True)", "expected 1 of them"),
        ("teacher.outputs_may_train_other_models=perhaps", "expected true or false"),
        ("teacher.licence=3", "expected names"),
    ):
        line = refused(capsys, *train, f"--config.{flag}")
        assert words in line and flag.split("=")[0] in line


@pytest.fixture(scope="module")
def on_text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("licences")
    records = folder / "records.jsonl"
    small_texts.write_records(records)
    return small_texts.make_teacher(folder / "teacher"), records


def test_text_that_a_teacher_writes(on_text, tmp_path, write_config, capsys):
    source, records = on_text
    teacher = tmp_path / "teacher"
    shutil.copytree(source, teacher)
    (teacher / "README.md").write_text("---\nlicense: llama2\n---\n")
    settings = {"max_new_tokens": 2, "batch_size": 8, "shard": 8}
    given = {"teacher": {"path": str(teacher)}, "prompts": str(records), "generate": settings}
    config, out = write_config(given), tmp_path / "written"
    command = ["generate", f"--config={config}", f"--workdir={out}"]
    assert "llama2 (README.md)" in refused(capsys, *command)
    assert "llama3" in refused(capsys, *command, "--config.teacher.licence=llama3")
    both = ["--config.teacher.licence=x", "--config.generate.licence=y"]
    line = refused(capsys, *command, STATED, *both)
    assert "expected one of them" in line
    assert not list(out.glob("*"))
    done(capsys, *command, STATED)
    written = json.loads((out / "responses.jsonl").read_text().splitlines()[0])["teacher"]
    assert written["license"] == "llama2" and written["outputs_may_train_other_models"] is True
    record = json.loads((out / "manifest.json").read_text())["teachers"][0]["licence"]
    assert record["name"] == "llama2" and record["permission_stated"] is True

    # What was written is the teacher of a student that learns from the text alone.
    student = small_texts.config(teacher, out / "responses.jsonl")
    student["training"]["steps"] = 1
    student["method"] = {"name": "supervised"}
    student["teacher"] = {"path": ()}
    student["evaluation"]["select"] = "nll"
    student["data"] |= {"tokenizer": str(teacher)}
    student["student"] = {"name": "decoder", "path": str(source)}
    train = ["train", f"--config={write_config(student)}", f"--workdir={tmp_path / 'run'}"]
    done(capsys, *train)
    writer = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["written_by"][0]
    assert writer["licence"]["name"] == "llama2" and writer["licence"]["permission_stated"] is True
    exported = tmp_path / "exported"
    done(capsys, "export", f"--workdir={tmp_path / 'run'}", f"--out={exported}")
    card = (exported / "README.md").read_text()
    assert "writer of its text" in card and "yes, as its user stated" in card


def test_an_export_names_the_teacher_or_stops(on_text, tmp_path, write_config, capsys):
    source, records = on_text
    teacher = tmp_path / "teacher"
    shutil.copytree(source, teacher)
    student = small_texts.config(teacher, records)
    student["training"]["steps"] = 1
    out = tmp_path / "run"
    student["logging"]["progress"] = "plain"
    err = done(capsys, "train", f"--config={write_config(student)}", f"--workdir={out}")
    assert "may train other models is unknown" in err
    manifest = out / "manifest.json"
    assert json.loads(manifest.read_text())["notes"][-1].startswith("whether outputs of")
    # Found out later: the run has no record, and the folder names the licence now.
    (teacher / "LICENSE").write_text(FORBIDDING)
    command = ["export", f"--workdir={out}", f"--out={tmp_path / 'exported'}"]
    line = refused(capsys, *command)
    assert "llama3" in line and "--teacher-permits" in line
    assert not (tmp_path / "exported").exists()
    done(capsys, *command, "--teacher-permits", "--licence=mit")
    card = (tmp_path / "exported" / "README.md").read_text()
    found = yaml.safe_load(card.split("---\n")[1])
    assert found["license"] == "mit" and found["library_name"] == "transformers"
    fingerprint = json.loads(manifest.read_text())["teachers"][0]["fingerprint"]
    assert fingerprint in card and "yes, as its user stated" in card and "| test |" in card
    assert found["distill_jax"]["made_from"][0]["licence"]["permission_stated"] is True
