"""Names of networks, and how a network is made from its name and options.

To add a family, put one file with a call of `register` into `distill_jax/models/vision/`, which
imports every file in it, or call `register` from anywhere. A constructor is called as

    constructor(*fixed, input_shape, num_classes, dtype=..., rngs=..., **options)

Its options are its keyword-only parameters that have a default: the signature is the only place
that gives an option's name, type and default. What a name fixes (a depth, say) comes first:
`register("resnet8", ResNet, 8, widths)`.

A constructor with the attribute `batch_norm = True` has the three options of
`batch_norm.BATCH_NORM` too. They are set on the network that it returns, so it need not know them.

Left out on purpose: options without a default, and options of more than one type.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from distill_jax.errors import UsageError, unknown
from distill_jax.models.batch_norm import BATCH_NORM, set_batch_norm

_constructors: dict[str, tuple[Callable[..., nnx.Module], tuple[Any, ...]]] = {}


def register(name: str, constructor: Callable[..., nnx.Module], *fixed: Any) -> None:
    """Makes a network available as `create(name)`. A name can be taken once.

    Args:
      name: what a config calls the network, such as "resnet20".
      constructor: a class or function; see the docstring of this module.
      *fixed: the first arguments of the constructor, which the name implies.

    Raises:
      ValueError: the name is taken.
    """
    if name in _constructors:
        raise ValueError(f"a model named {name!r} is registered already")
    _constructors[name] = (constructor, fixed)


def names() -> tuple[str, ...]:
    """Every known name, sorted."""
    return tuple(sorted(_constructors))


def options(name: str) -> dict[str, Any]:
    """The options of a network and their defaults.

    Raises:
      UsageError: the name is unknown.
    """
    if name not in _constructors:
        raise unknown("student.name", name, _constructors, kind="model")
    constructor, _ = _constructors[name]
    # An NNX class itself has the signature of its metaclass, (*args, **kwargs).
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    own = {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }
    return own | (BATCH_NORM if getattr(constructor, "batch_norm", False) else {})


def require(condition: bool, option: str, value: object, expected: str) -> None:
    """For constructors: refuses a value of an option in one line.

    Raises:
      UsageError: `condition` is false.
    """
    if not condition:
        raise UsageError(f"student.{option}={value!r}: expected {expected}")


def _typed(option: str, value: object, default: object) -> Any:
    """`value` as the type of `default`, or a UsageError. A bool is no number, a list is a tuple."""
    if isinstance(default, tuple):
        item = type(default[0]) if default else int
        expected = f"a list of {item.__name__}, such as {default or (0, 2)!r}"
        if isinstance(value, list | tuple) and all(type(part) is item for part in value):
            return tuple(value)
    elif isinstance(default, float):
        expected = f"a finite number, such as {default!r}"
        plain = type(value) in (int, float)  # neither a bool nor a NumPy number
        if plain and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    else:
        expected = f"{type(default).__name__}, such as {default!r}"
        if type(value) is type(default):
            return value
    raise UsageError(f"student.{option}={value!r}: expected {expected}")


#: The largest number that an option of a network may have, and the most numbers: what a file says
#: beyond them is damage, and would take longer to describe than to train.
MOST_SIZE = 2**20
MOST_REPEATS = 4096


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options of a network, each as the type of its default.

    Raises:
      UsageError: an unknown name, or an option that is unknown or of another type.
    """
    typed = typed_options(name, options(name), given)
    for option, value in typed.items():
        numbers = value if isinstance(value, tuple) else (value,)
        sizes = [number for number in numbers if type(number) is int]
        require(len(numbers) <= MOST_REPEATS, option, value, f"at most {MOST_REPEATS} numbers")
        require(max(sizes, default=0) <= MOST_SIZE, option, value, f"at most {MOST_SIZE}")
    return typed


def typed_options(
    name: str, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The given options of `name`, each as the type of its default; errors as `check_options`."""
    for option in given:
        if option not in defaults:
            near = difflib.get_close_matches(option, defaults, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(
                f"student.{option}={given[option]!r}: unknown option of {name}; "
                f"{hint}known: {', '.join(sorted(defaults)) or 'none'}"
            )
    return {option: _typed(option, value, defaults[option]) for option, value in given.items()}


def _constructor(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    dtype: DTypeLike,
    given: dict[str, Any],
) -> Callable[[nnx.Rngs], nnx.Module]:
    """The network as a function of its random keys, with every other argument checked."""
    chosen = check_options(name, given)
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
        raise UsageError(f"input_shape={shape!r}: expected three positive ints (H, W, C)")
    if type(num_classes) is not int or num_classes < 1:
        raise UsageError(f"num_classes={num_classes!r}: expected a positive int")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UsageError(f"dtype={dtype!r}: expected a floating dtype, such as 'bfloat16'")
    # np.dtype, not the scalar type: both spellings must give the same graph definition.
    compute = jnp.dtype(dtype)
    constructor, fixed = _constructors[name]
    norm = {}
    if getattr(constructor, "batch_norm", False):
        norm = {key: chosen.pop(key, default) for key, default in BATCH_NORM.items()}
        kept, epsilon = norm["bn_momentum"], norm["bn_epsilon"]
        require(0 <= kept <= 1, "bn_momentum", kept, "the part that is kept, in [0, 1]")
        require(epsilon > 0, "bn_epsilon", epsilon, "a number above 0")

    def make(rngs: nnx.Rngs) -> nnx.Module:
        module = constructor(*fixed, shape, num_classes, dtype=compute, rngs=rngs, **chosen)
        if norm:
            set_batch_norm(module, **norm)
        return module

    return make


def build(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    **options: Any,
) -> nnx.Module:
    """A network as a part of another one, whose random keys it draws from.

    Raises:
      UsageError: as `create`.
    """
    return _constructor(name, input_shape, num_classes, dtype, options)(rngs)


def create(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    seed: int | jax.Array = 0,
    dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> nnx.Module:
    """A network with random parameters.

    The parameters depend on the arguments alone: not on JAX's default random generator, on the
    backend, or on whether the call is inside a `jit`.

    Args:
      name: one of `names()`.
      input_shape: (H, W, C) of one image.
      num_classes: K, the number of logits.
      seed: of the parameters; may be traced.
      dtype: in which the network computes. Parameters, batch statistics and logits are always
        float32.
      **options: of this network, see `options(name)`.

    Returns:
      A module to call as `module(images, train=False, key=None) -> Outputs`.

    Raises:
      UsageError: an unknown name, or an option that is unknown, of another type or out of range.
    """
    constructor = _constructor(name, input_shape, num_classes, dtype, options)
    return constructor(nnx.Rngs(params=jax.random.key(seed, impl="threefry2x32")))


def abstract(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> nnx.Module:
    """The network of `create`, with shapes in place of arrays: quick, and no memory.

    `split(abstract(...))` gives the graph definition of `create(...)`, to apply to parameters from
    elsewhere, such as a file.
    """
    constructor = _constructor(name, input_shape, num_classes, dtype, options)
    return nnx.eval_shape(lambda: constructor(nnx.Rngs(params=jax.random.key(0))))
