"""Schedules of weights and temperature against their formulas."""

import math

import pytest

from distill_jax.optim import schedules


@pytest.mark.parametrize("value", [3, 3.0, "3", " 3.0 "])
def test_a_number_is_constant(value):
    schedule = schedules.parse(value)
    assert [float(schedule.at(p)) for p in (0.0, 0.4, 1.0)] == [3.0, 3.0, 3.0]


def test_linear_reaches_both_ends():
    schedule = schedules.parse("linear(8, 2)")
    assert [float(schedule.at(p)) for p in (0.0, 0.25, 0.5, 1.0)] == [8.0, 6.5, 5.0, 2.0]


def test_cosine_with_a_window():
    schedule = schedules.parse("cosine(1, 0, 0.2, 0.6)")
    expected = {0.0: 1.0, 0.2: 1.0, 0.3: 0.5 + 0.5 * math.cos(math.pi / 4), 0.4: 0.5, 0.7: 0.0}
    for progress, value in expected.items():
        assert float(schedule.at(progress)) == pytest.approx(value, abs=1e-6)
    assert schedule.extremes == (0.0, 1.0)


@pytest.mark.parametrize(
    "value",
    ["linear(1)", "linear(1, 2, 3)", "sine(1, 2)", "linear(1, 2, 0.5, 0.5)", "cosine(1, 2, 0, 2)",
     "linear(1, nan)", "", "linear(a, b)", True, None, math.inf, [1, 2]],
)  # fmt: skip
def test_anything_else_is_refused(value):
    with pytest.raises(ValueError, match="a number, or linear"):
        schedules.parse(value)
