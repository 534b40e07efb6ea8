"""Tables: means and deviations worked out by hand, one structure laid out in three ways."""

import math

import pytest

from distill_jax.reports.tables import (
    Column,
    format_value,
    listing,
    lookup,
    markdown,
    mean_and_deviation,
    over_seeds,
    text,
)

ACCURACY = Column("test.accuracy", "Accuracy (%)", "percent")
NLL = Column("test.nll", "NLL", "decimal", 4)


def result(method: str, seed: int, accuracy, nll) -> dict:
    return {"method": method, "seed": seed, "test": {"accuracy": accuracy, "nll": nll}}


RESULTS = [
    result("kd", 0, 0.70, 1.0),
    result("none", 0, 0.60, 2.0),
    result("kd", 1, 0.72, 1.5),
    result("kd", 2, 0.74, None),
]


def test_mean_and_sample_deviation():
    assert mean_and_deviation([2, 4, 4, 4, 5, 5, 7, 9]) == (5.0, pytest.approx(math.sqrt(32 / 7)))
    assert mean_and_deviation([1.5]) == (1.5, None)


class TestOverSeeds:
    def test_cells_hold_mean_deviation_and_number(self):
        table = over_seeds(RESULTS, by=["method"], columns=[ACCURACY, NLL])
        assert table.rows == (
            ("kd", "72.00 ± 2.00 (3)", "1.2500 ± 0.3536 (2)"),  # a missing value is not counted
            ("none", "60.00 (1)", "2.0000 (1)"),  # no deviation of a single run
        )

    def test_a_diverged_run_shows(self):
        results = [result("kd", 0, 0.7, 1.0), result("kd", 1, 0.7, math.nan)]
        (row,) = over_seeds(results, by=["method"], columns=[NLL]).rows
        assert row == ("kd", "nan (2)")

    def test_the_same_seed_twice_is_refused(self):
        with pytest.raises(
            ValueError, match=r"method=kd: the same seed twice among \[0, 1, 2, 1\]"
        ):
            over_seeds([*RESULTS, result("kd", 1, 0.9, 0.1)], by=["method"], columns=[NLL])

    def test_settings_may_be_numbers(self):
        rows = [{"temperature": t, "seed": s, "x": t} for t in (1, 2.5) for s in (0, 1)]
        by = [Column("temperature", "T", "general", 3)]
        table = over_seeds(rows, by=by, columns=[Column("x", kind="decimal", digits=1)])
        assert table.rows == (("1", "1.0 ± 0.0 (2)"), ("2.5", "2.5 ± 0.0 (2)"))

    def test_settings_that_round_alike_stay_apart(self):
        rows = [{"rate": rate, "seed": 0, "x": 1.0} for rate in (0.101, 0.102)]
        table = over_seeds(rows, by=[Column("rate", kind="decimal")], columns=[Column("x")])
        assert [row[0] for row in table.rows] == ["0.10", "0.10"]

    def test_all_values_missing(self):
        (row,) = over_seeds([{"method": "kd"}], by=["method"], columns=[NLL]).rows
        assert row == ("kd", "–")


@pytest.mark.parametrize(
    ("value", "column", "cell"),
    [
        (0.98765, Column("x", kind="percent", digits=1), "98.8"),
        (1234567, Column("x", kind="integer"), "1,234,567"),
        (0.00031234, Column("x", kind="general", digits=2), "0.00031"),
        (math.inf, Column("x", kind="decimal"), "inf"),
        (None, Column("x", kind="decimal"), "–"),
        (None, Column("x"), "–"),
        (("a", 1), Column("x"), "('a', 1)"),
        ("n/a", Column("x", kind="percent"), "n/a"),
    ],
)
def test_written(value, column, cell):
    assert format_value(value, column) == cell


def test_find_prefers_the_whole_key_and_reaches_into_dicts():
    row = {"a.b": 1, "a": {"b": 2, "c": {"d": 3}}, "e": None}
    assert [lookup(row, key) for key in ("a.b", "a.c.d", "a.x", "a.b.c", "e.f")] == [
        1,
        3,
        None,
        None,
        None,
    ]


def test_markdown_escapes_and_aligns():
    table = listing(
        [{"name": "a|b\n<i>\\", "n": 1234}], [Column("name"), Column("n", "N", "integer")]
    )
    assert markdown(table) == "| name | N |\n| :--- | ---: |\n| a\\|b &lt;i>\\\\ | 1,234 |\n"


def test_text_is_aligned():
    table = over_seeds(RESULTS, by=["method"], columns=[ACCURACY])
    assert text(table) == (
        "method      Accuracy (%)\n"
        "------  ----------------\n"
        "kd      72.00 ± 2.00 (3)\n"
        "none           60.00 (1)\n"
    )


def test_a_table_without_rows_has_its_heading():
    table = listing([], [ACCURACY])
    assert text(table) == "Accuracy (%)\n------------\n"
    assert markdown(table) == "| Accuracy (%) |\n| ---: |\n"
