"""Kernels for CPUs: convolutions and batch normalisation faster than XLA's, and XLA's as fallback.

`native` builds and selects the library; the other modules are functions of arrays that use it where
it has a form for the operands, and compute the same by XLA otherwise: on other platforms, for other
dtypes, in a program for several devices, or where no compiler is installed. Only layers call them.

The same bits come out in any process on the same kind of processor: how a batch is split, and the
order of sums, depend on shapes alone.
"""

from distill_jax.kernels.native import (
    CHOICES,
    Status,
    Unavailable,
    enabled,
    select,
    selected,
    status,
)

__all__ = ["CHOICES", "Status", "Unavailable", "enabled", "select", "selected", "status"]
