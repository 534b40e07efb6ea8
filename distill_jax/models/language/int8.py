"""Frozen decoders with int8 weights: each output channel of a matrix has integers and one scale.

    scale = max |w| / 127 over the inputs;  q = round(w / scale);  y = (x @ q) * scale

So |w - q * scale| <= scale / 2. Only the matrices of the layers (`decoder.PROJECTIONS`) are int8,
those of each expert separately: embedding, head, routers, norms and biases keep the dtype in which
they are loaded. Activations are not quantized. A kernel is converted to the compute dtype inside
the scan over the layers, one layer at a time, so that a device holds about half of what bfloat16
takes. Left out on purpose: training, groups smaller than a channel, 4 bits, and files that are
already quantized.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from distill_jax.models.language.decoder import PROJECTIONS, Decoder, projections

#: The values of `teacher.quantize`.
CHOICES = ("none", "int8")


def is_kernel(name: str) -> bool:
    """Whether a flat name is that of a matrix that is quantized."""
    parts = name.split("/")
    return (
        len(parts) == 5
        and parts[0] == "runs"
        and parts[3] in PROJECTIONS.get(parts[2], ())
        and parts[4] == "kernel"
    )


def scale_name(name: str) -> str:
    """The flat name of the scales of a kernel."""
    return f"{name}_scale"


def scale_shapes(own: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shape of every scale by its flat name, from those of a dense decoder's parameters."""
    return {
        scale_name(name): (*shape[:-2], shape[-1]) for name, shape in own.items() if is_kernel(name)
    }


def quantize(kernel: Array) -> tuple[Array, Array]:
    """Quantizes a matrix.

    Args:
      kernel: [..., inputs, outputs].

    Returns:
      (integers, scales): int8 [..., inputs, outputs] from -127 to 127, and float32 [..., outputs],
      0 for a channel of zeros.
    """
    wide = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-2) / 127
    integers = jnp.round(wide / jnp.where(scale > 0, scale, 1.0)[..., None, :])
    # The division may round to just above 127.
    return jnp.clip(integers, -127, 127).astype(jnp.int8), scale


def is_quantized(model: Decoder) -> bool:
    """Whether a decoder has int8 kernels."""
    return any(linear.kernel_scale is not None for _, linear in projections(model))
