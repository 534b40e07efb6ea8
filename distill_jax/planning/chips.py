"""Peak performance of chips, from their makers' pages.

Peak FLOP/s are those of dense bfloat16 matrix products. Bandwidths are bytes a second in one
direction. We measured none of these chips. Left out on purpose: the share of a peak that a program
reaches, which only a profile can show.
"""

import dataclasses

from distill_jax.errors import UsageError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      platform: "tpu" or "gpu".
      flops: peak FLOP/s in bfloat16.
      memory: bytes of HBM.
      bandwidth: bytes a second between the chip and its HBM.
      link: bytes a second in one direction over one link of a TPU, or all NVLinks of a GPU.
      source: the publication of these numbers.
      torus: the number of dimensions of a TPU slice; 0 for a GPU.
      ring: a dimension of a TPU slice is closed to a ring if its size is a multiple of this.
      network: bytes a second in one direction from a GPU to GPUs of other hosts; assumed.
      most: the largest size of a slice along a dimension.
    """

    platform: str
    flops: float
    memory: int
    bandwidth: float
    link: float
    source: str
    torus: int = 0
    ring: int = 0
    network: float = 0.0
    most: int = 0


_CLOUD = "cloud.google.com/tpu/docs/"
_NVIDIA = "NVIDIA's data sheet, "
#: GPUs of one host, connected by NVLink.
GPUS_PER_HOST = 8

# The link of a TPU is the published interchip bandwidth divided by the links of a chip (four on a
# 2D torus, six on a 3D torus) and by two for one direction.
CHIPS: dict[str, Chip] = {
    "v4": Chip(
        "tpu", 275e12, 32 * GIB, 1200e9, 50e9, _CLOUD + "v4 and v4's paper (Jouppi et al. 2023)",
        torus=3, ring=4, most=16,
    ),
    "v5e": Chip(
        "tpu", 197e12, 16 * GIB, 819e9, 50e9, _CLOUD + "v5e", torus=2, ring=16, most=16,
    ),
    "v5p": Chip(
        "tpu", 459e12, 95 * GIB, 2765e9, 100e9, _CLOUD + "v5p", torus=3, ring=4, most=24,
    ),
    "v6e": Chip(
        "tpu", 918e12, 32 * GIB, 1638e9, 100e9, _CLOUD + "v6e", torus=2, ring=16, most=16,
    ),
    "a100": Chip(
        "gpu", 312e12, 80 * 10**9, 2039e9, 300e9, _NVIDIA + "A100 80GB SXM", network=25e9,
    ),
    "h100": Chip(
        "gpu", 989e12, 80 * 10**9, 3350e9, 450e9, _NVIDIA + "H100 SXM", network=50e9,
    ),
    "h200": Chip(
        "gpu", 989e12, 141 * 10**9, 4800e9, 450e9, _NVIDIA + "H200 SXM", network=50e9,
    ),
    "b200": Chip(
        "gpu", 2250e12, 180 * 10**9, 8000e9, 900e9, _NVIDIA + "HGX B200", network=50e9,
    ),
}  # fmt: skip

#: JAX's `device_kind` in lower case -> the name in the table.
_KINDS = {
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5p": "v5p",
    "tpu v5": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
}


def of_kind(device_kind: str) -> str | None:
    """The name in the table of a device of JAX; None for one that is not in the table."""
    kind = device_kind.lower()
    if kind in _KINDS:
        return _KINDS[kind]
    return next((name for name, c in CHIPS.items() if c.platform == "gpu" and name in kind), None)


def find(name: str, platform: str, target: str) -> Chip:
    """A chip of the table.

    Args:
      name: in the table.
      platform: "tpu" or "gpu".
      target: the user's --target, for the error.

    Raises:
      UsageError: the table has no such chip for that platform.
    """
    known = [key for key, chip in CHIPS.items() if chip.platform == platform]
    if name not in known:
        raise UsageError(f"--target={target}: no {platform} {name!r}; expected {', '.join(known)}")
    return CHIPS[name]
