"""The view of a batch, on the device, inside the jitted step: crop, flip, colour, mixup, cutmix.

A view is made in two steps, so that it can be stored as numbers and made again: `draw` draws the
random numbers of a batch, `view` computes the view from pixels and numbers, without randomness. All
numbers are drawn at the shape of the whole batch, so a sharded batch gets the same ones on any
number of devices. Left out on purpose: decoding and resizing, which sources do (the random resized
crop too, with a cut from crops.py), and learned or searched policies.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from distill_jax.errors import UsageError, unknown

PADDING_MODES = ("zero", "reflect")

# 1 / 255 as a sum. XLA replaces x / 255 by a product with float32(1 / 255), which is off by one in
# the last place for half of the levels. With 16 bits in the first summand its product is exact, and
# the sum equals numpy's float32 division, on every backend.
_HIGH = round(2**23 / 255) / 2**23
_LOW = 1 / 255 - _HIGH

# One key for each kind of number: switching one kind on leaves the numbers of the rest unchanged.
_STREAMS = {
    name: number
    for number, name in enumerate(
        ("dy", "dx", "flip", "brightness", "contrast", "partner", "lam", "use_cutmix", "centre")
    )
}


@dataclasses.dataclass(frozen=True)
class Augment:
    """How a training batch is augmented; the defaults do nothing.

    Attributes:
      crop_padding: pixels of padding on each side before a crop of the image's own size; each
        offset in [0, 2 * crop_padding] is equally likely, down and across.
      padding_mode: "zero" (black) or "reflect" (mirrored, the edge pixel not repeated).
      resized_crop: the least area of a random resized crop, as a fraction of the image's, in
        (0, 1]; 0 is off. Sources cut it when they read an image; `draw` and `view` ignore it.
      flip: mirror left to right with probability 1/2.
      color_jitter: brightness and contrast factors are uniform in [1 - color_jitter,
        1 + color_jitter]; in [0, 1].
      mixup: the alpha of Beta(alpha, alpha), one mixing weight a batch; 0 is off
        (Zhang et al. 2018, section 2).
      cutmix: the same for pasted boxes (Yun et al. 2019, section 3.1). With both, each batch uses
        one of the two, with probability 1/2.
      strong_ops: number of operations of the strong view (strong.py), which `draw` and `view`
        ignore; 0: there is no strong view.
      strong_cutout: side of the square cut out of the strong view, as a fraction of the image's; in
        [0, 1]; 0 is off.
    """

    crop_padding: int = 0
    padding_mode: str = "zero"
    resized_crop: float = 0.0
    flip: bool = False
    color_jitter: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    strong_ops: int = 0
    strong_cutout: float = 0.5

    def __post_init__(self):
        if self.padding_mode not in PADDING_MODES:
            raise unknown("data.augment.padding_mode", self.padding_mode, PADDING_MODES, "mode")
        if self.crop_padding < 0:
            raise UsageError(f"data.augment.crop_padding={self.crop_padding!r}: expected 0 or more")
        if not 0 <= self.resized_crop <= 1:
            raise UsageError(f"data.augment.resized_crop={self.resized_crop!r}: expected 0 to 1")
        if self.resized_crop and self.crop_padding:
            raise UsageError(
                f"data.augment.crop_padding={self.crop_padding}: data.augment.resized_crop="
                f"{self.resized_crop} crops already; expected one of them, the other 0"
            )
        if not 0 <= self.color_jitter <= 1:
            raise UsageError(f"data.augment.color_jitter={self.color_jitter!r}: expected 0 to 1")
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if not 0 <= alpha < float("inf"):
                raise UsageError(f"data.augment.{name}={alpha!r}: expected 0 (off) or more")
        if self.strong_ops < 0:
            raise UsageError(f"data.augment.strong_ops={self.strong_ops!r}: expected 0 or more")
        if not 0 <= self.strong_cutout <= 1:
            raise UsageError(f"data.augment.strong_cutout={self.strong_cutout!r}: expected 0 to 1")


def draw(key: Array, batch_size: int, options: Augment) -> dict[str, Array]:
    """The numbers of one batch's view.

    Args:
      key: a jax PRNG key.
      batch_size: B, of the whole batch over all devices.
      options: how the batch is augmented.

    Returns:
      Those that `options` needs of: "dy" and "dx", int32 [B] in [0, 2 * crop_padding]; "flip", bool
      [B]; "brightness" and "contrast", float32 [B]; "partner", int32 [B], a permutation; "lam",
      float32 [], the weight of the example itself; "centre", float32 [2] in [0, 1), the centre of
      the box as fractions of height and width; "use_cutmix", bool [], when both mixes are on.
    """
    keys = {name: jax.random.fold_in(key, number) for name, number in _STREAMS.items()}
    each = (batch_size,)
    draws: dict[str, Array] = {}
    if options.crop_padding:
        for name in ("dy", "dx"):
            draws[name] = jax.random.randint(keys[name], each, 0, 2 * options.crop_padding + 1)
    if options.flip:
        draws["flip"] = jax.random.bernoulli(keys["flip"], 0.5, each)
    if options.color_jitter:
        low, high = 1 - options.color_jitter, 1 + options.color_jitter
        for name in ("brightness", "contrast"):
            draws[name] = jax.random.uniform(keys[name], each, minval=low, maxval=high)
    if options.mixup or options.cutmix:
        draws["partner"] = jax.random.permutation(keys["partner"], batch_size)
        alpha: float | Array = options.mixup or options.cutmix
        if options.mixup and options.cutmix:
            draws["use_cutmix"] = jax.random.bernoulli(keys["use_cutmix"], 0.5)
            alpha = jnp.where(draws["use_cutmix"], options.cutmix, options.mixup)
        draws["lam"] = jax.random.beta(keys["lam"], alpha, alpha, dtype=jnp.float32)
    if options.cutmix:
        draws["centre"] = jax.random.uniform(keys["centre"], (2,))
    return draws


def view(
    images: Array, labels: Array, num_classes: int, draws: dict[str, Array], options: Augment
) -> tuple[Array, Array]:
    """The view that `draws` describe: crop, flip, brightness, contrast, mix, in this order.

    Args:
      images: uint8 [B, H, W, C].
      labels: int [B].
      num_classes: K.
      draws: what `draw` returned for the same options and B.
      options: those that were given to `draw`.

    Returns:
      Images, float32 [B, H, W, C] in [0, 1], and targets, float32 [B, K], probabilities.

    Raises:
      UsageError: the padding is reflected and not smaller than a side of the image.
    """
    if "dy" in draws or "flip" in draws:
        images = crop_and_flip(images, draws, options)
    pixels, targets = identity(images, labels, num_classes)
    if "brightness" in draws:
        pixels = _jitter(pixels, draws["brightness"], draws["contrast"])
    if "partner" in draws:
        weights, share = _mixing_weights(images.shape[1], images.shape[2], draws)
        weights, partner = weights[None], draws["partner"]
        # Rounding can make a mix of two whites exceed 1.
        pixels = jnp.minimum(weights * pixels + (1 - weights) * pixels[partner], 1)
        targets = share * targets + (1 - share) * targets[partner]
    return pixels, targets


def identity(images: Array, labels: Array, num_classes: int) -> tuple[Array, Array]:
    """The view without augmentation: images / 255 and one-hot targets; shapes as in `view`."""
    return scaled(jnp.asarray(images)), jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def scaled(levels: Array) -> Array:
    """Levels from 0 to 255 as float32 pixels in [0, 1], with the bits of numpy's levels / 255."""
    levels = levels.astype(jnp.float32)
    return levels * _HIGH + levels * _LOW


