"""Data: where examples come from, which are used in which order, and what a model sees of them.

Sources read a split (`sources/`), order.py chooses and orders ids on the host, crops.py the
part of an image that is read, feed.py makes batches of them, augment.py and strong.py make views of
batches on the device. Left out on purpose:
devices and sharding, which are training's, and normalisation, which belongs to a model.
"""

from distill_jax.data.augment import Augment, draw, identity, view
from distill_jax.data.crops import Crops
from distill_jax.data.feed import (
    Evaluation,
    Training,
    evaluation,
    fingerprint,
    load_rows,
    statistics,
    store,
    training,
)
from distill_jax.data.order import Order, splits
from distill_jax.data.sources import Examples, Info, load, names, register
from distill_jax.data.strong import draw_strong, strong_view

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
