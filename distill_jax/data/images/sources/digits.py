"""The 1,797 handwritten digits (8 x 8, Alpaydin & Kaynak 1998) that ship inside scikit-learn.

The only set that needs no file and no network. scikit-learn does not split it, so the split here is
fixed: 1,297 train and 500 test, stratified by class, by a permutation from a constant seed.
"""

from importlib.metadata import distribution

import numpy as np

from distill_jax.data.images.sources.base import ArrayExamples, from_arrays
from distill_jax.data.order import SOURCE_STREAM, stratified

TEST_COUNT = 500
SPLIT_SEED = 1797


def load(split: str, image_size: int = 0) -> ArrayExamples:
    """The "train" or "test" split; grey levels 0..16 are scaled to 0..255 and rounded."""
    # Its file is read without importing scikit-learn, which would take longer than the reading.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")  # 64 grey levels and the label
    images = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = rows[:, -1].astype(np.int64)
    test = stratified(labels, TEST_COUNT, SPLIT_SEED, SOURCE_STREAM)
    train = np.setdiff1d(np.arange(len(labels)), test)
    ids = {"train": train, "test": test}[split]
    return from_arrays(
        "digits",
        images[ids],
        labels[ids],
        num_classes=10,
        image_size=image_size,
        named=True,
    )
