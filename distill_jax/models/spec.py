"""What is needed besides the weights to use a network again: its name, options and input."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from distill_jax.errors import UsageError


def _positive(value: object) -> bool:
    return type(value) is int and value > 0


def _finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        return False
    return math.isfinite(value)


def unit_problem(field: str, values: Sequence[float]) -> str:
    """What an error says was expected of a "mean" or "std" of pixels; "" where it can be one.

    The mean of numbers in [0, 1] lies in [0, 1], and no standard deviation of them is above 1.
    """
    low, high = (0.0 if field == "mean" else -math.inf), 1.0
    if all(low <= value <= high for value in values):
        return ""
    scaled = tuple(round(value / 255, 4) for value in values)
    hint = f"; divided by 255 they are {scaled}" if max(values) > 1 else ""
    return (
        f"numbers for pixels in [0, 1], so none {'outside [0, 1]' if low == 0 else 'above 1'}{hint}"
    )


@dataclasses.dataclass(frozen=True)
class Spec:
    """A network and what it expects of an image. Lists become tuples, so that specs compare equal.

    Attributes:
      name: one of `distill_jax.models.names()`.
      options: those given to `create`.
      input_shape: (H, W, C).
      num_classes: K.
      mean: per channel, in units where pixels lie in [0, 1].
      std: per channel, positive, in the same units.
      class_names: one a class; () where they are unknown. No part of the network, and so neither of
        its fingerprint nor of a comparison.

    Raises:
      UsageError: a field is not of that kind.
    """

    name: str
    options: dict[str, Any]
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self):
        self._check(isinstance(self.name, str), "name", "a string")
        self._check(isinstance(self.options, Mapping), "options", "a mapping")
        shape = self.input_shape
        three = isinstance(shape, list | tuple) and len(shape) == 3 and all(map(_positive, shape))
        self._check(three, "input_shape", "three positive ints (H, W, C)")
        self._check(_positive(self.num_classes), "num_classes", "a positive int")
        for field in ("mean", "std"):
            values = getattr(self, field)
            fits = isinstance(values, list | tuple) and len(values) == shape[-1]
            expected = f"{shape[-1]} finite numbers, one a channel"
            self._check(fits and all(map(_finite, values)), field, expected)
        self._check(all(value > 0 for value in self.std), "std", "numbers above 0")
        for field in ("mean", "std"):
            if fault := unit_problem(field, getattr(self, field)):
                self._check(False, field, fault)
        names = self.class_names
        texts = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        expected = f"no names, or {self.num_classes} texts, one a class"
        self._check(texts and len(names) in (0, self.num_classes), "class_names", expected)

        options = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in sorted(self.options.items())
        }
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "input_shape", tuple(shape))
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        object.__setattr__(self, "class_names", tuple(names))

    def _check(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            raise UsageError(f"spec.{field}={getattr(self, field)!r}: expected {expected}")

    def to_json(self) -> dict[str, Any]:
        """The fields of the network, without class names, as JSON holds them."""
        fields = dataclasses.asdict(self)
        del fields["class_names"]
        return json.loads(json.dumps(fields))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], class_names: Sequence[str] = ()) -> "Spec":
        """The inverse of `to_json`, with class names that were kept elsewhere.

        Raises:
          UsageError: a field is missing, unknown or not of its kind.
        """
        known = [field.name for field in dataclasses.fields(cls) if field.compare]
        if not isinstance(fields, Mapping) or sorted(fields) != sorted(known):
            arrived = ", ".join(sorted(fields)) if isinstance(fields, Mapping) else repr(fields)
            raise UsageError(f"spec: expected the fields {', '.join(known)}; got {arrived}")
        return cls(**fields, class_names=tuple(class_names))


def normalise(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """(images - mean) / std, channel by channel.

    Args:
      images: float [..., C] in [0, 1].
      mean: C numbers in the same units.
      std: C positive numbers in the same units.

    Returns:
      float32 [..., C].
    """
    images = jnp.asarray(images, jnp.float32)

    def by_channel(numbers: tuple[float, ...]) -> Array:
        return jnp.expand_dims(jnp.asarray(numbers, jnp.float32), range(images.ndim - 1))

    return (images - by_channel(mean)) / by_channel(std)
