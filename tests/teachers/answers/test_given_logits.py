"""Logits of another program as a store: a run reads them as it reads a teacher's own."""

import json

import numpy as np
import pytest
import safetensors.numpy
import small_runs

from distill_jax import cli
from distill_jax import config as configs
from distill_jax.runs import experiment

CONFIG = small_runs.changed(
    small_runs.TEACHER, method__name="soft_target", data__augment__crop_padding=0, training__steps=2
)


@pytest.fixture(scope="module")
def logits():
    """Logits for the digits, as another program would give them."""
    splits = configs.resolve(small_runs.TEACHER)
    from distill_jax.tasks.images.data import load_splits

    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=(len(found), 10)).astype(np.float32)
        for name, found in load_splits(splits).items()
    }


def write(tmp_path, arrays, *flags, config=CONFIG):
    file = tmp_path / "logits.npz"
    np.savez(file, **arrays)
    source = tmp_path / "config.py"
    source.write_text(f"def get_config():\n    return {config!r}\n")
    return ["precompute", f"--config={source}", f"--workdir={tmp_path / 's'}", f"--logits={file}"]


def test_a_run_learns_from_the_logits_and_shows_their_figures(logits, tmp_path, capsys):
    order = np.random.default_rng(1).permutation(len(logits["train"]))
    shuffled = {**logits, "train": logits["train"][order], "ids": order}
    assert cli.main([*write(tmp_path, shuffled), "--dtype=float32"]) == 0
    assert json.loads(capsys.readouterr().out)["views"] == 1
    stored = np.load(tmp_path / "s" / "logits-00000.npy")
    np.testing.assert_array_equal(stored[:, 0], logits["train"][: len(stored)])
    given = small_runs.changed(CONFIG, teacher__store=str(tmp_path / "s"))
    result = experiment.run(given, tmp_path / "run")
    expected = experiment.prepare(configs.resolve(given)).evaluators["test"]
    assert result.values["final"]["test"]["teacher_accuracy"] < 0.3  # of random logits
    assert expected is not None


def test_the_same_in_safetensors(logits, tmp_path):
    arguments = write(tmp_path, logits)
    safetensors.numpy.save_file(logits, tmp_path / "logits.safetensors")
    arguments[-1] = f"--logits={tmp_path / 'logits.safetensors'}"
    assert cli.main(arguments) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("test"), "expected arrays train and test"),
        (lambda a: a.update(train=a["train"][:5]), "train is float32 [5, 1, 10]; expected floats"),
        (lambda a: a.update(test=a["test"][:, :3]), "test is float32"),
        (lambda a: a["train"].__setitem__((0, 0), np.nan), "train has a number that is not finite"),
        (lambda a: a.update(ids=np.zeros(len(a["train"]), int)), "ids do not name each of the"),
        (lambda a: a["train"].__setitem__((0, 0), 1e6), "beyond float16; expected --dtype=float32"),
    ],
    ids=["lacking", "rows", "classes", "nan", "ids", "range"],
)
def test_logits_that_do_not_fit_are_refused(logits, tmp_path, capsys, change, words):
    arrays = {name: value.copy() for name, value in logits.items()}
    change(arrays)
    assert cli.main(write(tmp_path, arrays)) == 2
    error = capsys.readouterr().err
    assert words in error and "--logits=" in error and not (tmp_path / "s").exists()


def test_logits_of_one_view_do_not_serve_many(logits, tmp_path, capsys):
    config = small_runs.changed(CONFIG, data__augment__flip=True)
    assert cli.main(write(tmp_path, logits, config=config)) == 2
    assert "of 2 views" in capsys.readouterr().err
