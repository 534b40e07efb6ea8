r"""Every pair and method of the CIFAR-100 literature: TEACHER,STUDENT,METHOD, or one network alone.

    distill-jax train --config=configs/cifar100.py:resnet32x4 --workdir=runs/cifar100/resnet32x4
    distill-jax train --config=configs/cifar100.py:resnet32x4,resnet8x4,dkd \
        --workdir=runs/cifar100/dkd --config.teacher.path=runs/cifar100/resnet32x4
    distill-jax train --config=configs/cifar100.py:resnet32x4,resnet8x4,crd_kd \
        --workdir=runs/cifar100/crd_kd
    distill-jax train --config=configs/cifar100.py:resnet56,deit_tiny,deit --workdir=runs/deit

Pairs and methods: configs/literature.py. The teacher is expected in runs/cifar100/TEACHER. 240
epochs; the published figures and ours: experiments/cifar_table/README.md, which runs whole tables.
"""

import literature

from distill_jax import models
from distill_jax.errors import UsageError, unknown


def get_config(row: str = "resnet56,resnet20,kd"):
    parts = row.split(",")
    if len(parts) not in (1, 3):
        raise UsageError(
            f"--config=cifar100.py:{row}: expected STUDENT, or TEACHER,STUDENT,METHOD, such as "
            "resnet56,resnet20,kd"
        )
    for name in parts[:2]:
        if name not in models.names():
            raise unknown("--config", name, models.names(), "model")
    if len(parts) == 1:
        return literature.cifar("cifar100", row)
    teacher, student, method = parts
    path = f"runs/cifar100/{teacher}"
    if method == "deit":
        return literature.transformer("cifar100", path)
    return literature.distilled("cifar100", teacher, student, method, path)
