"""`RopeScaling`: how rotary embeddings are stretched for longer contexts, as plain values."""

import dataclasses
import math

from distill_jax.errors import UsageError


def positive_int(value: object) -> bool:
    """Whether a value is an int above 0."""
    return type(value) is int and value > 0


def positive(value: object) -> bool:
    """Whether a value is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value > 0


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of rotary embeddings are stretched for longer contexts.

    Attributes:
      kind: "linear" divides all of them by `factor`; "llama3" divides those whose wavelength is
        above original_max_positions / low_frequency_factor, leaves those below
        original_max_positions / high_frequency_factor, and blends between. "yarn" (Peng et al.,
        2023, section 3.2) blends between pairs that turn beta_slow and beta_fast times in the
        original context; "longrope" (Ding et al., 2024) divides each by its own factor, of
        `short_factors` in texts up to the original context, else of `long_factors`.
      factor: at least 1; of "longrope" not read.
      low_frequency_factor: of "llama3" alone, like the field below.
      high_frequency_factor: above `low_frequency_factor`.
      original_max_positions: the context length before the stretch, in tokens.
      beta_fast: of "yarn" alone, like the two fields below.
      beta_slow: below `beta_fast`.
      truncate: whether the bounds of the blend are rounded to whole pairs.
      attention_factor: of "yarn" and "longrope": multiplies cosines and sines.
      short_factors: of "longrope", one for each pair of a head.
      long_factors: likewise.
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        def require(condition: bool, field: str, expected: str) -> None:
            if not condition:
                value = getattr(self, field)
                raise UsageError(f"rope_scaling.{field}={value!r:.80}: expected {expected}")

        kinds = ("linear", "llama3", "yarn", "longrope")
        require(self.kind in kinds, "kind", " or ".join(map(repr, kinds)))
        require(positive(self.factor) and self.factor >= 1, "factor", "a number of at least 1")
        low, high = self.low_frequency_factor, self.high_frequency_factor
        require(positive(low), "low_frequency_factor", "a positive number")
        above = f"a number above low_frequency_factor={low!r}"
        require(positive(high) and high > low, "high_frequency_factor", above)
        original = self.original_max_positions
        require(positive_int(original), "original_max_positions", "a positive int")
        require(positive(self.beta_slow), "beta_slow", "a positive number")
        above = f"a number above beta_slow={self.beta_slow!r}"
        require(positive(self.beta_fast) and self.beta_fast > self.beta_slow, "beta_fast", above)
        require(type(self.truncate) is bool, "truncate", "True or False")
        require(positive(self.attention_factor), "attention_factor", "a positive number")
        for field in ("short_factors", "long_factors"):
            given = getattr(self, field)
            numbers = isinstance(given, list | tuple) and all(map(positive, given))
            wanted = self.kind == "longrope"
            expected = "positive numbers, one a pair of a head" if wanted else "none"
            require(numbers and bool(given) == wanted, field, expected)
            object.__setattr__(self, field, tuple(map(float, given)))
        for field in ("factor", "low_frequency_factor", "high_frequency_factor"):
            object.__setattr__(self, field, float(getattr(self, field)))
        for field in ("beta_fast", "beta_slow", "attention_factor"):
            object.__setattr__(self, field, float(getattr(self, field)))
