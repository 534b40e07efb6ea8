"""Recipes: names, rules by path, and what is refused."""

import pytest

from distill_jax.errors import UsageError
from distill_jax.quantization import grids
from distill_jax.quantization.recipes import RECIPES, parse

KERNELS = {
    "runs/0/attention/query/kernel": (2, 64, 64),
    "runs/0/mlp/down/kernel": (2, 96, 64),
    "classifier/kernel": (64, 10),
}
DEFAULT = list(KERNELS)[:2]


def test_a_name_means_the_kernels_of_the_default():
    chosen = parse("int8", "--recipe").choose(KERNELS, DEFAULT, "--recipe")
    assert chosen == dict.fromkeys(DEFAULT, grids.INT8)
    assert RECIPES["int4"] is grids.INT4_G128


def test_the_first_rule_that_matches_counts_and_the_rest_stays():
    recipe = parse(".*query.*=none; .*/mlp/.*=int4-g32; .*kernel=int8", "--recipe")
    assert recipe.choose(KERNELS, DEFAULT, "--recipe") == {
        "runs/0/mlp/down/kernel": grids.INT4_G32,
        "classifier/kernel": grids.INT8,
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("int5", "unknown recipe; did you mean 'int8'?|unknown recipe; did you mean 'int4'"),
        (".*=int5", "unknown grid"),
        ("(=int8", "is no regular expression"),
        (".*embedding.*=int8", "matches no parameter .* runs/0/attention/query/kernel, "),
        (".*=int8;.*embedding.*=int8", "'.*embedding.*' matches no parameter"),
        (".*=none", "quantizes nothing"),
        ("int4", "groups of 128 do not divide the 64 inputs of .*; expected int4-g32"),
        (";", "quantizes nothing|unknown recipe"),
    ],
)
def test_refusals_name_the_key_and_what_was_expected(text, wanted):
    with pytest.raises(UsageError, match=wanted) as error:
        parse(text, "--recipe").choose(KERNELS, DEFAULT, "--recipe")
    assert str(error.value).startswith("--recipe=")
