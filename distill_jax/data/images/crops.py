"""The random resized crop: which part of an image a training step shows, chosen on the host.

Szegedy et al. 2015, "Going deeper with convolutions", section 6, as torchvision's RandomResizedCrop
has it. Images of a streamed set have sizes of their own until they are resized, so the cut is made
where they are decoded (`sources`), and everything after it on the device (augment.py). A cut is a
pure function of the seed and the position in the training order, in raw Philox words as in
order.py: neither workers nor processes nor a restart change it.
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
Cut = Callable[[int, int], Box]  # of the height and the width of the image as it is stored


@dataclasses.dataclass(frozen=True)
class Crops:
    """The cuts of one training.

    Attributes:
      least_area: of a cut, as a part of the image's area, in (0, 1]; published: 0.08.
      seed: any integer; taken modulo 2**64.
    """

    least_area: float
    seed: int

    @classmethod
    def of(cls, least_area: float, seed: int) -> "Crops | None":
        """The cuts of `data.augment.resized_crop`; None where that is 0."""
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
        # The lowest word counts the numbers of one position.
        counter = np.array([0, position, 0, 0], np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(TRIES * 4)
        return ((words >> np.uint64(11)) * 2.0**-53).reshape(TRIES, 4)


def box(uniforms: np.ndarray, least_area: float, height: int, width: int) -> Box:
    """Where to cut: the first try that fits into the image, else as much of its middle as may be.

    The area is uniform in [least_area, 1] of the image's, the ratio of width to height log-uniform
    in RATIOS, the place uniform among the whole pixels. A middle that is too wide or too high for
    RATIOS is cut to the nearest of them.

    Args:
      uniforms: float64 [TRIES, 4] in [0, 1): of each try the area, the ratio, the top, the left.
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
