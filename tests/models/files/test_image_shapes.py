"""The shape of a network's images, by its PyTorch weights or its name; or it is asked for."""

import json
import pathlib

import numpy as np
import pytest
from golden.torch.make import fill

from distill_jax import cli, models

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "torch"
FLAGS = ["--classes=5", "--mean=.5,.5,.5", "--std=.2,.2,.2"]


def written(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> pathlib.Path:
    np.savez(path, **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    return path


def deit(tokens: int, patch: int, prefix: str = "", distilled: bool = True) -> dict:
    shapes = {"pos_embed": (1, tokens, 8), "patch_embed.proj.weight": (8, 3, patch, patch)}
    if distilled:
        shapes["dist_token"] = (1, 1, 8)
    return {prefix + name: shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "part", "side"),
    [
        (deit(198, 16), "", 224),
        (deit(197, 16, distilled=False), "", 224),
        (deit(578, 16), "", 384),
        (deit(66, 4, "model."), "", 32),
        (deit(199, 16), "", None),  # patches of no square
        (deit(2, 16), "", None),
        ({"pos_embed": (1, 198, 8)}, "", None),
        ({"fc.weight": (5, 8)}, "", None),
        (deit(198, 16, "model.") | deit(198, 16, "ema."), "", 224),
        (deit(198, 16, "model.") | deit(578, 16, "ema."), "", None),
        (deit(198, 16, "model.") | deit(578, 16, "ema."), "ema", 384),
    ],
)
def test_the_position_embedding_has_the_number_of_patches(tmp_path, shapes, part, side):
    file = written(tmp_path / "weights.npz", shapes)
    found = models.infer_image_shape(file, "deit_tiny", 1000, 3, part=part, key="FILE")
    assert found == (side and (side, side, 3))


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("imagenet_resnet50", 1000, (224, 224, 3)),
        ("imagenet_resnet50", 37, None),  # fine-tuned at a size that nobody knows
        ("resnet56", 100, (32, 32, 3)),
    ],
)
def test_other_networks_go_by_their_name(tmp_path, name, classes, expected):
    assert models.infer_image_shape(tmp_path / "unread", name, classes, 3, key="FILE") == expected


def test_import_reads_the_size_of_the_images(tmp_path, capsys):
    known = json.loads((GOLDEN / "deit_tiny.json").read_text())
    state = {name: fill(name, tuple(shape)) for name, shape in known["state"].items()}
    np.savez(tmp_path / "deit.npz", **state)
    command = ["import", str(tmp_path / "deit.npz"), "--model=deit_tiny", *FLAGS]
    assert cli.main([*command, f"--workdir={tmp_path / 'out'}"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == [32, 32, 3]
    assert models.load(tmp_path / "out").spec.input_shape == (32, 32, 3)


def test_import_asks_where_nothing_tells_it(tmp_path, capsys):
    file = written(tmp_path / "weights.npz", {"fc.weight": (5, 8)})
    for name in ("imagenet_resnet18", "deit_tiny"):
        command = ["import", str(file), f"--model={name}", *FLAGS, f"--workdir={tmp_path / 'out'}"]
        assert cli.main(command) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"distill-jax: error: --image: neither the name of {name} nor its")
        assert line.count("\n") == 1 and not (tmp_path / "out").exists()
