"""A strongly augmented view of a batch, on the device: crop, flip, random operations, Cutout.

This is FixMatch's RandAugment (Sohn et al. 2020, appendix; Cubuk et al. 2020) in the form that
multi-level logit distillation uses in addition to the weak view (Jin et al. 2023, released code):
every drawn operation is applied, its strength is uniform in its range, and so is the side of the
square. As in augment.py, `draw_strong` draws the random numbers at the shape of the whole batch and
`strong_view` applies them without randomness. An operation has the result of Pillow's for the same
8-bit image.

The code does not branch on an image's operation: each step warps all images with one gather, maps
their levels by one table each and blends them, with an identity for the images whose operation is
of another kind. That shards without communication; `lax.switch` in `vmap` computes all 14
operations and takes several times as long.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from distill_jax.data.images.augment import Augment, crop_and_flip, draw, scaled
from distill_jax.errors import UsageError

# The range of each operation's strength, which is uniform in it (Sohn et al. 2020, appendix): the
# weight of the image in a blend, bits kept, degrees, the first level that is inverted, or fractions
# of the image's side.
RANGES = {
    "AutoContrast": (0.0, 0.0),
    "Brightness": (0.05, 0.95),
    "Color": (0.05, 0.95),
    "Contrast": (0.05, 0.95),
    "Equalize": (0.0, 0.0),
    "Identity": (0.0, 0.0),
    "Posterize": (4.0, 8.0),
    "Rotate": (-30.0, 30.0),
    "Sharpness": (0.05, 0.95),
    "ShearX": (-0.3, 0.3),
    "ShearY": (-0.3, 0.3),
    "Solarize": (0.0, 256.0),
    "TranslateX": (-0.3, 0.3),
    "TranslateY": (-0.3, 0.3),
}
OPERATIONS = tuple(RANGES)
# Cutout's fill in red, green and blue, as in the code of Jin et al.; images with another number of
# channels are filled with the mean of the three.
COLOR = (125, 123, 114)

# Folded into the key first, far from the weak view's streams, so that both views may be drawn from
# the same key.
_BRANCH = 1 << 20
_STREAMS = {
    name: number for number, name in enumerate(("crop", "op", "magnitude", "side", "centre"))
}


def draw_strong(key: Array, batch_size: int, options: Augment) -> dict[str, Array]:
    """The numbers of one batch's strong view; independent of those that `draw` draws from the key.

    Args:
      key: a jax PRNG key.
      batch_size: B, of the whole batch over all devices.
      options: how the batch is augmented; of the weak view's options, only crop and flip are used.

    Returns:
      "dy", "dx" and "flip" as from `draw`, if `options` needs them; with N operations, "op", int32
      [B, N], indices of `OPERATIONS`; "magnitude", float32 [B, N] in [0, 1), fractions of their
      ranges; and if `options.strong_cutout` is above 0, "side", float32 [B] in [0, 1), a fraction
      of the largest square's side, and "centre", float32 [B, 2] in [0, 1), the centre of the square
      as fractions of height and width.

    Raises:
      UsageError: `options.strong_ops` is 0.
    """
    if not options.strong_ops:
        raise UsageError("data.augment.strong_ops=0: a strong view needs 1 operation or more")
    key = jax.random.fold_in(key, _BRANCH)
    keys = {name: jax.random.fold_in(key, number) for name, number in _STREAMS.items()}
    crop = dataclasses.replace(options, color_jitter=0.0, mixup=0.0, cutmix=0.0)
    draws = draw(keys["crop"], batch_size, crop)
    each = (batch_size, options.strong_ops)
    draws["op"] = jax.random.randint(keys["op"], each, 0, len(OPERATIONS))
    draws["magnitude"] = jax.random.uniform(keys["magnitude"], each)
    if options.strong_cutout:
        draws["side"] = jax.random.uniform(keys["side"], (batch_size,))
        draws["centre"] = jax.random.uniform(keys["centre"], (batch_size, 2))
    return draws


def strong_view(images: Array, draws: dict[str, Array], options: Augment) -> Array:
    """The view that `draws` describe: crop, flip, the operations in their order, Cutout.

    Args:
      images: uint8 [B, H, W, C]. Three channels are red, green and blue; with another number, the
        grey of a pixel is the mean of its channels, so Color does not change grey images.
      draws: what `draw_strong` returned for the same options and B.
      options: those that were given to `draw_strong`.

    Returns:
      float32 [B, H, W, C] in [0, 1].

    Raises:
      UsageError: the padding is reflected and not smaller than a side of the image.
    """
    if "dy" in draws or "flip" in draws:
        images = crop_and_flip(images, draws, options)
    planes = jnp.moveaxis(images, -1, 1).astype(jnp.int32)
    # A loop keeps XLA from fusing a step into the many reads of its result by the next step.
    steps = (jnp.asarray(draws["op"]).T, jnp.asarray(draws["magnitude"]).T)
    planes, _ = jax.lax.scan(lambda planes, step: (operate(planes, *step), None), planes, steps)
    if "centre" in draws:
        planes = _cut_out(planes, draws["centre"], options.strong_cutout * draws["side"])
    return scaled(jnp.moveaxis(planes, 1, -1))


def operate(planes: Array, op: Array, magnitude: Array) -> Array:
    """Applies one operation to each image.

    Args:
      planes: int32 [B, C, H, W], levels.
      op: int32 [B], indices of `OPERATIONS`.
      magnitude: float32 [B] in [0, 1), fractions of the operations' ranges.

    Returns:
      int32 [B, C, H, W], levels.
    """
    low, high = jnp.array(list(RANGES.values())).T
    strength = low[op] + magnitude * (high - low)[op]
    grey = _grey(planes)
    warped = _warp(planes, op, strength)
    mapped = _lookup(warped, _tables(planes, grey, op, strength))
    color, sharpness = _is("Color", op, 4), _is("Sharpness", op, 4)
    base = jnp.where(color, grey[:, None], _smooth(planes))
    blended = _blend(base, planes, strength[:, None, None, None])
    return jnp.where(color | sharpness, blended, mapped)


def _is(name: str, op: Array, rank: int) -> Array:
    """Whether an image's operation is this one, [B, 1, ...] of this rank."""
    return (op == OPERATIONS.index(name)).reshape(-1, *[1] * (rank - 1))


