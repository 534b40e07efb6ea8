"""Real images for tests: those of CIFAR, out of the packs of the shared data."""

import io
import pathlib

import numpy as np
from PIL import Image


def unpacked(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3] and labels of a pack: lossless mosaics of 400 images, 20 a row."""
    images = []
    with np.load(path) as pack:
        content, labels, offsets = pack["webp"], pack["label"], pack["offsets"]
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        mosaic = np.asarray(Image.open(io.BytesIO(content[start:end].tobytes())).convert("RGB"))
        grid = mosaic.reshape(mosaic.shape[0] // 32, 32, -1, 32, 3).swapaxes(1, 2)
        images.append(grid.reshape(-1, 32, 32, 3))
    return np.concatenate(images)[: len(labels)], labels
