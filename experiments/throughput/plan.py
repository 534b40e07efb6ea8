"""The contenders, the packages that they need, and the task that all of them are given."""

import pathlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from distill_jax import config as configs
from distill_jax import data, models
from distill_jax.errors import unknown

ROOT = pathlib.Path(__file__).resolve().parents[2]
RANDOM_IMAGES, TEST_IMAGES, CLASSES = 2000, 100, 100

_TORCH = ("torch", "torchvision")
# The packages that a contender needs in addition to this library.
NEEDS = {
    "ours": (),
    "ours_xla": (),
    "ours_ahead": (),
    "ours_bf16_teacher": (),
    "ours_stored": (),
    "torch_eager": _TORCH,
    "torch_channels_last": _TORCH,
    "torch_compile": _TORCH,
    "torch_compile_channels_last": _TORCH,
    "torch_bf16_teacher": _TORCH,
    "torch_compile_bf16_teacher": _TORCH,
    "torch_bf16": _TORCH,
    "torchdistill": (*_TORCH, "torchdistill"),
}
HUGE = "+huge"  # after a contender's name: its process computes in huge pages
BASE = "torch_eager"  # the contender that all are compared with

# The networks that PyTorch's contenders implement.
NETWORKS = tuple(
    name for name in models.names() if re.fullmatch(r"resnet(8|14|20|32|44|56|110)(x4)?", name)
)


def missing(contender: str) -> str:
    """The first package that a contender needs and that is not installed, or ""."""
    needs = NEEDS[contender.removesuffix(HUGE)]
    return next((name for name in needs if find_spec(name) is None), "")


def check_names(pair: Sequence[str], contenders: Sequence[str]) -> None:
    """UsageError if a contender or a network is not known."""
    for name in contenders:
        if name.removesuffix(HUGE) not in NEEDS:
            raise unknown("--contenders", name, NEEDS, "contender")
    for name in pair:
        if name not in models.names():
            raise unknown("--pair", name, models.names(), "model")
        if name not in NETWORKS and any(NEEDS[one.removesuffix(HUGE)] for one in contenders):
            raise unknown("--pair", name, NETWORKS, "model of the contenders that use PyTorch")


def shape_of(name: str) -> tuple[int, tuple[int, int, int, int]]:
    """(blocks a stage, channels of the stem and of each stage) of a network in NETWORKS."""
    depth, _, wide = name.removeprefix("resnet").partition("x")
    widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    return (int(depth) - 2) // 6, widths


def write_data(source: str, folder: pathlib.Path, few: int) -> dict[str, str]:
    """Writes the images that every contender reads, as npz files.

    Args:
      source: "random", or the folder in which TFDS prepared CIFAR-100.
      folder: the folder of the files.
      few: the number of training images of the second file, whose answers are stored; at least one
        a class.

    Returns:
      {"data": the file of all images, "few_data": the file of a few}.

    Raises:
      UsageError: the folder has no prepared CIFAR-100.
    """
    arrays = {}
    if source == "random":
        generator = np.random.default_rng(0)
        for split, count in (("train", RANDOM_IMAGES), ("test", TEST_IMAGES)):
            arrays[f"x_{split}"] = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
            arrays[f"y_{split}"] = np.arange(count) % CLASSES
    else:
        for split in ("train", "test"):
            found = data.load("cifar100", split, tfds_dir=source).arrays()
            arrays[f"x_{split}"], arrays[f"y_{split}"] = found
    np.savez(folder / "all.npz", **arrays)
    # One image of each class first, because the labels decide the number of classes.
    _, first = np.unique(arrays["y_train"], return_index=True)
    rest = np.setdiff1d(np.arange(len(arrays["y_train"])), first)
    ids = {"train": np.concatenate([first, rest])[:few], "test": np.arange(TEST_IMAGES)}
    chosen = {name: array[ids[name[2:]]] for name, array in arrays.items()}
    np.savez(folder / "few.npz", **chosen)
    return {"data": str(folder / "all.npz"), "few_data": str(folder / "few.npz")}


def task_of(
    pair: tuple[str, str],
    folder: pathlib.Path,
    *,
    source: str,
    batch_size: int,
    few: int,
    workers: int,
) -> dict[str, Any]:
    """The task of all contenders: the recipe of configs/cifar100.py, the networks, the data.

    Args:
      pair: the names of teacher and student.
      folder: the folder of the data.
      source: as in `write_data`.
      batch_size: the batch size of a step.
      few: as in `write_data`.
      workers: processes of PyTorch's loader.
    """
    config = configs.load(
        f"{ROOT / 'configs' / 'cifar100.py'}:{','.join(pair)},kd",
        {
            "data.name": "npz",
            "data.validation": "0",
            "training.batch_size": str(batch_size),
            "logging.progress": "off",
        },
    )
    return {
        "teacher": pair[0],
        "student": pair[1],
        "workers": workers,
        "config": configs.flatten(config),
        **write_data(source, folder, few),
    }
