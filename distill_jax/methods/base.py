"""What every method is, and the table of their names."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from distill_jax.errors import UsageError, unknown
from distill_jax.models import Outputs


class Method(Protocol):
    """A loss between a student and a teacher.

    A method is a frozen dataclass whose fields are its options in a config (`method.<field>`).

    Attributes:
      needs_teacher: False only for training on the labels alone.
    """

    needs_teacher: bool

    def adapters(self, student: Outputs, teacher: Outputs, key: jax.Array) -> dict[str, jax.Array]:
        """Trainable arrays beside the student, from the shapes of both outputs; {} for none.

        Args:
          student: the student's outputs as `jax.ShapeDtypeStruct`s, [B, ...].
          teacher: the teacher's, likewise.
          key: PRNG key of their initial values.

        Raises:
          UsageError: when this pair cannot be matched, with the reason.
        """

    def __call__(
        self,
        student: Outputs,
        teacher: Outputs,
        labels: jax.Array,
        adapters: Mapping[str, jax.Array],
        temperature: jax.Array,
    ) -> jax.Array:
        """One value an example, [B], float32, to be averaged over the global batch.

        Args:
          student: the student's outputs on the view, [B, ...].
          teacher: the teacher's outputs on the same view, no gradient.
          labels: class indices [B].
          adapters: the arrays that `adapters` made, as they are now.
          temperature: scalar > 0.
        """


_METHODS: dict[str, Callable[..., Method]] = {}


def register(name: str, make: Callable[..., Method]) -> None:
    """Adds a method under `name`; its keyword arguments become the options of a config."""
    assert name not in _METHODS, name
    _METHODS[name] = make


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(_METHODS)


def options(name: str) -> dict[str, Any]:
    """The options of a method with their defaults."""
    signature = inspect.signature(_find(name))
    return {option: parameter.default for option, parameter in signature.parameters.items()}


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options with every value checked by the method; UsageError when one does not fit."""
    return dataclasses.asdict(create(name, **given))


def create(name: str, **given: Any) -> Method:
    """The method `name` with its options.

    Raises:
      UsageError: for an unknown name, an unknown option, or a value out of range.
    """
    make = _find(name)
    known = options(name)
    for option, value in given.items():
        if option not in known:
            raise unknown(f"method.{option}", value, known, f"option of {name!r}")
    return make(**given)


def _find(name: str) -> Callable[..., Method]:
    if name not in _METHODS:
        raise unknown("method.name", name, _METHODS, "method")
    return _METHODS[name]


def number_option(method: str, option: str, value: Any, low: float, high: float) -> None:
    """UsageError unless `value` is a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(
            f"method.{option}={value!r}: {method} expects a number in [{low:g}, {high:g}]"
        )
