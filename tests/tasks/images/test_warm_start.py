"""A student on images that begins as a saved model, and splits of which one is stored grey."""

import numpy as np
import pytest
import small_runs
from PIL import Image

from distill_jax import config as configs
from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.tasks.images import data as image_data


def prepared(path, **changes):
    changed = small_runs.changed(small_runs.TEACHER, student__path=str(path), **changes)
    return experiment.prepare(configs.resolve(changed))


def test_a_student_begins_with_the_arrays_and_the_normalisation_of_a_saved_model(digits_teacher):
    saved = models.load(digits_teacher, key="student.path")
    parts = prepared(digits_teacher, data__fraction=0.5)  # whose own statistics differ
    assert parts.initial.params.keys() == saved.params.keys()
    for name, value in parts.initial.params.items():
        np.testing.assert_array_equal(value, saved.params[name], err_msg=name)
    assert (parts.recipe.spec.mean, parts.recipe.spec.std) == (saved.spec.mean, saved.spec.std)
    given = prepared(digits_teacher, data__mean=(0.25,), data__std=(0.5,)).recipe.spec
    assert (given.mean, given.std) == ((0.25,), (0.5,))


def test_of_fewer_classes_all_but_the_classifier_is_taken(tmp_path, digits_teacher):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    labels = np.arange(40) % 3
    np.savez(
        tmp_path / "set.npz",
        x_train=images,
        y_train=labels,
        x_test=images[:9],
        y_test=labels[:9],
    )
    saved = models.load(digits_teacher, key="student.path")
    parts = prepared(
        digits_teacher,
        data__name="npz",
        data__path=str(tmp_path / "set.npz"),
        training__batch_size=8,
    )
    same = {
        name: np.array_equal(value, saved.params[name])
        for name, value in parts.initial.params.items()
    }
    assert {name for name, equal in same.items() if not equal} == {
        "classifier/kernel",
        "classifier/bias",
    }
    assert parts.initial.params["classifier/kernel"].shape[-1] == 3


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        (None, dict(student__widths=(32,)), "has options {'"),
        ("/no/such", {}, "student.path='/no/such': no such folder"),
        ("ftp://x", {}, "student.path='ftp://x': expected"),
    ],
    ids=["options", "missing", "url"],
)
def test_a_model_that_does_not_fit_is_refused(digits_teacher, path, changes, words):
    with pytest.raises(UsageError) as caught:
        prepared(path or digits_teacher, **changes)
    assert words in str(caught.value) and str(caught.value).startswith("student.path=")


@pytest.mark.parametrize("grey", ["train", "test"])
def test_where_one_split_has_colours_grey_images_are_read_as_rgb(tmp_path, grey):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("dark", "light"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                shape = (8, 8) if split == grey else (8, 8, 3)
                pixels = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
                pixels.save(tmp_path / split / name / f"{number}.png")
    given = {"data": {"name": "folder", "path": str(tmp_path)}}
    opened = image_data.open_data(configs.resolve(given))
    assert opened.train.info.image_shape == opened.test.info.image_shape == (8, 8, 3)
    images, labels = getattr(opened, grey).arrays()
    first = np.asarray(Image.open(tmp_path / grey / "dark" / "0.png"))
    np.testing.assert_array_equal(images[0], np.repeat(first[..., None], 3, axis=-1))
    assert labels.tolist() == [0] * 4 + [1] * 4
