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
        it, and "pooled" [B, D], what the classifier reads. Every call of `apply` returns all of
        them, sorted by name: under `jit`, XLA drops those that nothing reads.
    """

    logits: Array
    taps: dict[str, Array]


def with_all_taps(outputs: Outputs, shapes: Outputs) -> Outputs:
    """Outputs of which some taps were not computed or not stored, with zeros for those.

    A loss that does not depend on them may still loop over all taps, or take one by its position:
    the names and their order are those of a network's own outputs.

    Args:
      outputs: of a batch, [B, ...].
      shapes: of the network's outputs on one image, [1, ...].
    """
    batch = outputs.logits.shape[0]
    taps = {
        name: outputs.taps[name]
        if name in outputs.taps
        else jnp.zeros((batch, *shape.shape[1:]), shape.dtype)
        for name, shape in sorted(shapes.taps.items())
    }
    return Outputs(outputs.logits, taps)


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
