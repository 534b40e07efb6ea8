"""Prepared TFDS folders: the official reader's values, no TensorFlow, one line on misuse."""

import io
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from packs import unpacked
from PIL import Image

from distill_jax.data import Crops, load
from distill_jax.errors import UsageError

COUNT = 40


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def _pixels(split, index):
    seed = [index, len(split)]
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


def _prepare(folder, name, make_features, make_example, splits=("train", "test"), **options):
    """Prepares a small set in `folder` with the official machinery."""
    import tensorflow_datasets as tfds

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2")
        pkg_dir_path = folder
        name = ""

        def _info(self):
            features = tfds.features.FeaturesDict(make_features(tfds.features))
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for index in range(COUNT):
                yield f"{split}_{index:03d}", make_example(split, index)

    Small.name = name
    Small(data_dir=folder, **{"file_format": "array_record", **options}).download_and_prepare()


def _cifar10_features(features):
    return {
        "id": features.Text(),
        "image": features.Image(shape=(32, 32, 3)),
        "label": features.ClassLabel(names=[f"class {number}" for number in range(10)]),
    }


def _cifar10_example(split, index):
    return {"id": f"{index}", "image": _png(_pixels(split, index)), "label": index % 10}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with a small set under the name and version of CIFAR-10."""
    folder = tmp_path_factory.mktemp("tfds")
    _prepare(folder, "cifar10", _cifar10_features, _cifar10_example)
    return folder


def test_reads_what_was_prepared(prepared):
    import tensorflow_datasets as tfds

    for split in ("train", "test"):
        examples = load("cifar10", split, tfds_dir=str(prepared))
        assert len(examples) == COUNT and examples.info.num_classes == 10
        assert examples.info.image_shape == (32, 32, 3)
        assert examples.info.class_names[3] == "class 3"
        images, labels = examples.arrays()
        official = tfds.builder("cifar10", data_dir=prepared).as_data_source(split=split)
        for index in range(COUNT):
            assert np.array_equal(images[index], official[index]["image"])
            assert labels[index] == official[index]["label"] == examples.labels()[index]
        # Shuffled by TFDS when prepared, but no image lost or doubled.
        assert {image.tobytes() for image in images} == {
            _pixels(split, index).tobytes() for index in range(COUNT)
        }
        image, label = examples[-1]
        assert np.array_equal(image, images[-1]) and label == labels[-1]
        with pytest.raises(IndexError):
            examples[COUNT]


def test_crops_are_cut_from_the_image_as_it_is_stored(prepared):
    examples = load("cifar10", "train", tfds_dir=str(prepared), image_size=12)
    ids, cuts = np.array([3, 0, 31]), Crops(0.08, 1).at([5, 6, 7])
    images, labels = examples.cropped(ids, cuts)
    whole, _ = load("cifar10", "train", tfds_dir=str(prepared)).batch(ids)
    for pixels, cut, image in zip(whole, cuts, images, strict=True):
        top, left, tall, wide = cut(32, 32)
        part = Image.fromarray(pixels[top : top + tall, left : left + wide])
        assert np.array_equal(image, np.asarray(part.resize((12, 12), Image.BILINEAR)))
    assert images.dtype == np.uint8 and labels.tolist() == examples.labels()[ids].tolist()


def test_can_be_pickled_and_reads_the_same(prepared):
    examples = load("cifar10", "train", tfds_dir=str(prepared))
    images, _ = examples.arrays()
    copy = pickle.loads(pickle.dumps(examples))
    assert len(pickle.dumps(examples)) < images.nbytes
    assert np.array_equal(copy.arrays()[0], images)


def test_image_size(prepared):
    examples = load("cifar10", "test", tfds_dir=str(prepared), image_size=8)
    assert examples.info.image_shape == (8, 8, 3) and examples.arrays()[0].shape[1:] == (8, 8, 3)


def test_never_imports_tensorflow(prepared):
    code = (
        "import sys; from distill_jax.data import load;"
        "assert 'tensorflow_datasets' not in sys.modules;"
        f"load('cifar10', 'train', tfds_dir={str(prepared)!r}).arrays();"
        "assert 'tensorflow_datasets' in sys.modules; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_validation_stands_in_for_test_and_labels_are_checked(tmp_path):
    def example(split, index):
        label = -1 if split == "validation" and index == 7 else index % 10
        return {**_cifar10_example(split, index), "label": label}

    _prepare(tmp_path, "held", _cifar10_features, example, splits=("train", "validation"))
    load("held", "train", tfds_dir=str(tmp_path)).labels()
    held_out = load("held", "test", tfds_dir=str(tmp_path))
    with pytest.raises(UsageError, match=r"data\.name='held': example \d+ has label -1"):
        held_out.labels()
    with pytest.raises(UsageError, match="has label -1"):
        held_out.arrays()


def test_refuses_sets_without_images_labels_or_splits(tmp_path):
    _prepare(
        tmp_path,
        "texts",
        lambda features: {"text": features.Text(), "label": features.ClassLabel(num_classes=2)},
        lambda split, index: {"text": "a", "label": index % 2},
        splits=("train",),
    )
    with pytest.raises(UsageError, match="'texts': not an image-classification.*got: .*text"):
        load("texts", "train", tfds_dir=str(tmp_path))
    _prepare(tmp_path, "alone", _cifar10_features, _cifar10_example, splits=("train",))
    with pytest.raises(UsageError, match="'alone': no 'validation' split; it has: train"):
        load("alone", "test", tfds_dir=str(tmp_path))


def test_unequal_shapes_need_a_size(tmp_path):
    _prepare(
        tmp_path,
        "photos",
        lambda features: {
            "image": features.Image(shape=(None, None, 3)),
            "label": features.ClassLabel(num_classes=2),
        },
        lambda split, index: {
            "image": _png(np.full((4 + index % 3, 5, 3), index, np.uint8)),
            "label": index % 2,
        },
    )
    with pytest.raises(UsageError, match=r"data\.image_size=0: images of 'photos' differ in shape"):
        load("photos", "train", tfds_dir=str(tmp_path))
    images, _ = load("photos", "train", tfds_dir=str(tmp_path), image_size=4).arrays()
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(COUNT))


def test_names_what_is_unknown_or_not_prepared(prepared):
    with pytest.raises(UsageError, match="'cifra10': unknown data set; did you mean 'cifar10'"):
        load("cifra10", "train", tfds_dir=str(prepared))
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        load("digit", "train")
    with pytest.raises(UsageError, match="'cifar100': not prepared in .*download_and_prepare"):
        load("cifar100", "train", tfds_dir=str(prepared))
    with pytest.raises(UsageError, match="'a b!': not readable by TensorFlow Datasets"):
        load("a b!", "train", tfds_dir=str(prepared))


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_files(tmp_path, prepared, kept):
    shutil.copytree(prepared / "cifar10", tmp_path / "cifar10")
    (path,) = tmp_path.glob("cifar10/*/cifar10-train.array_record*")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UsageError, match="data.name='cifar10': unreadable"):
        load("cifar10", "train", tfds_dir=str(tmp_path)).arrays()


@pytest.mark.slow
def test_real_mnist_as_prepared_by_the_official_builder(tmp_path, shared_data):
    script = [sys.executable, str(shared_data / "prepare_tfds.py")]
    subprocess.run([*script, f"--data_dir={tmp_path}", "--only=mnist"], check=True, timeout=300)
    test = load("mnist", "test", tfds_dir=str(tmp_path))
    assert test.info.image_shape == (28, 28, 1) and len(test) == 10000
    pack = np.load(shared_data / "vision" / "mnist.npz")
    expected = sorted(zip(map(bytes, pack["x_test"]), pack["y_test"].tolist(), strict=True))
    images, labels = test.arrays()
    assert sorted(zip(map(bytes, images), labels.tolist(), strict=True)) == expected


@pytest.mark.nightly  # MNIST takes the same way
def test_real_cifar100_as_prepared_by_the_official_builder(tmp_path, shared_data):
    """The fine one of its two labels; every image, bit for bit as in the packs."""
    script = [sys.executable, str(shared_data / "prepare_tfds.py")]
    subprocess.run([*script, f"--data_dir={tmp_path}", "--only=cifar100"], check=True, timeout=300)
    for split, packs in (("train", ("train_1of2", "train_2of2")), ("test", ("test",))):
        examples = load("cifar100", split, tfds_dir=str(tmp_path))
        assert examples.info.image_shape == (32, 32, 3) and examples.info.num_classes == 100
        expected = []
        for pack in packs:
            images, labels = unpacked(shared_data / "vision" / f"cifar100_{pack}.npz")
            expected += zip(map(bytes, images), labels.tolist(), strict=True)
        images, labels = examples.arrays()
        assert sorted(zip(map(bytes, images), labels.tolist(), strict=True)) == sorted(expected)
        np.testing.assert_array_equal(examples.labels(), labels)
