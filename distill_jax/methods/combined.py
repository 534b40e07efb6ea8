"""Methods by name, single or as a sum: `create("crd+soft_target")`.

In a sum each method keeps its own arrays, and its options stand under its name together with its
weight: `method.crd.weight`, `method.crd.negatives`, `method.soft_target.weight`. The config's
`method.soft_weight` multiplies the sum. Earlier stages of the terms run first, one after another;
then all terms are trained together.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from distill_jax.errors import UsageError, unknown
from distill_jax.methods import base
from distill_jax.methods.base import Arrays, Context, Method, Pair, Result, Stage, add_up
from distill_jax.models import Flat, Outputs


def _terms(name: str) -> list[str]:
    terms = name.split("+")
    for term in terms:
        base.find(term)
    repeated = next((term for term in terms if terms.count(term) > 1), None)
    if repeated:
        raise UsageError(f"method.name={name!r}: {repeated} stands there twice; expected it once")
    return terms


def published_weight(name: str) -> float:
    """The default of `method.soft_weight`: the published one of a method, 1 for a sum."""
    terms = _terms(name)
    return _weight_of(terms[0]) if len(terms) == 1 else 1.0


def _weight_of(term: str) -> float:
    return float(getattr(base.find(term), "published_weight", 1.0))


def options(name: str) -> dict[str, Any]:
    """The options of a method, or of a sum, with their defaults; "crd.weight" for the latter."""
    terms = _terms(name)
    if len(terms) == 1:
        return base.own_options(name)
    found: dict[str, Any] = {}
    for term in terms:
        own = {"weight": _weight_of(term), **base.own_options(term)}
        found |= {f"{term}.{option}": default for option, default in own.items()}
    return found


def create(name: str, **given: Any) -> Method:
    """The method `name`, or the sum of several joined by "+", with its options.

    Raises:
      UsageError: for an unknown name, an unknown option, or a value out of range.
    """
    terms = _terms(name)
    if len(terms) == 1:
        return base.make(name, given)
    known = options(name)
    for option, value in given.items():
        if option not in known:
            raise unknown(f"method.{option}", value, known, f"option of {name!r}")
    parts = []
    for term in terms:
        own = {
            option.removeprefix(f"{term}."): value
            for option, value in given.items()
            if option.startswith(f"{term}.")
        }
        weight = own.pop("weight", _weight_of(term))
        base.number_option(term, f"{term}.weight", weight, 0.0, float("inf"))
        parts.append(Term(term, float(weight), base.make(term, own)))
    return Sum(tuple(parts))


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options, the given ones and defaults, as the method accepts them; else UsageError."""
    method = create(name, **given)
    if not isinstance(method, Sum):
        return dataclasses.asdict(method)
    checked = {}
    for term in method.terms:
        checked[f"{term.name}.weight"] = term.weight
        own = dataclasses.asdict(term.method)
        checked |= {f"{term.name}.{option}": value for option, value in own.items()}
    return checked


@dataclasses.dataclass(frozen=True)
class Term:
    """One method of a sum. Its arrays are named "<name>/..." among those of the sum.

    Attributes:
      name: of the method.
      weight: its factor in the sum.
      method: the method.
    """

    name: str
    weight: float
    method: Method

    def own(self, arrays: Arrays) -> Arrays:
        """The arrays of this term among those of the sum, under their own names."""
        prefix = f"{self.name}/"
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    def named(self, arrays: Arrays) -> Arrays:
        """The arrays of this term under their names in the sum."""
        return {f"{self.name}/{key}": value for key, value in arrays.items()}

    def context(self, context: Context) -> Context:
        """The context with the arrays of this term."""
        return dataclasses.replace(
            context, adapters=self.own(context.adapters), memory=self.own(context.memory)
        )

    def trains(self, stage: Stage, name: str, otherwise: bool) -> bool:
        """Whether the stage trains a parameter; `otherwise` for adapters of other terms."""
        if name.startswith("student/"):
            return stage.trains(name)
        prefix = f"adapters/{self.name}/"
        if name.startswith(prefix):
            return stage.trains("adapters/" + name.removeprefix(prefix))
        return otherwise


@dataclasses.dataclass(frozen=True)
class Sum(Method):
    """Several methods: the weighted sum of their values."""

    terms: tuple[Term, ...]

    def __post_init__(self):
        methods = [term.method for term in self.terms]
        kinds = {method.only for method in methods}
        needs = {
            "needs_teacher": any(method.needs_teacher for method in methods),
            "only": "text" if "text" in kinds else "images" if "images" in kinds else None,
            "strong_view": any(method.strong_view for method in methods),
        }
        for name, value in needs.items():  # of a class otherwise, here of its terms
            object.__setattr__(self, name, value)

    def _arrays(self, make: Callable[[Method, jax.Array], Arrays], key: jax.Array) -> Arrays:
        keys = jax.random.split(key, len(self.terms))
        found: Arrays = {}
        for term, own in zip(self.terms, keys, strict=True):
            found |= term.named(make(term.method, own))
        return found

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        return self._arrays(lambda method, own: method.adapters(pair, own), key)

    def memory(self, pair: Pair, key: jax.Array) -> Arrays:
        return self._arrays(lambda method, own: method.memory(pair, own), key)

    def student_params(self, pair: Pair) -> Flat:
        for term in self.terms:
            params = term.method.student_params(pair)
            pair = dataclasses.replace(pair, student_params=params)
        return pair.student_params

    def hard_logits(self, student: Outputs) -> jax.Array:
        for term in self.terms:
            logits = term.method.hard_logits(student)
            if logits is not student.logits:
                return logits
        return student.logits

    def stages(self) -> tuple[Stage, ...]:
        earlier, last = [], []
        for term in self.terms:
            *first, main = term.method.stages()
            earlier += [self._alone(term, stage) for stage in first]
            last.append((term, main))
        return (*earlier, self._together(last))

    @staticmethod
    def _alone(term: Term, stage: Stage) -> Stage:
        """An earlier stage of one term."""
        own_values = stage.values
        assert own_values is not None

        def values(student: Outputs, teacher: Outputs, context: Context) -> Result:
            found = own_values(student, teacher, term.context(context))
            if isinstance(found, tuple):
                return found[0], {**context.memory, **term.named(found[1])}
            return found

        return stage._replace(
            values=values, trains=lambda name: term.trains(stage, name, otherwise=False)
        )

    @staticmethod
    def _together(parts: list[tuple[Term, Stage]]) -> Stage:
        """The last stage: the weighted sum over the terms that have a loss of their own."""
        counted = [(term, stage.values) for term, stage in parts if stage.values is not None]

        def values(student: Outputs, teacher: Outputs, context: Context) -> Result:
            weighted, memory = [], dict(context.memory)
            for term, own_values in counted:
                found = own_values(student, teacher, term.context(context))
                if isinstance(found, tuple):
                    found, own = found
                    memory |= term.named(own)
                weighted.append(term.weight * found)
            total = add_up(weighted)
            return (total, memory) if memory else total

        return Stage(
            values if counted else None,
            trains=lambda name: all(term.trains(stage, name, True) for term, stage in parts),
        )


def terms(name: str, given: Mapping[str, Any]) -> tuple[Term, ...]:
    """The methods that `name` adds up, with their options; a single method has weight 1.

    Raises:
      UsageError: as `create`.
    """
    method = create(name, **given)
    return method.terms if isinstance(method, Sum) else (Term(name, 1.0, method),)
