"""Short runs of the CIFAR table on a few images."""

import pathlib

import numpy as np


def small_runs(tmp_path: pathlib.Path, *, epochs: float) -> list[str]:
    """Arguments of short runs on a few images like CIFAR-100's, which would take minutes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 356), ("test", 200)):
        labels = np.arange(count) % 100
        noise = rng.integers(0, 64, (count, 32, 32, 3))
        arrays[f"x_{split}"] = (noise + labels[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(tmp_path / "images.npz", **arrays)
    return [
        f"--epochs={epochs}",
        "--config.data.name=npz",
        f"--config.data.path={tmp_path / 'images.npz'}",
        "--config.data.validation=100",
        "--config.evaluation.batch_size=100",
        "--config.evaluation.every_epochs=0",
        "--config.logging.progress=off",
        "--config.logging.tensorboard=false",
        "--config.mesh.data=1",
    ]
