"""Soft targets as regularizers: a teacher of all digits, a student that sees a tenth of them.

    distill-jax train --config=configs/digits.py:teacher --workdir=runs/digits_teacher
    distill-jax train --config=configs/digits.py --workdir=runs/digits
    distill-jax train --config=configs/digits.py --workdir=runs/hot --config.method.temperature=8
    distill-jax train --config=configs/digits.py:baseline --workdir=runs/digits_baseline
    distill-jax train --config=configs/digits.py:smoothed --workdir=runs/digits_smoothed

Scikit-learn's 1,797 handwritten digits, in miniature what Hinton, Vinyals & Dean 2015 did with
speech in section 6. Test accuracy, mean of TEN_SEEDS; five to
ten seconds a run on two CPU cores. `make demo` trains them all with three seeds; every figure, and
how the values were chosen: experiments/demo/README.md.
"""

import recipes

from distill_jax.errors import UsageError

ROLES = ("teacher", "baseline", "smoothed", "student")


def get_config(role: str = "student"):
    if role not in ROLES:
        raise UsageError(f"--config=digits.py:{role}: expected one of {', '.join(ROLES)}")
    return recipes.digits(role)
