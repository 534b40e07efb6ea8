"""The shape of the images of a network, where its PyTorch weights or its name determine it."""

import math
import os

from distill_jax.models.files.state_dict import read_chosen

#: Networks that average over all positions: their weights fit images of any size.
_ANY_SIZE = "imagenet_"
#: Networks with an embedding of each patch, whose number and size the weights have.
_PATCHES = "deit_"
_EMBEDDING, _DISTILLATION = "pos_embed", "dist_token"
_PATCH = "patch_embed.proj.weight"


def infer_image_shape(
    path: str | os.PathLike, name: str, classes: int, channels: int, *, part: str = "", key: str
) -> tuple[int, int, int] | None:
    """(H, W, C) of the images on which a network was trained; None where nothing determines it.

    - `deit_*`: by the position embedding and the kernel of the patches, for square images.
    - `imagenet_*` of 1,000 classes: 224, the size of the published weights of ImageNet.
    - every other network that can be imported: 32, as in CIFAR.

    Args:
      path: a file of PyTorch weights.
      name: of the network.
      classes: how many it has.
      channels: of an image.
      part: of a file with several networks, see `choose_arrays`.
      key: what an error calls the path.

    Raises:
      UsageError: the file cannot be read.
    """
    if name.startswith(_PATCHES):
        side = _side_of_patches(path, part, key)
        return (side, side, channels) if side else None
    if name.startswith(_ANY_SIZE):
        return (224, 224, channels) if classes == 1000 else None
    return 32, 32, channels


def _side_of_patches(path: str | os.PathLike, part: str, key: str) -> int | None:
    """The side that all networks of a file agree on, whose names have `part`; None without one."""
    shapes: dict[str, tuple[int, ...]] = {}

    def look(found, read):
        del read
        shapes.update(found)
        return {}

    read_chosen(path, look, key=key)
    sides = set()
    wanted = "" if part == "." else part.removesuffix(".")
    for name, shape in shapes.items():
        prefix = name.removesuffix(_EMBEDDING)
        patch = shapes.get(prefix + _PATCH, ())
        if not name.endswith(_EMBEDDING) or len(shape) != 3 or len(patch) != 4:
            continue
        if wanted in prefix:
            patches = shape[1] - 1 - (prefix + _DISTILLATION in shapes)
            across = math.isqrt(max(patches, 0))
            sides.add(across * patch[-1] if across and across**2 == patches else None)
    return sides.pop() if len(sides) == 1 else None
