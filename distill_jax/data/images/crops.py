"""The random resized crop: which part of an image a training step shows, chosen on the host.

Szegedy et al. 2015, "Going deeper with convolutions", section 6, as implemented by torchvision's
RandomResizedCrop. The images of a streamed set differ in size until they are resized, so a source
cuts them when it decodes them, and augment.py does the rest on the device. A cut is a pure function
of the seed and the position in the training order, drawn from raw Philox words as in order.py:
neither workers nor processes nor a restart change it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

import numpy as np

from distill_jax.data.order import CROP_STREAM

RATIOS = (3 / 4, 4 / 3)  # of width to height
TRIES = 10

Box = tuple[int, int, int, int]  # (top, left, height, width)
Cut = Callable[[int, int], Box]  # from the height and the width of the image as it is stored


@dataclasses.dataclass(frozen=True)
class Crops:
    """The cuts of a training run.

    Attributes:
      least_area: of a cut, as a fraction of the image's area, in (0, 1]; published: 0.08.
      seed: any integer; taken modulo 2**64.
    """

    least_area: float
    seed: int

    @classmethod
    def of(cls, least_area: float, seed: int) -> "Crops | None":
        """The cuts of `data.augment.resized_crop`; None when that is 0."""
        return cls(least_area, seed) if least_area else None

    def at(self, positions: Iterable[int]) -> list[Cut]:
        """The cut of the example at each position of the training order."""
        return [
            functools.partial(box, self._uniforms(int(position)), self.least_area)
            for position in positions
        ]

    def _uniforms(self, position: int) -> np.ndarray:
        """Numbers in [0, 1), float64 [TRIES, 4]."""
        key = np.array([self.seed % 2**64, CROP_STREAM], np.uint64)
        # The lowest word counts the numbers drawn at one position.
        counter = np.array([0, position, 0, 0], np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(TRIES * 4)
        return ((words >> np.uint64(11)) * 2.0**-53).reshape(TRIES, 4)


def box(uniforms: np.ndarray, least_area: float, height: int, width: int) -> Box:
    """The first of TRIES boxes that fits into the image, else the largest central box.

    The area is uniform in [least_area, 1] of the image's, the ratio of width to height log-uniform
    in RATIOS, the position uniform in whole pixels. A central box is the whole image, or as much of
    it as has the nearest ratio in RATIOS.

    Args:
      uniforms: float64 [TRIES, 4] in [0, 1): area, ratio, top and left of each try.
      least_area: in (0, 1].
      height, width: of the image, at least 1.

    Returns:
      (top, left, height, width) in pixels, inside the image.
    """
    low, high = RATIOS
    for area_of, ratio_of, top_of, left_of in uniforms.tolist():
        area = height * width * (least_area + (1 - least_area) * area_of)
        ratio = math.exp(math.log(low) + (math.log(high) - math.log(low)) * ratio_of)
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = int(top_of * (height - tall + 1)), int(left_of * (width - wide + 1))
            return top, left, tall, wide
    tall, wide = height, width
    if width < low * height:
        tall = round(width / low)
    elif width > high * height:
        wide = round(height * high)
    return (height - tall) // 2, (width - wide) // 2, tall, wide
