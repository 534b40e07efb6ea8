"""Image data: sources read a split, feeds make batches on the host, views are made on the device.

`sources` reads, `crops` says which part of an image is read, `feed` makes batches of what `order`
chooses, `augment` and `strong` make views of batches on the device. Left out on purpose: devices
and sharding, and normalisation, which belongs to a model.
"""

from distill_jax.data.images.augment import Augment, draw, identity, view
from distill_jax.data.images.crops import Crops
from distill_jax.data.images.feed import (
    Evaluation,
    Training,
    evaluation,
    fingerprint,
    load_rows,
    statistics,
    store,
    training,
)
from distill_jax.data.images.sources import Examples, Info, load, names, register
from distill_jax.data.images.strong import draw_strong, strong_view
from distill_jax.data.order import Order, splits

__all__ = [
    "Augment",
    "Crops",
    "Evaluation",
    "Examples",
    "Info",
    "Order",
    "Training",
    "draw",
    "draw_strong",
    "evaluation",
    "fingerprint",
    "identity",
    "load",
    "load_rows",
    "names",
    "register",
    "splits",
    "statistics",
    "store",
    "strong_view",
    "training",
    "view",
]
