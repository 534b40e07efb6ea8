"""Checks of the shapes in signatures, by beartype, which here takes an int as a float."""

import beartype
import jax
import jaxtyping
import numpy as np

PACKAGES = ("distill_jax.losses", "distill_jax.methods")

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def install() -> None:
    """Makes every function of the packages check its arguments and its result.

    Before the packages are imported, since the checks are added at import. Tests pass arrays of
    NumPy too, so in signatures `Array` stands for both kinds.
    """
    jaxtyping.Array = jax.Array | np.ndarray
    jaxtyping.install_import_hook(PACKAGES, "shape_checks.check")
