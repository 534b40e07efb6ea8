"""Where the teacher's answers come from changes nothing: ahead of time, stored, resident or not."""

import json

import jax
import numpy as np
import pytest
from small_runs import STUDENT, TEACHER, changed

from distill_jax import cli, tasks
from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.tasks.images.parts import prepare

AUGMENT = {"crop_padding": 1, "flip": True}


def student(teacher, method: str = "soft_target", **more) -> dict:
    """A student of pixels that are cropped and mirrored, without anything else that draws."""
    config = changed(STUDENT, **{"student__dropout": 0.0, "training__ema_decay": 0.0})
    config["data"] = {"name": "digits", "augment": dict(AUGMENT)}
    config["method"] = {"name": method, "soft_weight": 0.9, "hard_weight": 0.1}
    config["training"] = {"steps": 12, "batch_size": 64}
    config["checkpoint"] = {"every_epochs": 0.0}
    return changed(config, teacher__path=str(teacher), **more)


def outcome(folder):
    """(lines of the training log, final parameters, test figures)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    return [line for line in lines if line["split"] == "train"], result


def run(config, folder):
    experiment.run(config, folder)
    return outcome(folder)


def close(one, other, tolerance):
    for a, b in zip(one[0], other[0], strict=True):
        for name in ("loss", "soft_loss", "gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=tolerance), (a["step"], name)


@pytest.fixture(scope="module")
def store(digits_teacher, tmp_path_factory):
    """All 18 views of every digit, in float32."""
    folder = tmp_path_factory.mktemp("store") / "answers"
    made = tasks.precompute(student(digits_teacher), folder, dtype="float32")
    assert made["scheme"] == "finite" and made["views"] == 18
    return folder


@pytest.fixture(scope="module")
def online(digits_teacher, tmp_path_factory):
    return run(student(digits_teacher), tmp_path_factory.mktemp("online") / "run")


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_looking_ahead_changes_nothing(digits_teacher, online, tmp_path, devices):
    ahead = student(
        digits_teacher,
        teacher__look_ahead=4,
        training__steps_per_call=4,
        mesh__data=devices,
    )
    close(run(ahead, tmp_path / "ahead"), online, 1e-4)


@pytest.mark.slow
def test_features_are_looked_ahead_too(digits_teacher, tmp_path):
    one = student(digits_teacher, "rkd", method__soft_weight=1.0)
    ahead = changed(one, teacher__look_ahead=4, training__steps_per_call=4)
    close(run(one, tmp_path / "one"), run(ahead, tmp_path / "ahead"), 1e-4)


@pytest.mark.parametrize("method", ["soft_target", "rkd", "soft_target+pkt"])
def test_stored_answers_are_those_of_the_teacher(digits_teacher, store, tmp_path, method):
    config = student(digits_teacher, method)
    live = run(config, tmp_path / "live")
    stored = run(changed(config, teacher__path=(), teacher__store=str(store)), tmp_path / "stored")
    close(live, stored, 1e-4)
    for split in ("validation", "test"):
        ours, theirs = live[1]["final"][split], stored[1]["final"][split]
        assert ours["teacher_accuracy"] == theirs["teacher_accuracy"]
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.01)


@pytest.mark.slow
def test_resident_and_streamed_answers_are_the_same_bits(digits_teacher, store, tmp_path):
    config = student(digits_teacher, teacher__store=str(store))
    found = {
        name: run(
            changed(config, teacher__resident=answers, data__resident=pixels), tmp_path / name
        )
        for name, answers, pixels in (("a", "yes", "yes"), ("b", "no", "yes"), ("c", "no", "no"))
    }
    hashes = {result["parameters_sha256"] for _, result in found.values()}
    assert len(hashes) == 1


@pytest.mark.slow
def test_half_precision_is_close(digits_teacher, online, tmp_path):
    tasks.precompute(student(digits_teacher), tmp_path / "half", dtype="float16")
    stored = student(digits_teacher, teacher__store=str(tmp_path / "half"))
    close(run(stored, tmp_path / "run"), online, 5e-3)


@pytest.mark.slow
def test_mixed_views_are_stored_with_their_seeds(digits_teacher, tmp_path):
    config = student(digits_teacher, data__augment__mixup=0.4)
    made = tasks.precompute(config, tmp_path / "steps", dtype="float32")
    assert made == {**made, "scheme": "seeded", "steps": 12}
    live = run(config, tmp_path / "live")
    stored = changed(config, teacher__store=str(tmp_path / "steps"))
    close(live, run(stored, tmp_path / "stored"), 1e-4)
    # Another student goes over the same steps, again and again.
    longer = changed(stored, seed=5, training__steps=30)
    lines, _ = run(longer, tmp_path / "longer")
    assert lines[-1]["step"] == 30 and np.isfinite(lines[-1]["loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "method__name": "fitnet",
                "method__student_tap": "pooled",
                "method__teacher_tap": "hidden1",
            },
            "the loss of fitnet depends on hidden1 of the teacher; the store has pooled; expected "
            "one written with --taps=hidden1,pooled, ",
        ),
        ({"data__augment__crop_padding": 2}, "made for data.augment.crop_padding=1"),
        ({"data__augment__mixup": 0.4}, "made for data.augment.mixup=0.0"),
        ({"teacher__path": "other"}, "made for teacher="),
        ({"method__name": "mlkd", "data__augment__strong_ops": 2}, "shows a second view"),
        (
            {"teacher__own_average": True, "training__ema_decay": 0.9},
            "expected neither teacher.path nor teacher.store",
        ),
        ({"teacher__store": "nowhere"}, "teacher.store='nowhere'"),
    ],
)
def test_a_store_is_used_for_nothing_else(
    digits_teacher, store, tmp_path, tmp_path_factory, changes, message
):
    if changes.get("teacher__path") == "other":
        changes = {"teacher__path": str(tmp_path / "other")}
        experiment.run(changed(TEACHER, seed=9, training__steps=2), tmp_path / "other")
    config = changed(student(digits_teacher, teacher__store=str(store)), **changes)
    with pytest.raises(UsageError, match=message):
        prepare(configs.resolve(config))


def test_a_student_of_its_own_average(tmp_path):
    config = changed(student("none"), teacher__path=(), teacher__own_average=True)
    with pytest.raises(UsageError, match="training.ema_decay=0.0: teacher.own_average=True needs"):
        configs.resolve(config)
    lines, result = run(changed(config, training__ema_decay=0.9), tmp_path / "run")
    # The average begins as the student itself: nothing to learn from it in the first step.
    assert lines[0]["soft_loss"] >= 0 and lines[-1]["soft_loss"] > 0
    assert result["teacher_parameters"] == []
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_verbs_store_and_import(digits_teacher, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(f"def get_config():\n    return {student(digits_teacher)!r}\n")
    arguments = [f"--config={config}", f"--workdir={tmp_path / 'answers'}", "--dtype=float32"]
    assert cli.main(["store", *arguments]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["views"] == 18
    trained = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["train", *trained, f"--config.teacher.store={tmp_path / 'answers'}"]) == 0
    assert cli.main(["eval", f"--workdir={tmp_path / 'run'}"]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["teachers"][0]["stored"] == "float32"
    capsys.readouterr()
    assert cli.main(["import", "nowhere.npz", "--model=resnet20", "--classes=10", "--mean=0,0,0",
                     "--std=1,1,1", f"--workdir={tmp_path / 'model'}"]) == 2  # fmt: skip
    assert "nowhere.npz" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert cli.main(["import", "x.npz", "--model=resnet20", "--classes=10", "--mean=0,zero,0",
                     "--std=1,1,1", f"--workdir={tmp_path / 'model'}"]) == 2  # fmt: skip
    assert "--mean=0,zero,0: expected numbers" in capsys.readouterr().err
    assert jax.devices()
