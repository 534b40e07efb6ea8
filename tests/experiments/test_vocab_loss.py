"""The study of divergences over a vocabulary: its contenders compute the same."""

import importlib.util
import json

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from experiments.vocab_loss import contenders, memory, run

TASK = {
    "tokens": 24, "student_width": 6, "teacher_width": 10, "vocab": 50, "dtype": "float32",
    "chunk": 7, "repeats": 1,
}  # fmt: skip
NAMES = ["ours", "ours_low_memory", "dense", "torch_eager"]


def reference(divergence):
    """The mean over tokens in float64."""
    student, head, teacher, teacher_head = (np.float64(a) for a in contenders.draw(TASK))
    log_q, log_p = log_softmax(student @ head, -1), log_softmax(teacher @ teacher_head, -1)
    p, q = np.exp(log_p), np.exp(log_q)
    if divergence == "forward_kl":
        return np.mean(np.sum(p * (log_p - log_q), -1))
    log_m = np.log((p + q) / 2)
    return np.mean(np.sum(p * (log_p - log_m) + q * (log_q - log_m), -1) / 2)


@pytest.mark.parametrize("divergence", run.DIVERGENCES)
def test_contenders_compute_the_same(divergence):
    norms = {}
    for name in NAMES:
        torch = name in contenders.TORCH
        if torch and importlib.util.find_spec("torch") is None:
            continue
        made = (contenders.in_torch if torch else contenders.in_jax)(
            {**TASK, "name": name, "divergence": divergence}
        )
        made.once()
        loss, *norms[name] = made.values()
        np.testing.assert_allclose(loss, reference(divergence), rtol=1e-5, err_msg=name)
        assert made.peak_bytes() > 4 * TASK["vocab"] * 16
    for name, found in norms.items():
        np.testing.assert_allclose(found, norms["dense"], rtol=1e-4, err_msg=name)


def test_a_run_leaves_a_record_and_says_what_it_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--tokens=16", "--width=8", "--vocab=40", "--dtype=float32", "--rounds=2"]
    flags += ["--repeats=2", "--contenders=ours,liger"]
    assert run.main(flags) == 0
    (path,) = (tmp_path / "runs" / "vocab_loss").iterdir()
    records = json.loads(path.read_text())["records"]
    assert [record["name"] for record in records] == ["ours", "liger"] * 2
    assert all(record["milliseconds"] > 0 for record in records if record["name"] == "ours")
    if importlib.util.find_spec("liger_kernel") is None:
        assert all("left_out" in record for record in records if record["name"] == "liger")


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--tokens=many", "many: expected integers"), ("--contenders=our", "did you mean 'ours'?")],
)
def test_a_mistake_is_one_line(capsys, flag, words):
    assert run.main([flag]) == 2
    assert words in capsys.readouterr().err


def test_memory_is_what_is_held_and_what_is_made():
    task = {**TASK, "name": "ours", "divergence": "forward_kl", "teacher_width": 6, "vocab": 500}
    small, large = (
        memory.compiled({**task, "tokens": tokens, "name": name}, jax.devices()[0])
        for tokens, name in ((240, "ours"), (240, "dense"))
    )
    hidden, head = 240 * 6 * 4, 6 * 500 * 4
    for found in (small, large):
        assert found["operands"] == 2 * (hidden + head)
        assert hidden + head + 4 <= found["gradients"] <= hidden + head + 64  # and the loss
        assert found["total"] == found["operands"] + found["gradients"] + found["within"]
    logits = 240 * 500 * 4
    assert small["within"] < logits < large["within"]
    assert "| 240 | ours | 7 |" in memory.table([small])


def test_a_target_that_is_none_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert memory.main(["--target=gpu:h900:1"]) == 2
    assert "--target=gpu:h900:1: no gpu 'h900'" in capsys.readouterr().err
