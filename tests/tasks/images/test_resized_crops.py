"""Runs on image files whose random resized crops are made on the host: exact resume, stores."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_runs import changed

from distill_jax import config as configs
from distill_jax import models, tasks
from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.runs.session import Session
from distill_jax.tasks.images.parts import prepare

CONFIG = {
    "data": {
        "name": "folder",
        "image_size": 12,
        "validation": 8,
        "augment": {"resized_crop": 0.08, "flip": True, "mixup": 0.4},
    },
    "student": {"name": "mlp", "widths": (16,)},
    "optimizer": {"name": "adamw", "learning_rate": 3e-3},
    "training": {"steps": 12, "batch_size": 8},
    "evaluation": {"every_epochs": 0.0, "batch_size": 8},
    "checkpoint": {"every_epochs": 0.0, "every_steps": 3},
    "logging": {"progress": "off", "tensorboard": False, "every_steps": 2},
    "mesh": {"data": 1},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of a run on 48 JPEGs of as many sizes: stripes across, or down."""
    folder = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 8)):
        for number in range(count):
            height, width = rng.integers(14, 70, 2)
            pixels = rng.integers(0, 80, (height, width, 3), np.uint8)
            stripes = pixels if number % 2 else pixels.swapaxes(0, 1)
            stripes[np.arange(len(stripes)) // 3 % 2 == 0] += 120
            name = folder / split / ("down", "across")[number % 2] / f"{number}.jpg"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(name)
    return changed(CONFIG, data__path=str(folder))


def outcome(workdir) -> tuple[str, bytes]:
    result = json.loads((workdir / "result.json").read_text())
    return result["parameters_sha256"], (workdir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    experiment.run(config, workdir)
    return workdir


class Killed(BaseException):
    """Ends a run as a kill does: nothing of it goes on to save."""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_resumes_to_the_same_bits(config, undisturbed, tmp_path, monkeypatch, workers):
    log = Session.log

    def log_and_die(self, at, sums):
        log(self, at, sums)
        if at == 8:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Session, "log", log_and_die)
        with pytest.raises(Killed):
            experiment.run(config, tmp_path / "run")
    # From the checkpoint of step 6, inside an epoch of 5 steps.
    experiment.run(changed(config, data__workers=workers), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed)


def test_the_crop_bears_on_what_is_learned(config, undisturbed, tmp_path):
    experiment.run(changed(config, data__augment__resized_crop=1.0), tmp_path / "run")
    assert outcome(tmp_path / "run")[0] != outcome(undisturbed)[0]


def test_stored_steps_are_seen_with_the_crops_that_were_answered(config, undisturbed, tmp_path):
    student = changed(
        config,
        teacher__path=str(undisturbed),
        method__name="soft_target",
        training__steps=2,
    )
    made = tasks.precompute(student, tmp_path / "steps", dtype="float32")
    assert made["scheme"] == "seeded" and made["steps"] == 2
    stored = changed(student, teacher__store=str(tmp_path / "steps"))
    # A run of another seed goes over the steps of the store again and again: crops with them.
    parts = prepare(configs.resolve(changed(stored, seed=7)))
    batches = list(itertools.islice(parts.feed.at(0), 3))
    online = prepare(configs.resolve(student)).feed.at(0)
    saved = models.load(undisturbed)

    @jax.jit
    def answered(step, batch):
        images = parts.recipe.view(jnp.int32(7), step, batch, {})["images"]
        inputs = models.normalise(images, saved.spec.mean, saved.spec.std)
        graphdef = parts.recipe.graphdef  # the student is another of the teacher's kind
        return models.apply(graphdef, saved.params, saved.stats, inputs, train=False)[0].logits

    for step, batch in enumerate(batches):
        expected = next(online) if step < 2 else batches[0]
        for name in ("id", "image", "label"):
            assert np.array_equal(batch[name], expected[name])
        logits = answered(jnp.int32(step), batch)
        np.testing.assert_allclose(batch["teacher/logits"], logits, rtol=1e-4, atol=1e-5)
    for other in (0.0, 0.25):
        with pytest.raises(UsageError, match="made for data.augment.resized_crop=0.08; this run"):
            prepare(configs.resolve(changed(stored, data__augment__resized_crop=other)))


def test_a_plan_of_crops_has_streamed_images():
    config = changed(CONFIG, data__name="cifar10", data__image_size=0)
    streamed = tasks.abstract_step(configs.resolve(config), jax.devices()[:1])
    assert not streamed.resident
    image = streamed.batches["image"]
    assert (image.shape, image.dtype) == ((1, 8, 32, 32, 3), jnp.uint8)
    resident = changed(config, data__augment__resized_crop=0.0)
    assert tasks.abstract_step(configs.resolve(resident), jax.devices()[:1]).resident


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__augment__resized_crop": 1.5}, r"resized_crop=1.5: expected a number in \[0, 1\]"),
        ({"data__augment__crop_padding": 2}, "crop_padding=2: .*resized_crop=0.08 crops already"),
        (
            {"data__resident": "yes"},
            "data.resident='yes': data.augment.resized_crop=0.08 crops images as",
        ),
        (
            {"method__name": "mlkd", "data__augment__strong_ops": 2, "teacher__path": "x"},
            "data.augment.resized_crop=0.08: method.name='mlkd' shows a second view",
        ),
    ],
)
def test_what_does_not_go_with_a_resized_crop_is_refused(config, changes, message):
    with pytest.raises(UsageError, match=message):
        configs.resolve(changed(config, **changes))


def test_a_set_that_is_in_memory_is_refused():
    config = configs.resolve(changed(CONFIG, data__name="digits"))
    with pytest.raises(UsageError, match="resized_crop=0.08: data.name='digits' does not decode"):
        prepare(config)
