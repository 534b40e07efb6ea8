"""The interface of a method, and the registry of their names.

A method is a frozen dataclass whose fields are its options in a config (`method.<field>`). Before
training it makes its arrays from the shapes of both networks' outputs (`Pair`); in each step it
returns one value per example from the outputs themselves (`Context` has everything else). Several
methods add up: `create("crd+soft_target")`, see `combined.py`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distill_jax.errors import UsageError, unknown
from distill_jax.losses.vocab import VocabDivergence
from distill_jax.models import Flat, Outputs, Spec

Arrays = dict[str, jax.Array]
#: One value per example, to be averaged over the global batch.
Values = Float[Array, " batch"]
#: What a method returns; with the arrays of its memory, as this step leaves them, if it has one.
Result = Values | tuple[Values, Arrays]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A student and a teacher before training: everything that a method's arrays are made from.

    Attributes:
      student: the student's outputs as `jax.ShapeDtypeStruct`s, [1, ...].
      teacher: the teacher's, likewise; None without a teacher.
      student_spec: the student's network and its input.
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

    @property
    def outputs(self) -> tuple[Outputs, Outputs]:
        """(student, teacher), for a method that needs a teacher."""
        assert self.teacher is not None
        return self.student, self.teacher


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method may read in a step, in addition to the outputs of both networks.

    Attributes:
      labels: class indices [B].
      targets: probabilities of the classes [B, K]; one-hot unless views are mixed.
      ids: positions of the examples in the training split [B].
      images: the input of both networks before normalisation, float32 [B, H, W, C] in [0, 1].
      adapters: the arrays that `Method.adapters` made, as trained so far.
      memory: the arrays that `Method.memory` made, as the last step left them.
      teacher_params: the first teacher's parameters; {} where its answers are stored.
      temperature: scalar > 0.
      epoch: epochs done in this stage, a float32 scalar.
      key: random key of this step.
      spec: the student's network and its input.
      strong: (student, teacher) outputs on the strongly augmented view, for a method with
        `strong_view`.
    """

    labels: Int[Array, " batch"]
    targets: Float[Array, "batch classes"]
    ids: Int[Array, " batch"]
    images: Float[Array, "batch height width channels"]
    adapters: Arrays
    memory: Arrays
    teacher_params: Flat
    temperature: Float[Array, ""]
    epoch: Float[Array, ""]
    key: jax.Array
    spec: Spec
    strong: tuple[Outputs, Outputs] | None = None


def trains_all(name: str) -> bool:
    """The default of `Stage.trains`."""
    del name
    return True


class Stage(NamedTuple):
    """A part of a run with one loss. The last stage is the training itself.

    Each stage starts with a new optimizer state and its own learning rate schedule.

    Attributes:
      values: (student, teacher, context) -> [B], or ([B], memory) if the method has memory; None
        for a stage that trains on the labels alone.
      epochs: length of an earlier stage; the config sets the length of the last one.
      hard: whether the cross-entropy is added, times the config's `method.hard_weight`.
      trains: name of a parameter, "student/..." or "adapters/...", -> whether it is trained.
      learning_rate: constant in an earlier stage; 0 for the config's.
    """

    values: Callable[[Outputs, Outputs, Context], Result] | None
    epochs: float = 0.0
    hard: bool = True
    trains: Callable[[str], bool] = trains_all
    learning_rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Method:
    """A loss between a student and a teacher; subclasses override what they need.

    A method may get at features in any way: `outputs.taps["stage2"]`, the functions of `taps.py`, a
    loop. Which taps of the teacher its values depend on is read off its jaxpr.

    Attributes:
      needs_teacher: False for training on the labels alone, or with peers.
      published_weight: the default of `method.soft_weight`, as in the literature's tables.
      only: "images" for a method of the outputs of vision models, "text" for one of the hidden
        states of decoders (`states.OnStates`), None for one that trains both.
      strong_view: whether each step has a second, strongly augmented view of the images; the
        outputs of both networks on it are in `Context.strong`, and its cross-entropy is added too.
    """

    needs_teacher: ClassVar[bool] = True
    published_weight: ClassVar[float] = 1.0
    only: ClassVar[Literal["images", "text"] | None] = "images"
    strong_view: ClassVar[bool] = False

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        """Trainable arrays in addition to the student's, flat; {} for none.

        Raises:
          UsageError: this pair cannot be matched, with the reason.
        """
        del pair, key
        return {}

    def memory(self, pair: Pair, key: jax.Array) -> Arrays:
        """Arrays that each step may replace, flat; not trained, but part of every checkpoint."""
        del pair, key
        return {}

    def student_params(self, pair: Pair) -> Flat:
        """The student's parameters before the first step."""
        return pair.student_params

    def hard_logits(self, student: Outputs) -> Float[Array, "batch classes"]:
        """The logits that the cross-entropy with the labels reads."""
        return student.logits

    def vocab_divergence(self) -> VocabDivergence | None:
        """What the method minimises at each token of a text; None for a method of images alone.

        Raises:
          UsageError: an option has no meaning for text.
        """
        return None

    def stages(self) -> tuple[Stage, ...]:
        """The stages of the training, in order."""
        return (Stage(self),)

    def __call__(self, student: Outputs, teacher: Outputs, context: Context) -> Result:
        """One value per example, float32 [B], which the step averages over the global batch.

        Args:
          student: the student's outputs on the view, [B, ...].
          teacher: the teacher's outputs on the same view, no gradient; None if the run has none,
            which is possible only with `needs_teacher = False`.
          context: everything else.

        Returns:
          [B], or ([B], memory) for a method that has memory.
        """
        raise NotImplementedError


def add_up(terms: Iterable[Float[Array, "*shape"]]) -> Float[Array, "*shape"]:
    """The sum of several arrays of values, per example or per token."""
    total: Array | float = 0.0
    for values in terms:
        total = total + values
    return jnp.asarray(total)


_METHODS: dict[str, Callable[..., Method]] = {}


def register(name: str, make: Callable[..., Method]) -> None:
    """Adds a method under `name`; its keyword arguments become the options of a config.

    Raises:
      ValueError: the name is taken, or is no identifier ("+" joins the names of a sum).
      TypeError: `make` is a class that is not a subclass of `Method`.
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
    """`Method.only` of a class; a registered function makes a method of images."""
    return getattr(make, "only", "images")


def find(name: str) -> Callable[..., Method]:
    """The class, or function, that makes a single method.

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


def choice_option(method: str, option: str, value: Any, choices: tuple[Any, ...]) -> None:
    """UsageError unless `value` is one of the choices."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise UsageError(f"method.{option}={value!r}: {method} expects one of {listed}")
