"""`distill-jax runs`: every folder has its state, whatever a file holds."""

import csv
import json
import os
import subprocess
import sys

import pytest
from run_folders import make_run

from distill_jax import cli, storage
from distill_jax.runs import experiment, records
from distill_jax.storage import locks


def found(folder):
    return {record.path.name: record for record in records.find(folder)}


def test_runs_at_any_depth_have_their_state(tmp_path):
    make_run(tmp_path / "a" / "done")
    make_run(tmp_path / "b" / "c" / "halted", finished=False, step=40)
    make_run(tmp_path / "failed", finished=False, step=7)
    (tmp_path / "failed" / "failure.json").write_text('{"reason": "Diverged: step 8"}')
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "llama"}')
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    runs = found(tmp_path)
    assert {name: record.progress for name, record in runs.items()} == {
        "done": "finished",
        "halted": "stopped at step 40 of 100",
        "failed": "failed at step 7 of 100",
    }
    assert runs["failed"].detail == "Diverged: step 8"


def test_a_later_checkpoint_counts_as_the_last_step(tmp_path):
    run = make_run(tmp_path / "run", finished=False, step=40)
    (run / "checkpoints" / "60").mkdir(parents=True)
    (run / "checkpoints" / "61.orbax-tmp").mkdir()
    assert records.read(run).step == 60


def test_a_run_that_a_process_holds_is_running_and_says_by_whom(tmp_path):
    run = make_run(tmp_path / "run", finished=False, step=40)
    with storage.holding(run, "--workdir"):
        record = records.read(run)
        assert record.progress == "running at step 40 of 100"
        assert f"process {os.getpid()} on " in record.detail
    assert records.read(run).state == "stopped"


def test_a_lock_of_a_dead_process_is_no_holder(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    code = (
        "import sys\nfrom distill_jax.storage import locks\n"
        "sys.stdout.buffer.write(locks._own().render())"
    )
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    (run / storage.LOCK).write_bytes(dead.stdout)
    assert records.read(run).state == "stopped"


def test_a_lock_of_another_machine_is_not_judged(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", finished=False)
    (run / storage.LOCK).write_bytes(locks._own().render())
    monkeypatch.setattr(locks, "_machine", lambda: "another boot")
    record = records.read(run)
    assert record.state == "running" and "on another machine" in record.detail


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("config.json", b"{", "config.json cannot be read (it is no JSON)"),
        ("config.json", b"\xff\xfe", "config.json cannot be read (it is no JSON)"),
        ("config.json", b"[" * 100_000, "config.json cannot be read (it is no JSON)"),
        ("config.json", None, "config.json is missing, or is not that of a run"),
        ("manifest.json", b"7", "manifest.json holds no object"),
        ("result.json", b"null", "result.json holds no object"),
        ("result.json", b'{"final": 3}', "result.json is not of this run"),
        ("metrics.jsonl", b"7\n{}\n", "line 1: not a record"),
        ("metrics.jsonl", b"", "metrics.jsonl is not as the run left it"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_listed(tmp_path, name, content, fault):
    make_run(tmp_path / "good")
    run = make_run(tmp_path / "bad")
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    runs = found(tmp_path)
    assert runs["good"].state == "finished"
    assert runs["bad"].state == "damaged" and fault in runs["bad"].detail


def test_the_verb_prints_a_table_json_and_csv(tmp_path, capsys):
    make_run(tmp_path / "runs" / "=cmd()", test={"accuracy": 0.9234})
    text = {"data": {"name": "text"}, "student": {"name": "a\x1b[2Jb"}}
    make_run(tmp_path / "runs" / "text", config=text, test={"perplexity": 12.345678})
    make_run(tmp_path / "runs" / "half", finished=False, step=30)
    out = tmp_path / "runs.csv"
    assert cli.main(["runs", str(tmp_path / "runs"), f"--csv={out}"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy 92.34%" in printed and "perplexity 12.35" in printed
    assert "accuracy 80.00% (validation)" in printed and "stopped at step 30 of 100" in printed
    assert "\x1b" not in printed
    rows = {row["run"]: row for row in csv.DictReader(out.open(newline=""))}
    assert rows["'=cmd()"]["value"] == "0.9234"  # no formula
    assert rows["text"]["metric"] == "perplexity" and rows["text"]["value"] == "12.345678"

    assert cli.main(["runs", str(tmp_path / "runs"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["state"] for line in lines] == ["finished", "stopped", "finished"]


def test_mistakes_are_one_line_and_an_empty_folder_is_none(tmp_path, capsys):
    assert cli.main(["runs", str(tmp_path / "absent")]) == 2
    assert "absent: no such folder; expected one with runs" in capsys.readouterr().err
    assert cli.main(["runs", str(tmp_path), f"--csv={tmp_path / 'no' / 'a.csv'}"]) == 2
    assert "--csv=" in capsys.readouterr().err
    assert cli.main(["runs", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "no run there" in captured.err


def test_a_diverged_run_is_failed_until_it_starts_again(tmp_path):
    from small_runs import TEACHER, changed

    from distill_jax.training import loop

    config = changed(
        TEACHER,
        optimizer__name="sgd",
        optimizer__learning_rate=1e25,
        training__steps=4,
        student__widths=(4,),
    )
    for _ in range(2):
        with pytest.raises(loop.Diverged):
            experiment.run(config, tmp_path / "run")
        record = records.read(tmp_path / "run")
        assert record.state == "failed" and "not finite in step" in record.detail
        assert record.total_steps == 4
