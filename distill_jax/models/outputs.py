"""What a vision network returns: logits, and named intermediates that a loss may read."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a network returns for one batch; a pytree.

    Attributes:
      logits: float32 [B, K], unnormalised log-probabilities.
      taps: named intermediates, such as "stage1" [B, H, W, C] after its ReLU, "stage1_pre" before
        it, and "pooled" [B, D], what the classifier reads. Every call returns all of them: under
        `jit`, XLA drops those that nothing reads.
    """

    logits: Array
    taps: dict[str, Array]


def checked_images(images: Array, input_shape: tuple[int, int, int], dtype: jnp.dtype) -> Array:
    """The images in the compute dtype of the network.

    Args:
      images: float [B, H, W, C], already normalised.
      input_shape: the (H, W, C) that the network was made for.
      dtype: the compute dtype.

    Returns:
      The images as `dtype`, [B, H, W, C].

    Raises:
      ValueError: the images are integers (raw pixels, not yet normalised) or of another shape.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be normalised floats; got {images.dtype}: scale to [0, 1], then normalise"
        )
    if images.ndim != 4 or images.shape[1:] != input_shape:
        raise ValueError(
            f"images must be [B, {', '.join(map(str, input_shape))}]; got {list(images.shape)}"
        )
    return images.astype(dtype)
