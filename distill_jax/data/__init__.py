"""Data on the host: `order` says which example when, `images` and `text` read and batch them.

The names of `images` can be had from here too; those of text are in `distill_jax.data.text`. Left
out on purpose: devices and sharding.
"""

from distill_jax.data.images import *  # noqa: F403
from distill_jax.data.images import __all__ as __all__
