"""Every method on the real CIFAR-100: it learns, resumes to the same bits, and shards.

Each push runs the methods that carry state from step to step through a kill and a resume, and those
that compare the examples of a batch on eight devices; the rest is nightly.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from packs import unpacked

from distill_jax import config as configs
from distill_jax import data, methods, models, parallel
from distill_jax.runs import experiment
from distill_jax.tasks.images.parts import prepare
from distill_jax.training import step
from distill_jax.training.state import copy_to

BATCH, STEPS = 32, 20
# Two batches an epoch, four steps a line of the log: every line is over the same images.
TRAIN, TEST, VALIDATION = 164, 200, 100
EARLIER = STEPS * BATCH / (TRAIN - VALIDATION)  # epochs of 20 steps, for stages before the main one

# What differs from the defaults; the rest of a method is as its page says.
CHANGES = {
    "crd": {"method.negatives": 100},
    "crd+soft_target": {"method.crd.negatives": 100},
    "ab": {"method.init_epochs": EARLIER},
    "ft": {"method.init_epochs": EARLIER},
    "fsp": {"method.init_epochs": EARLIER},
    "dkd": {"method.warmup_epochs": 0.0},
    "review": {"method.warmup_epochs": 0.0},
    "mlkd": {"data.augment.strong_ops": 2},
    "simkd": {
        "student.name": "simkd",
        "student.backbone": "resnet8",
        "student.features": 64,
        "method.hard_weight": 0.0,
    },
    "deit": {
        "student.name": "deit_tiny",
        "student.patch": 8,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 3e-4,
    },
    "soft_target": {"teacher.look_ahead": 4, "training.steps_per_call": 4},
    "own_average": {
        "method.name": "soft_target",
        "teacher.own_average": True,
        "training.ema_decay": 0.9,
    },
}
NOT_ON_CIFAR = {"supervised", "hidden_states", "attention_relations"}  # labels, text alone
ROWS = sorted({*methods.names(), "crd+soft_target", "own_average"} - NOT_ON_CIFAR)
# State beside the student and its optimizer: memory, a second network, stages, an average.
STATEFUL = {"crd+soft_target", "mutual", "ab", "ft", "fsp", "own_average"}
# The loss of one example, or a normalisation, depends on the other examples of the global batch.
BATCH_WIDE = {"rkd", "pkt", "cc", "sp", "dist", "mlkd", "crd", "fitnet", "mutual"}
assert {*STATEFUL, *BATCH_WIDE} <= {*ROWS}


def rows(each_push: set[str]) -> list:
    """Every method; those outside `each_push` are nightly."""
    nightly = pytest.mark.nightly
    return [pytest.param(row, marks=[nightly] * (row not in each_push)) for row in ROWS]


@pytest.fixture(scope="module")
def cifar100(shared_data, tmp_path_factory) -> str:
    """The first images of each class of CIFAR-100, as many as a few steps need."""
    folder = tmp_path_factory.mktemp("cifar100")
    arrays = {}
    for split, pack, count in (("train", "train_1of2", TRAIN), ("test", "test", TEST)):
        images, labels = unpacked(shared_data / "vision" / f"cifar100_{pack}.npz")
        rank = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
        rank = rank - np.searchsorted(np.sort(labels), labels)  # the how-manieth of its class
        chosen = (rank < count // 100) | ((rank == count // 100) & (labels < count % 100))
        arrays |= {f"x_{split}": images[chosen], f"y_{split}": labels[chosen]}
    np.savez(folder / "subset.npz", **arrays)
    return str(folder / "subset.npz")


def base(cifar100: str) -> dict:
    return {
        "data.name": "npz",
        "data.path": cifar100,
        "data.validation": VALIDATION,
        "data.mean": (0.5071, 0.4867, 0.4408),
        "data.std": (0.2675, 0.2565, 0.2761),
        "data.augment.crop_padding": 4,
        "data.augment.flip": True,
        "student.name": "resnet8",
        "optimizer.learning_rate": 0.003,
        "optimizer.weight_decay": 5e-4,
        "schedule.name": "constant",
        "training.steps": STEPS,
        "training.batch_size": BATCH,
        "evaluation.every_epochs": 0.0,
        "evaluation.batch_size": 104,
        "checkpoint.every_epochs": 0.0,
        "checkpoint.every_steps": 8,
        "logging.every_steps": 4,
        "logging.progress": "off",
        "logging.tensorboard": False,
        "mesh.data": 1,
    }


@pytest.fixture(scope="module")
def teacher(cifar100, tmp_path_factory) -> str:
    """resnet14 after sixty steps: its answers depend on the image."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    config = base(cifar100) | {"student.name": "resnet14", "training.steps": 60}
    experiment.run(configs.unflatten(config), folder)
    return str(folder)


