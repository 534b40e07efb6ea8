"""Values that change during training: loss weights and the temperature.

In a config, a schedule is a number, `linear(start, end)` or `cosine(start, end)`. Two more
arguments give the fractions of the training at which it begins and finishes: `cosine(8, 1, 0.1,
0.6)` holds 8 for the first tenth, falls to 1 at six tenths and stays there. Schedules of the
learning rate are optax's, in `optimizers.py`.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp

_CALL = re.compile(r"^\s*(linear|cosine)\s*\(([^()]*)\)\s*$")
EXPECTED = (
    "a number, or linear(start, end[, begin, finish]), or cosine(start, end[, begin, finish])"
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A value that goes from `start` to `end` while the progress goes from `begin` to `finish`.

    Attributes:
      kind: "constant", "linear" or "cosine".
      start: the value up to `begin`.
      end: the value from `finish` on.
      begin: fraction of the training in [0, 1).
      finish: fraction of the training in (begin, 1].
    """

    kind: str
    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0

    @property
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest value of the schedule."""
        return min(self.start, self.end), max(self.start, self.end)

    def at(self, progress: jax.Array | float) -> jax.Array:
        """The value at `progress`, a fraction of the training in [0, 1]; traceable; float32."""
        if self.kind == "constant":
            return jnp.float32(self.start)
        fraction = jnp.clip((progress - self.begin) / (self.finish - self.begin), 0.0, 1.0)
        if self.kind == "cosine":
            fraction = 0.5 - 0.5 * jnp.cos(jnp.pi * fraction)
        return jnp.float32(self.start) + jnp.float32(self.end - self.start) * fraction


def parse(value: float | int | str) -> Schedule:
    """The schedule that a config's number or text describes.

    Raises:
      ValueError: `value` is not a schedule; the error's text begins with `EXPECTED`.
    """
    if isinstance(value, str):
        if call := _CALL.match(value):
            return _parse_call(call.group(1), call.group(2))
        try:
            value = float(value)
        except ValueError:
            raise ValueError(EXPECTED) from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(EXPECTED)
    return Schedule("constant", float(value), float(value))


def _parse_call(kind: str, arguments: str) -> Schedule:
    try:
        numbers = [float(part) for part in arguments.split(",")]
    except ValueError:
        raise ValueError(EXPECTED) from None
    if len(numbers) not in (2, 4) or not all(map(math.isfinite, numbers)):
        raise ValueError(EXPECTED)
    schedule = Schedule(kind, *numbers)
    if not 0 <= schedule.begin < schedule.finish <= 1:
        raise ValueError(f"{EXPECTED}, with 0 <= begin < finish <= 1")
    return schedule
