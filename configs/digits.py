"""The 1,797 handwritten digits of scikit-learn: a convolutional network teaches 32 hidden units.

    distill-jax train --config=configs/digits.py:teacher --workdir=runs/digits_teacher
    distill-jax train --config=configs/digits.py --workdir=runs/digits
    distill-jax train --config=configs/digits.py --workdir=runs/digits_hot --config.method.temperature=8
    distill-jax train --config=configs/digits.py:baseline --workdir=runs/digits_baseline
    distill-jax train --config=configs/digits.py:smoothed --workdir=runs/digits_smoothed

No download, no GPU, seconds a run. `make demo` trains all of them with three seeds; figures, times
and how the values were chosen: experiments/demo/README.md.
"""

import recipes

from distill_jax.errors import UsageError

ROLES = ("teacher", "baseline", "smoothed", "student")


def get_config(role: str = "student"):
    if role not in ROLES:
        raise UsageError(f"--config=digits.py:{role}: expected one of {', '.join(ROLES)}")
    return recipes.digits(role)