def config_of(row: str, cifar100: str, teacher: str, **changes) -> dict:
    flat = base(cifar100) | {"method.name": row} | CHANGES.get(row, {}) | changes
    needs = row != "own_average" and methods.create(flat["method.name"]).needs_teacher
    if needs:
        flat["teacher.path"] = teacher
    return configs.unflatten(flat)


def few_steps(config: dict, count: int):
    """The state before and after the first steps of the last stage."""
    parts = prepare(configs.resolve(config))
    order = parts.order
    feed = data.training_feed(parts.feed.examples, order, BATCH, resident=True, workers=0).at(0)
    recipe = parts.recipe_at(0)
    compiled = step.compile_steps(recipe, parts.mesh)
    now = copy_to(parts.initial, parallel.replicated(parts.mesh))
    for _ in range(count):
        batch = step.put_batches([next(feed)], parts.mesh)
        now = compiled(now, parts.frozen, parts.resident, batch)
    return parts.initial, jax.device_get(now)


def outcome(folder) -> tuple[str, list[dict]]:
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result["parameters_sha256"], [line for line in lines if line["split"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(STATEFUL))
def test_it_learns_and_a_killed_run_resumes_to_the_same_bits(
    row, cifar100, teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(experiment.reports, "run_report", lambda folder: None)  # two seconds each
    stages = len(methods.create(CHANGES.get(row, {}).get("method.name", row)).stages())
    at = 12 if stages == 1 else STEPS * (stages - 1)
    config = config_of(row, cifar100, teacher, **{"checkpoint.every_steps": at})
    experiment.run(config, tmp_path / "whole")
    whole = outcome(tmp_path / "whole")

    # Each stage has a loss of its own, and something must fall within it.
    lines = whole[1]
    assert [line["step"] for line in lines][-1] == STEPS * stages
    for stage in range(stages):
        own = [line for line in lines if STEPS * stage < line["step"] <= STEPS * (stage + 1)]
        # A memory bank that fills and a temperature that is learnt against the student raise their
        # own loss at first: there the labels' loss tells.
        fell = [
            min(line[name] for line in own[-2:]) < own[0][name] for name in ("loss", "hard_loss")
        ]
        assert any(fell), (stage, [(line["loss"], line["hard_loss"]) for line in own])

    # As SIGKILL leaves it some steps after a checkpoint: later lines of the log, and no result.
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", killed)
    (killed / "result.json").unlink()
    shutil.rmtree(killed / "model")
    for folder in (killed / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > at:
            shutil.rmtree(folder)
    assert (killed / "checkpoints" / str(at)).exists()
    experiment.run(config, killed)
    assert outcome(killed) == whole
    assert json.loads((killed / "manifest.json").read_text())["resumed"]

    # What was trained beside the student does not leave with it.
    saved = models.load(tmp_path / "whole")
    spec = saved.spec
    shape = dict(input_shape=spec.input_shape, num_classes=spec.num_classes)
    _, params, _ = models.split(models.abstract(spec.name, **shape, **spec.options))
    assert set(saved.params) == set(params)


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(BATCH_WIDE))
def test_eight_devices_give_what_one_gives(row, cifar100, teacher):
    """Batch statistics and losses over a batch are those of the global one."""
    flat = {"teacher.look_ahead": 0, "training.steps_per_call": 0, "optimizer.learning_rate": 1e-3}
    single, sharded = (
        few_steps(config_of(row, cifar100, teacher, **flat, **{"mesh.data": devices}), 2)
        for devices in (1, 8)
    )
    before = single[0]
    for group in ("params", "adapters", "stats", "memory"):
        begun = getattr(before, group)
        ends = [getattr(end, group) for _, end in (single, sharded)]
        moved = wrong = 0.0
        for name, value in begun.items():
            one, eight = (np.float64(end[name]) for end in ends)
            moved += np.sum((one - np.float64(value)) ** 2)
            wrong += np.sum((eight - one) ** 2)
        assert wrong <= 1e-4 * moved + 1e-12, (group, wrong, moved)
    losses = [float(end.sums["loss"]) for _, end in (single, sharded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
