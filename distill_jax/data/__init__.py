"""Data: where examples come from, which are used in which order, and what a model sees of them.

Sources read a split (`sources/`), order.py chooses and orders ids on the host, feed.py makes
batches of them, augment.py makes views of batches on the device. Left out on purpose: devices and
sharding, which are training's, and normalisation, which belongs to a model.
"""

from distill_jax.data.augment import Augment, draw, identity, view
from distill_jax.data.feed import (
    Evaluation,
    Training,
    evaluation,
    fingerprint,
    statistics,
    store,
    training,
)
from distill_jax.data.order import Order, splits
from distill_jax.data.sources import Examples, Info, load, names, register

__all__ = [
    "Augment",
    "Evaluation",
    "Examples",
    "Info",
    "Order",
    "Training",
    "draw",
    "evaluation",
    "fingerprint",
    "identity",
    "load",
    "names",
    "register",
    "splits",
    "statistics",
    "store",
    "training",
    "view",
]
