r"""Hinton, Vinyals & Dean 2015, section 3: 2x1200 with dropout and jitter -> 2x800, MNIST.

    distill-jax train --config=configs/mnist_hinton.py:teacher --workdir=runs/mnist_teacher
    distill-jax train --config=configs/mnist_hinton.py --workdir=runs/mnist
    distill-jax train --config=configs/mnist_hinton.py --workdir=runs/mnist_8 \
        --config.method.temperature=8
    distill-jax train --config=configs/mnist_hinton.py:baseline --workdir=runs/mnist_baseline

MNIST comes from TFDS, prepared once; from the IDX files as they are distributed with
`--config.data.name=idx --config.data.path=DIR`. Paper's test errors: teacher 67, baseline 146,
student 74; ours, by an earlier recipe, 80, 149 and 97.5 (experiments/hinton2015/README.md).
"""

import recipes

from distill_jax.errors import UsageError

ROLES = ("teacher", "baseline", "student")


def get_config(role: str = "student"):
    if role not in ROLES:
        raise UsageError(f"--config=mnist_hinton.py:{role}: expected one of {', '.join(ROLES)}")
    return recipes.mnist_hinton(role)
