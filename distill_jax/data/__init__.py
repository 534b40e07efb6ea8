"""Data on the host: `order` decides which example when, `images` and `text` read and batch them.

    from distill_jax import data

    examples = data.load("digits", "train")
    train, validation = data.splits(examples, validation=0.1, split_seed=0)
    feed = data.training_feed(examples, data.Order(train, 0), 64, resident=False, workers=0)
    batch = next(feed.at(0))  # {"id", "image", "label"}

The names of `images` are available here too; those of text are in `distill_jax.data.text`. Left out
on purpose: devices and sharding.
"""

from distill_jax.data.images import (
    Augment,
    Crops,
    EvaluationFeed,
    Examples,
    InColour,
    Info,
    TrainingFeed,
    draw,
    draw_strong,
    evaluation_feed,
    fingerprint,
    identity,
    load,
    load_rows,
    names,
    register,
    resident_arrays,
    statistics,
    strong_view,
    training_feed,
    view,
)
from distill_jax.data.order import Order, splits

__all__ = [
    "Augment",
    "Crops",
    "EvaluationFeed",
    "Examples",
    "InColour",
    "Info",
    "Order",
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
    "splits",
    "statistics",
    "strong_view",
    "training_feed",
    "view",
]
