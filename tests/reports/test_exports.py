"""CSV and LaTeX: names that a user chose stay data."""

import csv
import io

import pytest

from distill_jax.reports import exports
from distill_jax.reports.tables import Column, Table


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1"]
)
def test_a_text_in_csv_is_no_formula(text):
    written = exports.csv_text([{"name": text, "value": -1.5}], ["name", "value"])
    ((name, value),) = list(csv.reader(io.StringIO(written, newline="")))[1:]
    assert name == "'" + text and value == "-1.5"


def test_csv_quotes_and_keeps_every_digit():
    rows = [{"a": 'x,"y"\nz', "b": 1 / 3}, {"a": None, "b": True}]
    written = exports.csv_text(rows, ["a", "b"])
    assert list(csv.reader(io.StringIO(written, newline=""))) == [
        ["a", "b"],
        ['x,"y"\nz', repr(1 / 3)],
        ["", "True"],
    ]


def test_latex_has_no_command_that_a_name_brings():
    table = Table(
        (Column("a", "Run_1 & 50%"), Column("b", "Value", "decimal")),
        ((r"\input{/etc/passwd} $x$ #1 ~^", "1.0 ± 0.1"), ("[2]\n\npar", "-2")),
    )
    lines = exports.latex(table).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert lines[2] == r"Run\_1 \& 50\% & Value \\"
    assert lines[4].startswith(r"\textbackslash{}input\{/etc/passwd\} \$x\$ \#1")
    assert lines[4].endswith(r"\textasciitilde{}\textasciicircum{} & 1.0 $\pm$ 0.1 \\")
    assert lines[5] == r"{[}2] par & -2 \\"
