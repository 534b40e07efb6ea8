"""Files that can be read and are probably not what is meant: refused, or said in a line."""

import numpy as np
import pytest
from PIL import Image

from distill_jax import cli, data, models
from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.tasks.images.data import notes_on, open_data


def save(path, shape=(6, 6, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            for number in range(3):
                save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_hidden_files_are_left_out_at_every_level(folder):
    ant = folder / "train" / "ant"
    (ant / "more" / ".ipynb_checkpoints").mkdir(parents=True)
    save(ant / "more" / "3.png")
    save(ant / ".ipynb_checkpoints" / "0-checkpoint.png")
    save(ant / "more" / ".ipynb_checkpoints" / "3-checkpoint.png")
    (ant / "._0.png").write_bytes(b"an AppleDouble file")
    (ant / "more" / "__MACOSX").mkdir()
    (ant / "more" / "__MACOSX" / "4.png").write_bytes(b"another one")
    (ant / "5.png").mkdir()  # a folder that is named like an image
    (ant / "Thumbs.db").write_bytes(b"")
    (folder / "train" / ".DS_Store").write_bytes(b"")
    examples = data.load("folder", "train", path=str(folder))
    assert np.bincount(examples.labels()).tolist() == [4, 3] and examples.notes == ()
    examples.arrays()


def test_other_files_are_counted(folder):
    for number in range(4):
        (folder / "train" / "bee" / f"{number}.ppm").write_bytes(b"P6")
    (folder / "train" / "bee" / "deep").mkdir()
    (folder / "train" / "bee" / "deep" / "LICENSE").write_text("free")
    save(folder / "train" / "stray.png")  # in no class folder
    (note,) = data.load("folder", "train", path=str(folder)).notes
    assert "6 files are passed over (4 .ppm, 1 .png, 1 without a suffix)" in note
    assert "'stray.png'" in note


@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (12, 1, 28, 28), (12, 4, 5, 9)])
def test_channels_first_are_refused(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = np.arange(12) % 3
    path = tmp_path / "set.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(UsageError, match=r"data\.path=.*transpose\(0, 2, 3, 1\)"):
        data.load("npz", "train", path=str(path))
    last = np.moveaxis(images, 1, -1)
    np.savez(path, x_train=last, y_train=labels, x_test=last, y_test=labels)
    assert data.load("npz", "train", path=str(path)).info.image_shape == last.shape[1:]


def test_pixels_of_zero_and_one_are_said(tmp_path):
    images = np.random.default_rng(0).integers(0, 2, (6, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "s.npz", x_train=images, y_train=np.arange(6) % 2, x_test=images,
             y_test=np.arange(6) % 2)  # fmt: skip
    (note,) = data.load("npz", "train", path=str(tmp_path / "s.npz")).notes
    assert "no pixel is above 1" in note


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", (125.3, 123.0, 113.9)), ("std", (63.0, 62.1, 66.7)), ("mean", (-0.5, 0.1, 0.1))],
)
def test_statistics_in_other_units_are_refused(key, value, tmp_path, capsys):
    with pytest.raises(UsageError, match=rf"data\.{key}=.*pixels in \[0, 1\]"):
        configs.resolve({"data": {"name": "cifar10", key: value}})
    given = {"mean": (0.5,) * 3, "std": (0.2,) * 3, key: value}
    with pytest.raises(UsageError, match=rf"spec\.{key}=.*pixels in \[0, 1\]"):
        models.Spec("mlp", {}, (4, 4, 3), 2, **given)
    flags = [f"--{name}={','.join(map(str, numbers))}" for name, numbers in given.items()]
    (tmp_path / "weights.pth").write_bytes(b"")
    line = ["import", str(tmp_path / "weights.pth"), "--model=mlp", "--classes=2", *flags]
    assert cli.main([*line, f"--workdir={tmp_path / 'out'}"]) == 2
    assert f"--{key}=" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_image_with_channels_first_cannot_be_imported(tmp_path, capsys):
    (tmp_path / "weights.pth").write_bytes(b"")
    line = "--model=mlp --classes=2 --mean=.5,.5,.5 --std=.2,.2,.2 --image=3,32,32".split()
    flags = [str(tmp_path / "weights.pth"), f"--workdir={tmp_path / 'out'}"]
    assert cli.main(["import", *line, *flags]) == 2
    assert "such as 32,32,3" in capsys.readouterr().err


def test_pixels_as_a_network_of_0_to_255_takes_them_are_accepted():
    models.Spec("mlp", {}, (4, 4, 3), 2, (0.0,) * 3, (1 / 255,) * 3)
    models.Spec("mlp", {}, (4, 4, 3), 2, (0.5,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.arange(12) % 4 + 1, "1 of 5 classes have no training example: 0; do the labels count"),
        (np.array([0, 2, 5] * 4), "3 of 6 classes have no training example: 1, 3, 4"),
        (np.arange(12) % 3, None),
    ],
)
def test_classes_without_examples_are_named(tmp_path, labels, expected):
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
    path = tmp_path / "set.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    values = {"name": "npz", "path": str(path), "validation": 0}
    config = configs.resolve({"data": values})
    notes = notes_on(config, open_data(config))
    assert (expected is None) == (not notes)
    if expected:
        assert expected in notes[0] and "test example" in notes[1]
        # Classes that the config leaves out are meant to have none.
        left_out = {**values, "exclude_classes": tuple(set(range(6)) - set(labels.tolist()))}
        left_out["exclude_classes"] = tuple(
            k for k in left_out["exclude_classes"] if k <= max(labels)
        )
        config = configs.resolve({"data": left_out})
        assert not notes_on(config, open_data(config))
