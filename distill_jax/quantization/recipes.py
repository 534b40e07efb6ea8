"""Recipes: which parameters are quantized, and on which grid, by the path of the parameter.

    recipe = parse("int4", "--recipe")
    recipe = parse(r".*/attention/.*=int8;.*/mlp/.*=int4-g32", "--recipe")
    chosen = recipe.choose(kernels, by_default, "--recipe")     # flat name -> Grid

A name of `RECIPES` stands for one grid for all kernels that a model has quantized by default: the
matrices of a decoder's layers, and an image network's kernels but those of its first convolution
and its classifier. A text of rules is applied to every kernel that can be quantized; of the rules
that match a path in full the first counts, and a kernel that none matches stays as it is.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping

from distill_jax.errors import UsageError, unknown
from distill_jax.quantization import grids
from distill_jax.quantization.grids import GRIDS, Grid

#: Recipes of one grid: every grid's name, and int4 for its most usual group.
RECIPES: dict[str, Grid] = {"int4": grids.INT4_G128} | GRIDS
# What a rule names to leave a parameter as it is.
_NONE = "none"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A regular expression that a parameter's whole flat name matches, and its grid or None."""

    pattern: str
    grid: Grid | None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Rules in order; the first that matches counts.

    Attributes:
      text: as the user wrote it; `parse` reads it back.
      rules: in order.
      by_name: whether it is a name of `RECIPES`, which leaves out what a model does not quantize
        by default.
    """

    text: str
    rules: tuple[Rule, ...]
    by_name: bool

    def choose(
        self,
        kernels: Mapping[str, tuple[int, ...]],
        by_default: Collection[str],
        key: str,
    ) -> dict[str, Grid]:
        """The grid of every kernel that is quantized, by its flat name.

        Args:
          kernels: the shapes [..., inputs, outputs] of all that can be quantized, by flat names.
          by_default: those of them that a recipe's name means.
          key: the config key or the flag that errors name.

        Raises:
          UsageError: a rule matches no kernel, or a group does not divide a kernel's inputs.
        """
        names = [name for name in kernels if not self.by_name or name in by_default]
        chosen: dict[str, Grid] = {}
        seen: set[str] = set()
        for rule in self.rules:
            found = [name for name in names if re.fullmatch(rule.pattern, name)]
            if not found:
                raise UsageError(
                    f"{key}={self.text!r}: {rule.pattern!r} matches no parameter that can be "
                    f"quantized; expected a pattern of {_listed(kernels)}"
                )
            if rule.grid is not None:
                chosen |= {name: rule.grid for name in found if name not in seen}
            seen |= set(found)
        if not chosen:
            raise UsageError(f"{key}={self.text!r}: quantizes nothing; expected a rule with a grid")
        for name, grid in chosen.items():
            inputs = kernels[name][-2]
            if not grid.divides(inputs):
                raise UsageError(
                    f"{key}={self.text!r}: groups of {grid.group} do not divide the {inputs} "
                    f"inputs of {name}; expected {_alternatives(grid, inputs)}"
                )
        return {name: chosen[name] for name in kernels if name in chosen}


def parse(text: str, key: str) -> Recipe:
    """The recipe that a text names.

    Args:
      text: a name of `RECIPES`, or rules "PATTERN=GRID;PATTERN=GRID" with a name of `RECIPES` or
        "none" for GRID.
      key: the config key or the flag that errors name.

    Raises:
      UsageError: an unknown name, or a pattern that is no regular expression.
    """
    if "=" not in text:
        if text not in RECIPES:
            raise unknown(key, text, RECIPES, "recipe")
        return Recipe(text, (Rule(".*", RECIPES[text]),), True)
    rules = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        pattern, _, name = (side.strip() for side in part.rpartition("="))
        if name != _NONE and name not in RECIPES:
            raise unknown(key, name, [*RECIPES, _NONE], "grid")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(
                f"{key}={text!r}: {pattern!r} is no regular expression ({error}); expected "
                "PATTERN=GRID;PATTERN=GRID"
            ) from error
        rules.append(Rule(pattern, None if name == _NONE else RECIPES[name]))
    return Recipe(text, tuple(rules), False)


def _listed(kernels: Mapping[str, tuple[int, ...]]) -> str:
    shown = list(kernels)[:20]
    more = f" and {len(kernels) - len(shown)} more" if len(kernels) > len(shown) else ""
    return ", ".join(shown) + more if shown else "none: the model has no such kernels"


def _alternatives(grid: Grid, inputs: int) -> str:
    """The names of grids with as many bits whose groups do divide the inputs."""
    same = (name for name, other in RECIPES.items() if other.bits == grid.bits)
    return ", ".join(name for name in same if RECIPES[name].divides(inputs)) or "more bits"
