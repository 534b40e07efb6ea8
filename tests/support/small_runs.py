"""Small but complete runs on the handwritten digits, for the tests of the trainer's promises."""

import copy

import jax
import jax.numpy as jnp

from distill_jax import config as configs
from distill_jax import methods, models

TEACHER = {
    "data": {"name": "digits", "augment": {"crop_padding": 1}},
    "student": {"name": "mlp", "widths": (64,)},
    "optimizer": {"name": "adamw", "learning_rate": 3e-3},
    "training": {"steps": 60, "batch_size": 64},
    "evaluation": {"every_epochs": 0.0, "batch_size": 200},
    "checkpoint": {"every_epochs": 0.0},
    "logging": {"progress": "off", "tensorboard": False, "every_steps": 10},
    "mesh": {"data": 1},
}

# Every part of the state matters here: batch statistics, dropout, adapters, momentum, the average.
STUDENT = {
    "data": {"name": "digits", "augment": {"crop_padding": 1, "mixup": 0.4}},
    "student": {"name": "cnn", "channels": (8, 16), "dense": 16, "dropout": 0.2},
    "method": {
        "name": "fitnet",
        "student_tap": "pooled",
        "teacher_tap": "pooled",
        "soft_weight": "linear(1, 0.5)",
    },
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "weight_decay": 1e-4},
    "schedule": {"name": "cosine", "warmup_epochs": 0.2},
    "training": {"steps": 30, "batch_size": 64, "ema_decay": 0.9},
    "evaluation": {"every_epochs": 0.5, "batch_size": 200},
    "checkpoint": {"every_epochs": 0.0, "every_steps": 7},
    "logging": {"progress": "off", "tensorboard": False, "every_steps": 4},
    "mesh": {"data": 1},
}


def changed(config: dict, **values) -> dict:
    """A copy of a nested config with "section__key" values put in."""
    flat = configs.flatten(copy.deepcopy(config))
    flat.update({name.replace("__", "."): value for name, value in values.items()})
    return configs.unflatten(flat)


def context(**values) -> methods.Context:
    """What a method reads in addition to the outputs, empty where nothing is given."""
    empty = dict(
        labels=jnp.zeros(1, jnp.int32),
        targets=jnp.zeros((1, 1)),
        ids=jnp.zeros(1, jnp.int32),
        images=jnp.zeros((1, 1, 1, 1)),
        adapters={},
        memory={},
        teacher_params={},
        temperature=jnp.float32(1),
        epoch=jnp.float32(0),
        key=jax.random.key(0),
        spec=models.Spec("mlp", {}, (1, 1, 1), 2, (0.5,), (0.5,)),
    )
    return methods.Context(**empty | values)
