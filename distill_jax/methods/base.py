"""What every method is, and the table of their names.

A method is a frozen dataclass whose fields are its options in a config (`method.<field>`). It makes
its arrays from the shapes of both networks, and gives one value an example. Several add up:
`create("crd+soft_target")` (see `combined.py`).
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from distill_jax.errors import UsageError, unknown
from distill_jax.losses.vocab import VocabDivergence
from distill_jax.models import Flat, Outputs, Spec

Arrays = dict[str, jax.Array]
Result = jax.Array | tuple[jax.Array, Arrays]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A student and a teacher before training: all that a method's arrays are made from.

    Attributes:
      student: the student's outputs as `jax.ShapeDtypeStruct`s, [1, ...].
      teacher: the teacher's, likewise; None where there is none.
      student_spec: what the student is.
      student_params: the student's initial parameters.
      teacher_params: the teacher's parameters; {} where its answers are stored.
      labels: the class of every example of the training split, int [N], by id.
    """

    student: Outputs
    teacher: Outputs | None
    student_spec: Spec
    student_params: Flat
    teacher_params: Flat
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method may read in a step, beside the outputs of the two networks.

    Attributes:
      labels: class indices [B].
      targets: probabilities of the classes [B, K], one-hot but where views are mixed.
      ids: positions of the examples in the training split [B].
      images: the view that both networks saw, float32 [B, H, W, C] in [0, 1].
      adapters: the arrays that `Method.adapters` made, as trained so far.
      memory: the arrays that `Method.memory` made, as the last step left them.
      teacher_params: the first teacher's parameters; {} where its answers are stored.
      temperature: scalar > 0.
      epoch: epochs done in this stage, a float32 scalar.
      key: random key of this step.
      spec: the student's.
      strong: (student, teacher) outputs on the strongly augmented view, where the method asked.
    """

    labels: jax.Array
    targets: jax.Array
    ids: jax.Array
    images: jax.Array
    adapters: Arrays
    memory: Arrays
    teacher_params: Flat
    temperature: jax.Array
    epoch: jax.Array
    key: jax.Array
    spec: Spec
    strong: tuple[Outputs, Outputs] | None = None


def everything(name: str) -> bool:
    """The default of `Stage.trains`: all parameters are trained."""
    del name
    return True


class Stage(NamedTuple):
    """A stretch of the training with one loss; the last one is the training itself.

    The optimizer and the learning rate begin anew with each stage.

    Attributes:
      values: (student, teacher, context) -> [B], or ([B], memory) where the method keeps memory;
        None for the labels alone.
      epochs: how long an earlier stage lasts; the last one lasts as the config says.
      hard: whether the cross-entropy counts, by the config's `method.hard_weight`.
      trains: whether a parameter is trained, by its name: "student/..." or "adapters/...".
      learning_rate: constant in an earlier stage; 0 for the config's.
    """

    values: Callable[[Outputs, Outputs, Context], Result] | None
    epochs: float = 0.0
    hard: bool = True
    trains: Callable[[str], bool] = everything
    learning_rate: float = 0.0


class Method:
    """A loss between a student and a teacher; subclasses override what they need.

    Attributes:
      needs_teacher: False for training on the labels alone, or with peers.
      published_weight: the default of `method.soft_weight`, as in the literature's tables.
      only: "images" for a method of the outputs of vision models, "text" for one of the hidden
        states of decoders (`states.OnStates`), None for one that trains both.
      strong_view: whether each step shows a second, strongly augmented view of the images; what
        both networks answer to it is in `Context.strong`, and its cross-entropy counts too.
    """

    needs_teacher = True
    published_weight = 1.0
    only: Literal["images", "text"] | None = "images"
    strong_view = False

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        """Trainable arrays beside the student, flat; {} for none.

        Raises:
          UsageError: when this pair cannot be matched, with the reason.
        """
        del pair, key
        return {}

    def memory(self, pair: Pair, key: jax.Array) -> Arrays:
        """Arrays that each step may replace, flat; not trained, in every checkpoint."""
        del pair, key
        return {}

    def student_params(self, pair: Pair) -> Flat:
        """The student's parameters before the first step."""
        return pair.student_params

    def hard_logits(self, student: Outputs) -> jax.Array:
        """The logits that the cross-entropy reads, [B, K]."""
        return student.logits

    def vocab_divergence(self) -> VocabDivergence | None:
        """What the method minimises at each token of a text; None if it is no such divergence.

        Raises:
          UsageError: an option has no meaning for text.
        """
        return None

    def stages(self) -> tuple[Stage, ...]:
        """What is trained, one after the other."""
        return (Stage(self),)

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Result:
        """One value an example, [B], float32, to be averaged over the global batch.

        Args:
          student: the student's outputs on the view, [B, ...].
          teacher: the teacher's outputs on the same view, no gradient; None without a teacher.
          context: all else.

        Returns:
          [B], or ([B], memory) for a method that keeps memory.
        """
        raise NotImplementedError


_METHODS: dict[str, Callable[..., Method]] = {}


def register(name: str, make: Callable[..., Method]) -> None:
    """Adds a method under `name`; its keyword arguments become the options of a config.

    Raises:
      ValueError: the name is taken, or holds a character that a sum of methods needs.
      TypeError: a class that is no `Method`.
    """
    if inspect.isclass(make) and not issubclass(make, Method):
        raise TypeError(f"{make.__name__}: expected a subclass of distill_jax.methods.Method")
    if name in _METHODS:
        raise ValueError(f"a method named {name!r} is registered already")
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no name for a method: expected letters, digits and _")
    _METHODS[name] = make


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(_METHODS)


def names_for_text() -> tuple[str, ...]:
    """The names of the methods that train on text."""
    return tuple(name for name, make in _METHODS.items() if _only(make) != "images")


def _only(make: Callable[..., Method]) -> str | None:
    """`Method.only` of what a maker makes; a function is taken to make a method of images."""
    return getattr(make, "only", "images")


def find(name: str) -> Callable[..., Method]:
    """The maker of a single method.

    Raises:
      UsageError: for an unknown name.
    """
    if name not in _METHODS:
        raise unknown("method.name", name, _METHODS, "method")
    return _METHODS[name]


def own_options(name: str) -> dict[str, Any]:
    """The options of a single method with their defaults."""
    signature = inspect.signature(find(name))
    return {option: parameter.default for option, parameter in signature.parameters.items()}


def make(name: str, given: Mapping[str, Any]) -> Method:
    """A single method with its options; UsageError for an unknown one."""
    known = own_options(name)
    for option, value in given.items():
        if option not in known:
            raise unknown(f"method.{option}", value, known, f"option of {name!r}")
    return find(name)(**given)


def number_option(method: str, option: str, value: Any, low: float, high: float) -> None:
    """UsageError unless `value` is a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(
            f"method.{option}={value!r}: {method} expects a number in [{low:g}, {high:g}]"
        )


def integer_option(method: str, option: str, value: Any, low: int) -> None:
    """UsageError unless `value` is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UsageError(f"method.{option}={value!r}: {method} expects an integer >= {low}")


def choice_option(method: str, option: str, value: Any, choices: tuple) -> None:
    """UsageError unless `value` is one of the choices."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise UsageError(f"method.{option}={value!r}: {method} expects one of {listed}")
