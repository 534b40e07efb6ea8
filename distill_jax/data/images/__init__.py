"""Image data: sources read a split, feeds batch it on the host, views are made on the device.

    sources   read a data set: TFDS, IDX, .npz, a folder of images
    crops     choose the part of an image that a training step shows
    feed      makes batches of the examples that `data.order` chooses
    augment   makes the view of a batch on the device; `strong` the strongly augmented one

Left out on purpose: devices and sharding, and normalisation, which belongs to a model.
"""

from distill_jax.data.images.augment import Augment, draw, identity, view
from distill_jax.data.images.crops import Crops
from distill_jax.data.images.feed import (
    EvaluationFeed,
    TrainingFeed,
    evaluation_feed,
    fingerprint,
    load_rows,
    resident_arrays,
    statistics,
    training_feed,
)
from distill_jax.data.images.sources import Examples, InColour, Info, load, names, register
from distill_jax.data.images.strong import draw_strong, strong_view

__all__ = [
    "Augment",
    "Crops",
    "EvaluationFeed",
    "Examples",
    "InColour",
    "Info",
    "TrainingFeed",
    "draw",
    "draw_strong",
    "evaluation_feed",
    "fingerprint",
    "identity",
    "load",
    "load_rows",
    "names",
    "register",
    "resident_arrays",
    "statistics",
    "strong_view",
    "training_feed",
    "view",
]
