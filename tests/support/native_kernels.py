"""Whether oneDNN's kernels can be built here, for tests that need them."""

import pytest

from distill_jax import kernels


def _reason() -> str:
    before = kernels.status()
    try:
        with kernels.selected("onednn"):
            return ""
    except kernels.Unavailable as error:
        assert kernels.status() == before
        return str(error)


_missing = _reason()
needed = pytest.mark.skipif(bool(_missing), reason=f"native kernels: {_missing}")
