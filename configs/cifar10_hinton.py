"""Hinton's soft targets on CIFAR-10: resnet110 -> resnet20, 200 epochs.

    distill-jax train --config=configs/cifar10_hinton.py:teacher --workdir=runs/cifar10_teacher
    distill-jax train --config=configs/cifar10_hinton.py --workdir=runs/cifar10
    distill-jax train --config=configs/cifar10_hinton.py:baseline --workdir=runs/cifar10_baseline

Published (AberHu/Knowledge-Distillation-Zoo, README): teacher 93.86, baseline 92.37, student
92.82 % top-1. Not run to its end here yet: it asks for a GPU. The learning rate and the other
values are that table's own; see recipes.cifar10_hinton.
"""

import recipes

from distill_jax.errors import UsageError

ROLES = ("teacher", "baseline", "student")


def get_config(role: str = "student"):
    if role not in ROLES:
        raise UsageError(f"--config=cifar10_hinton.py:{role}: expected one of {', '.join(ROLES)}")
    return recipes.cifar10_hinton(role)
