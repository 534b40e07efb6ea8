"""A plan and measured steps of a tiny pair on the devices of the tests, and the table."""

import json

import pytest
import small_plans

from distill_jax.runs import workdir
from experiments.scale import measured, report


@pytest.fixture
def config(tmp_path):
    """A file of the tiny pair, over eight devices."""
    content = small_plans.config(tmp_path, mesh__fsdp=4, mesh__tensor=2).to_dict()
    file = tmp_path / "tiny.py"
    file.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({content!r})\n"
    )
    return file


def test_the_step_of_a_plan_is_run_and_the_plan_of_another_is_refused(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert measured.main([f"--config={config}", "--steps=2"]) == 0
    (out,) = (tmp_path / "runs" / "scale").glob(report.MEASURED)
    found = json.loads(out.read_text())
    assert found["finite"] and found["device"] == "8 x cpu"
    assert found["planned"]["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}
    assert min(found["groups"]) <= found["seconds_a_step"] <= max(found["groups"])
    assert found["assigned_bytes"] == found["planned"]["bytes_a_device"]["total"] > 0
    assert "Measured, s: " in capsys.readouterr().out

    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(found["planned"] | {"batch_size": 16}))
    assert measured.main([f"--config={config}", f"--plan={plan}", "--steps=1"]) == 2
    error = capsys.readouterr().err
    assert "its batch_size is 16; expected 8" in error and error.count("\n") == 1
    assert measured.main([f"--config={config}", "--steps=0"]) == 2
    assert measured.main([f"--config={config}", "--step=1", "--fast"]) == 2


def test_images_are_refused(tmp_path, capsys):
    file = tmp_path / "digits.py"
    file.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        "    return ConfigDict(dict(data=dict(name='digits'), student=dict(name='mlp')))\n"
    )
    assert measured.main([f"--config={file}"]) == 2
    assert "data.name='digits': expected a config of text" in capsys.readouterr().err


def test_the_table_compares_what_was_planned_with_what_was_measured(tmp_path):
    """2 s measured and at least 1.6 s planned, 44 GiB at the peak and 40 planned."""
    planned = {
        "seconds_a_step": {"step": 1.6, "step_without_overlap": 2.5},
        "bytes_a_device": {"total": 40 * 2**30},
        "tokens_a_step": 16384,
    }
    found = {
        "config": "pair",
        "device": "1 x NVIDIA H100",
        "planned_for": "gpu:h100:1",
        "planned": planned,
        "assigned_bytes": 42 * 2**30,
        "peak_bytes": 44 * 2**30,
        "seconds_a_step": 2.0,
        "mfu": 0.5,
        "date": "2026-01-01",
        "command": "python -m experiments.scale.measured",
    }
    assert report.measured_block(tmp_path) == []
    workdir.write_json(tmp_path / "measured-pair.json", found)
    heading, table, command = report.measured_block(tmp_path)
    line = table.splitlines()[2].strip("| ").split(" | ")
    assert line[3:13] == [
        *("1.600", "2.500", "2.000", "1.25", "50.0", "8,192"),
        *("40.00", "42.00", "44.00", "1.100"),
    ]
    assert heading.startswith("###") and found["command"] in command
