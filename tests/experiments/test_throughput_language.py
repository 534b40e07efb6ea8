"""The throughput study on text: its record, its mistakes, and one loss in both libraries."""

import json
import sys

import language_reference as reference
import numpy as np
import pytest

from distill_jax import losses
from distill_jax.models import language as models
from experiments.throughput import language

# A contender that trains on nothing.
FAKE = """
import sys, time
from experiments.throughput import contest

def turn(seconds):
    time.sleep(0.02)
    return 512

contest.serve(lambda: (turn, {"platform": "cpu"}))
"""


@pytest.fixture
def given(tmp_path):
    model, text = tmp_path / "model", tmp_path / "text.txt"
    model.mkdir()
    text.write_text("One line.\n")
    return [f"--model={model}", f"--text={text}", f"--out={tmp_path / 'out'}"]


def test_the_record_has_each_contender_with_its_peak(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(language, "write_batches", lambda task, path: None)
    monkeypatch.setattr(language, "command_of", lambda *given: [sys.executable, "-c", FAKE])
    monkeypatch.setattr(language, "_lacking", lambda name: "torch" if name == "torch_f32" else "")
    chosen = "--contenders=ours_bf16_huge,torch_bf16,torch_f32"
    assert language.main([*given, chosen, "--rounds=2", "--seconds=0.1"]) == 1
    (path,) = (tmp_path / "out" / "results").iterdir()
    found = json.loads(path.read_text())
    assert found["contenders"]["torch_f32"] == {"left_out": "torch is not installed"}
    for name in ("ours_bf16_huge", "torch_bf16"):
        one = found["contenders"][name]
        assert len(one["rounds"]) == 2 and 0.005 < one["peak_gb"] < 2
    assert len(found["load"]) == len(found["busy_with_others"]) == 2
    assert str(tmp_path) not in found["command"]
    printed = capsys.readouterr().out
    assert "[2/2] torch_bf16: " in printed and "tokens/s" in printed and "Peak GB" in printed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--rounds=0", "--rounds=0: expected an integer >= 1"),
        ("--seconds=nan", "--seconds=nan: expected a number > 0"),
        ("--text=nowhere", "--text=nowhere: no such file or folder"),
        ("--layers=0,x", "--layers=0,x: expected numbers such as 0,10,20,29"),
        ("--contenders=ours", "--contenders='ours': unknown contender"),
    ],
)
def test_a_mistake_is_one_line(given, tmp_path, capsys, changed, message):
    assert language.main([*given, changed]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_both_libraries_have_one_loss(tmp_path):
    """Needs PyTorch and transformers."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import torch

    from experiments.throughput import language_peers

    model = reference.write(tmp_path / "model", "llama")
    task = {
        "model": str(model),
        "layers": [0],
        "batch_size": 2,
        **{"learning_rate": 1e-3, "weight_decay": 0.1, "clip_norm": 1.0, "hard_weight": 0.25},
    }
    trainer = language_peers.Trainer(task, bf16=False)
    vocabulary = trainer.student.config.vocab_size
    tokens = np.random.default_rng(0).integers(0, vocabulary, (2, 9))
    theirs = trainer.loss(torch.from_numpy(tokens[:, :-1]), torch.from_numpy(tokens[:, 1:]))
    teacher = models.load(model)
    student = models.from_layers(teacher, (0,))
    read = [m(tokens[:, :-1].astype(np.int32)).hidden.reshape(16, -1) for m in (student, teacher)]
    ours, _ = losses.vocab_divergence(
        *(read[0], student.head, read[1], teacher.head),
        weights=np.full(16, 1 / 16, np.float32),
        labels=tokens[:, 1:].reshape(-1).astype(np.int32),
        soft_weight=0.75,
        hard_weight=0.25,
    )
    np.testing.assert_allclose(float(ours), theirs.item(), rtol=1e-5)