def crop_and_flip(images: Array, draws: dict[str, Array], options: Augment) -> Array:
    """Crop and flip as one gather, by the source row and column of each row and column."""
    batch, height, width, _ = images.shape
    padding = options.crop_padding
    if padding >= min(height, width) and options.padding_mode == "reflect":
        raise UsageError(
            f"data.augment.crop_padding={padding}: reflection needs less than the image's side,"
            f" {height} x {width}"
        )
    rows = jnp.broadcast_to(jnp.arange(height), (batch, height))
    columns = jnp.broadcast_to(jnp.arange(width), (batch, width))
    if "flip" in draws:
        columns = jnp.where(draws["flip"][:, None], columns[:, ::-1], columns)
    if "dy" in draws:
        rows = rows + draws["dy"][:, None] - padding
        columns = columns + draws["dx"][:, None] - padding
    if options.padding_mode == "reflect":
        rows, columns = _reflect(rows, height), _reflect(columns, width)
    inside = (
        ((rows >= 0) & (rows < height))[:, :, None]
        & ((columns >= 0) & (columns < width))[:, None, :]
    )[..., None]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    # vmap keeps the batch a batching dimension of the gather, which shards without communication.
    gathered = jax.vmap(lambda image, y, x: image[y[:, None], x[None, :]])(images, rows, columns)
    return jnp.where(inside, gathered, 0)


def _reflect(index: Array, size: int) -> Array:
    index = jnp.abs(index)
    return jnp.where(index >= size, 2 * (size - 1) - index, index)


def _jitter(pixels: Array, brightness: Array, contrast: Array) -> Array:
    """Scales each image, then its distance from its own mean; clipped to [0, 1] after each."""
    brightness, contrast = (factor[:, None, None, None] for factor in (brightness, contrast))
    pixels = jnp.clip(pixels * brightness, 0, 1)
    mean = jnp.mean(pixels, axis=(1, 2, 3), keepdims=True)
    return jnp.clip(mean + contrast * (pixels - mean), 0, 1)


def _mixing_weights(height: int, width: int, draws: dict[str, Array]) -> tuple[Array, Array]:
    """The weight of the example itself in each pixel, [H, W, 1], and in the targets, [].

    mixup gives every pixel the same weight. cutmix pastes a box whose sides are sqrt(1 - lam) of
    the image's, clipped at the image's edge, and corrects lam to the exact area that is left (Yun
    et al. 2019, equation 2 and the authors' code).
    """
    lam = draws["lam"]
    even = jnp.broadcast_to(lam, (height, width, 1))
    if "centre" not in draws:
        return even, lam
    inside = []
    for axis, size in enumerate((height, width)):
        half = (size * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
        centre = (draws["centre"][axis] * size).astype(jnp.int32)
        index = jnp.arange(size)
        inside.append((index >= centre - half) & (index < centre + half))
    outside = 1 - (inside[0][:, None, None] & inside[1][None, :, None]).astype(jnp.float32)
    share = jnp.mean(outside)
    if "use_cutmix" in draws:
        outside = jnp.where(draws["use_cutmix"], outside, even)
        share = jnp.where(draws["use_cutmix"], share, lam)
    return outside, share