def _blend(base: Array, levels: Array, share: Array) -> Array:
    """Pillow's blend of two levels, truncated; a share of 1 gives `levels`."""
    return (base + share * (levels - base)).astype(jnp.int32)


def _grey(planes: Array) -> Array:
    """The grey of each pixel, [B, H, W], by ITU-R 601-2 in 16 bits as Pillow's "L"."""
    channels = planes.shape[1]
    if channels != 3:
        return (jnp.sum(planes, axis=1) + channels // 2) // channels
    red, green, blue = planes[:, 0], planes[:, 1], planes[:, 2]
    return (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16


def _smooth(planes: Array) -> Array:
    """Pillow's SMOOTH: a 3 x 3 mean with weight 5 in the middle, rounded; the rim is unchanged."""
    height, width = planes.shape[-2:]
    if min(height, width) < 3:
        return planes
    tall = planes[:, :, :-2] + planes[:, :, 1:-1] + planes[:, :, 2:]
    total = tall[..., :-2] + tall[..., 1:-1] + tall[..., 2:] + 4 * planes[:, :, 1:-1, 1:-1]
    # A thirteenth is never halfway between two levels, so adding a half rounds correctly.
    smooth = jnp.pad(((total + 6.5) / 13).astype(jnp.int32), ((0, 0), (0, 0), (1, 1), (1, 1)))
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    rim = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    return jnp.where(rim, planes, smooth)


def _warp(planes: Array, op: Array, strength: Array) -> Array:
    """Rotate, shear and translate by the nearest pixel, black outside; an identity for the rest.

    As in Pillow, an affine matrix in fixed-point numbers of 16.16 bits maps the centre of each
    pixel to its source.
    """
    batch, channels, height, width = planes.shape

    def of(name: str) -> Array:
        return jnp.where(op == OPERATIONS.index(name), strength, 0.0)

    angle = jnp.deg2rad(-of("Rotate"))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    middle_x, middle_y = width / 2, height / 2
    # x' = a x + b y + c; y' = d x + e y + f
    a, b, d, e = cos, sin + of("ShearX"), of("ShearY") - sin, cos
    c = middle_x - (cos * middle_x + sin * middle_y) + of("TranslateX") * width
    f = middle_y - (cos * middle_y - sin * middle_x) + of("TranslateY") * height

    def source(along_x: Array, along_y: Array, offset: Array) -> Array:
        offset = offset + (along_x + along_y) / 2
        along_x, along_y, offset = (
            jnp.floor(number * 65536 + 0.5).astype(jnp.int32)[:, None, None]
            for number in (along_x, along_y, offset)
        )
        x, y = jnp.arange(width)[None, None], jnp.arange(height)[None, :, None]
        return (along_x * x + along_y * y + offset) >> 16

    x, y = source(a, b, c), source(d, e, f)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = jnp.where(inside, y * width + x, 0).reshape(batch, -1)
    flat = planes.reshape(batch, channels, -1)
    # vmap keeps the batch a batching dimension of the gather, which shards without communication.
    warped = jax.vmap(lambda image, pixel: image[:, pixel])(flat, index)
    return jnp.where(inside[:, None], warped.reshape(planes.shape), 0)


def _tables(planes: Array, grey: Array, op: Array, strength: Array) -> Array:
    """The new value of each level, [B, C, 256], under the operations that map levels."""
    batch, channels, height, width = planes.shape
    levels = jnp.arange(256)
    strength = strength[:, None, None]
    counts = _histogram(planes.reshape(batch, channels, -1))

    present = counts > 0
    lowest = jnp.argmax(present, axis=-1, keepdims=True)
    highest = 255 - jnp.argmax(present[..., ::-1], axis=-1, keepdims=True)
    spread = highest - lowest
    stretched = jnp.clip(255 * (levels - lowest) // jnp.maximum(spread, 1), 0, 255)

    below = jnp.cumsum(counts, axis=-1) - counts  # the number of pixels darker than each level
    step = jnp.take_along_axis(below, highest, axis=-1) // 255
    even = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)

    mean = (jnp.sum(grey, axis=(1, 2)) + height * width // 2) // (height * width)
    results = {
        "AutoContrast": jnp.where(spread > 0, stretched, levels),
        "Brightness": _blend(jnp.zeros_like(levels), levels, strength),
        "Contrast": _blend(mean[:, None, None], levels, strength),
        "Equalize": jnp.where(step > 0, even, levels),
        "Posterize": levels & -(1 << (8 - strength.astype(jnp.int32))),
        "Solarize": jnp.where(levels < strength, levels, 255 - levels),
    }
    table = jnp.broadcast_to(levels, counts.shape)
    for name, result in results.items():
        table = jnp.where(_is(name, op, 3), result, table)
    return table


def _histogram(levels: Array) -> Array:
    """How often each level occurs: int32 [B, C, pixels] -> int32 [B, C, 256]."""

    def one(plane: Array) -> Array:
        return jnp.zeros(256, jnp.int32).at[plane].add(1)

    return jax.vmap(jax.vmap(one))(levels)


def _lookup(planes: Array, tables: Array) -> Array:
    """Replaces each level of the planes [B, C, H, W] by its entry in the tables [B, C, 256]."""
    return jax.vmap(jax.vmap(lambda plane, table: table[plane]))(planes, tables)


def _cut_out(planes: Array, centre: Array, part: Array) -> Array:
    """Draws a grey square around each centre, clipped at the image's edge (DeVries & Taylor 2017).

    Its side is the fraction `part` [B] of the image's shorter side. The public code draws it one
    pixel wider, since Pillow's rectangles contain their end, and moves it inside where it would
    cross the upper or left edge.
    """
    height, width = planes.shape[-2:]
    side = jnp.round(part * min(height, width)).astype(jnp.int32)[:, None]
    inside = []
    for axis, size in enumerate((height, width)):
        start = (centre[:, axis, None] * size).astype(jnp.int32) - side // 2
        index = jnp.arange(size)
        inside.append((index >= start) & (index < start + side))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    channels = planes.shape[1]
    color = COLOR if channels == len(COLOR) else (round(sum(COLOR) / len(COLOR)),) * channels
    return jnp.where(square, jnp.asarray(color)[None, :, None, None], planes)
