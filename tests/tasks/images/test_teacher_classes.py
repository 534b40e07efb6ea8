"""Class names travel with models and stores, and decide whether a teacher is of the data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from distill_jax import config as configs
from distill_jax import models, tasks
from distill_jax.errors import UsageError
from distill_jax.runs import experiment

NAMES = ("ant", "bee", "cow")
SHAPE = (6, 6, 3)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve images a class, in folders that are named by the class."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in NAMES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, SHAPE, np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def save_teacher(folder, class_names, **save):
    spec = models.Spec("mlp", {"widths": (8,)}, SHAPE, 3, (0.5,) * 3, (0.25,) * 3, class_names)
    _, params, stats = models.split(
        models.create("mlp", input_shape=SHAPE, num_classes=3, seed=5, widths=(8,))
    )
    params["classifier/bias"] = jnp.arange(3.0)
    models.save(folder, spec, params, stats, **save)
    return str(folder)


def config(images, teacher, **values):
    flat = {
        "data.name": "folder",
        "data.path": str(images),
        "student.name": "mlp",
        "student.widths": (4,),
        "method.name": "soft_target",
        "teacher.path": (teacher,),
        "training.steps": 2,
        "training.batch_size": 6,
        "evaluation.batch_size": 6,
        "evaluation.every_epochs": 0.0,
        "checkpoint.every_epochs": 0.0,
        "logging.tensorboard": False,
        "mesh.data": 1,
    }
    return configs.resolve(configs.unflatten({**flat, **values}))


def teacher_logits(parts):
    images = jax.random.uniform(jax.random.key(1), (4, *SHAPE))
    return np.asarray(parts.recipe.teachers(parts.frozen.teachers, images)[0].logits)


def test_a_teacher_of_the_same_classes_in_another_order(images, tmp_path):
    ours, theirs = (save_teacher(tmp_path / str(i), n) for i, n in enumerate((NAMES, NAMES[::-1])))
    expected = tasks.prepare(config(images, ours))
    assert not any("class names" in note for note in expected.notes)
    for refused in (tasks.prepare, lambda c: tasks.abstract_step(c, jax.devices()[:1])):
        with pytest.raises(UsageError, match="'cow', 'bee', 'ant'.*'ant', 'bee', 'cow'.*by_name"):
            refused(config(images, theirs))
    mapped = tasks.prepare(config(images, theirs, **{"teacher.classes": "by_name"}))
    np.testing.assert_array_equal(teacher_logits(mapped), teacher_logits(expected)[:, ::-1])
    fingerprints = [p.description["teachers"][0]["fingerprint"] for p in (expected, mapped)]
    assert fingerprints[0] == fingerprints[1]  # of the file, whose weights are the same
    as_they_are = tasks.prepare(config(images, theirs, **{"teacher.classes": "by_position"}))
    np.testing.assert_array_equal(teacher_logits(as_they_are), teacher_logits(expected))


def test_each_of_several_teachers_is_compared(images, tmp_path):
    ours, theirs = (save_teacher(tmp_path / str(i), n) for i, n in enumerate((NAMES, NAMES[::-1])))
    with pytest.raises(UsageError, match=f"teacher.path='{theirs}'.*another order"):
        tasks.prepare(config(images, ours, **{"teacher.path": (ours, theirs)}))


@pytest.mark.parametrize("method", ["srrl", "simkd"])
def test_a_method_that_takes_over_the_classifier_gets_it_in_the_order_of_the_data(
    images, tmp_path, method
):
    folder = tmp_path / "teacher"
    spec = models.Spec("resnet8", {}, SHAPE, 3, (0.5,) * 3, (0.25,) * 3, NAMES[::-1])
    arrays = models.split(models.create("resnet8", input_shape=SHAPE, num_classes=3, seed=5))[1:]
    models.save(folder, spec, *arrays)
    student = {"student.widths": (8,)} if method == "srrl" else {}
    if method == "simkd":
        student = {"student.name": "simkd", "student.backbone": "resnet8", "student.features": 64}
    values = {"method.name": method, "teacher.classes": "by_name", **student}
    resolved = config(images, str(folder), **values) if method == "srrl" else None
    if method == "simkd":
        flat = configs.flatten(config(images, str(folder)))
        del flat["student.widths"]
        flat = {k: v for k, v in flat.items() if not k.startswith(("student.", "method."))}
        resolved = configs.resolve(configs.unflatten({**flat, **values}))
    parts = tasks.prepare(resolved)
    kernel = np.asarray(arrays[0]["classifier/kernel"])[:, ::-1]
    found = parts.initial.params if method == "simkd" else parts.frozen.teachers[0][0]
    np.testing.assert_array_equal(np.asarray(found["classifier/kernel"]), kernel)


def test_unknown_names_are_said(images, tmp_path):
    notes = tasks.prepare(config(images, save_teacher(tmp_path / "t", ()))).notes
    assert any("the class names of the teacher are unknown" in note for note in notes)


def test_names_travel_from_a_run_to_its_model_and_to_a_store(images, tmp_path, capsys):
    supervised = {"method.name": "supervised", "teacher.path": ()}
    experiment.run(config(images, "", **supervised), tmp_path / "run")
    saved = models.load(tmp_path / "run")
    assert saved.spec.class_names == NAMES
    # A store binds its answers to the order in which they were made.
    theirs = save_teacher(tmp_path / "t", NAMES[::-1])
    with pytest.raises(UsageError, match="another order"):
        tasks.precompute(config(images, theirs), tmp_path / "store", taps=())
    assert not (tmp_path / "store").exists()
    mapped = config(images, theirs, **{"teacher.classes": "by_name"})
    tasks.precompute(mapped, tmp_path / "store", taps=())
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["teacher"]["class_names"] == list(NAMES)
    stored = {"teacher.path": (), "teacher.store": str(tmp_path / "store")}
    assert not any("class" in n for n in tasks.prepare(config(images, "", **stored)).notes)
    with pytest.raises(UsageError, match="'by_name' where the answers are stored"):
        tasks.prepare(config(images, "", **stored, **{"teacher.classes": "by_name"}))
    with pytest.raises(UsageError, match="teacher.classes='by_name'; this run has 'same'|made for"):
        tasks.precompute(
            config(images, theirs, **{"teacher.classes": "by_position"}),
            tmp_path / "store",
            taps=(),
        )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "ant\nbee\ncow\n"),
        ("names.json", '["ant", "bee", "cow"]'),
        ("names.json", '{"0": "ant", "2": "cow", "1": "bee"}'),
        ("names.json", '{"bee": 1, "ant": 0, "cow": 2}'),
        ("names.json", '{"0": ["n1", "ant"], "1": ["n2", "bee"], "2": ["n3", "cow"]}'),
    ],
)
def test_an_import_takes_names(tmp_path, name, content):
    from distill_jax.commands.import_weights import _read_class_names

    (tmp_path / name).write_text(content)
    assert _read_class_names(str(tmp_path / name), 3) == NAMES
    with pytest.raises(UsageError, match="3 names; expected 4 names"):
        _read_class_names(str(tmp_path / name), 4)


def test_a_changed_name_in_a_saved_model_is_damage(tmp_path):
    folder = save_teacher(tmp_path / "t", NAMES)
    path = tmp_path / "t" / "model.json"
    path.write_text(path.read_text().replace("ant", "fly"))
    with pytest.raises(UsageError, match="class names"):
        models.load(folder)
