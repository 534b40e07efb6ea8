"""Pages: escaped, self-contained, well-formed, with figures that do not disturb each other."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from page_parser import Page

from distill_jax.reports import figure_style, figures, html, stylesheet, tables

HOSTILE = """<script>alert("1")</script><b>&amp;'"""
COLUMNS = (tables.Column("name", "Name"), tables.Column("x", "X (%)", "percent"))


def curve():
    records = [{"split": "train", "step": step, "loss": 1 / step} for step in (1, 2, 3)]
    return figures.learning_curves({"a": records, "b": records})


def matrix(names):
    return figures.confusion_matrix(np.eye(len(names)), names)


@pytest.fixture(scope="module")
def source():
    table = tables.listing([{"name": HOSTILE, "x": 0.5}], [tables.Column("name", HOSTILE)])
    blocks = [
        HOSTILE,
        html.facts([(HOSTILE, HOSTILE)]),
        html.table(table.rows, table.columns, caption=HOSTILE),
        html.details(HOSTILE, html.paragraph(HOSTILE)),
        html.Drawing(matrix([HOSTILE, "b"]), HOSTILE, HOSTILE),
    ]
    return html.page(HOSTILE, [(HOSTILE, blocks)] * 3, subtitle=HOSTILE)


class TestEscaping:
    def test_text_of_the_user_never_becomes_markup(self, source):
        page = Page(source)
        assert not page.tags() & {"script", "i"}
        assert len(page.find("b")) == 3  # "Figure n.", and none of the user's
        assert page.text.count(HOSTILE) >= 20  # every place shows it as it was written

    def test_attributes_hold_it_whole(self, source):
        labels = [attributes.get("aria-label") for _, attributes in Page(source).elements]
        assert labels.count(HOSTILE) == 6  # of three tables and three figures

    def test_a_figure_shows_it_as_it_was_written(self, source):
        assert any(tag == "svg" for tag, _ in Page(source).elements)
        inside = "".join(re.findall(r"<svg.*?</svg>", source, re.DOTALL))
        assert "&lt;script&gt;" in inside and "<script" not in inside


@pytest.fixture(scope="module")
def page():
    drawings = [html.Drawing(curve(), "Same."), html.Drawing(curve(), "Same.")]
    return Page(html.page("Title", [("One", drawings), ("Two", [html.Drawing(curve(), "Same.")])]))


class TestPage:
    def test_nothing_comes_from_the_network_and_nothing_runs(self, page):
        (policy,) = [m for m in page.find("meta") if m.get("http-equiv")]
        assert policy["content"].startswith("default-src 'none'")
        assert not page.tags() & {"script", "link", "iframe", "img", "object", "base", "form"}
        for _, attributes in page.elements:
            assert not [key for key in attributes if key.startswith("on")]
            for key in ("src", "href", "xlink:href", "action"):
                assert re.match(r"#|data:image/png;base64,", attributes.get(key, "#"))
        assert not re.search(r"@import|url\(|https?:", stylesheet.CSS)

    def test_equal_figures_have_ids_of_their_own(self, page):
        ids = page.ids()
        assert len(ids) == len(set(ids))
        references = page.references()
        own = {"section-1", "section-2", "figure-1", "figure-2", "figure-3"}
        assert references == set(ids) - own  # none dangles, none is kept that nothing points to
        assert all(any(f"figure-{n}-" in name for name in references) for n in (1, 2, 3))

    def test_figures_are_numbered_through_all_sections(self, page):
        assert re.findall(r"Figure \d", page.text) == ["Figure 1", "Figure 2", "Figure 3"]

    def test_figures_follow_the_colours_of_the_page(self, page):
        assert not any("style" in attributes for _, attributes in page.elements)  # forbidden
        styles = " ".join(" ".join(attributes.values()) for _, attributes in page.elements)
        assert "var(--ink)" in styles and "var(--series-1)" in styles
        assert not any(colour in styles for colour in stylesheet.VARIABLES)
        for variable, _ in stylesheet.VARIABLES.values():
            assert stylesheet.CSS.count(f"{variable}: ") == 2  # a value in light, one in dark

    def test_readers_without_sight_get_names(self, page):
        assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.find("svg"))
        (document,) = page.find("html")
        assert document["lang"] == "en"

    def test_sections_are_linked_where_there_are_many(self):
        assert not Page(html.page("T", [("One", []), ("Two", [])])).find("nav")
        page = Page(html.page("T", [("One", []), ("Two", []), ("Three", [])]))
        assert page.references() == {"section-1", "section-2", "section-3"}

    def test_same_input_same_bytes(self):
        sections = [("One", [html.Drawing(curve(), "Same.")])]
        assert html.page("T", sections) == html.page("T", sections)

    def test_figure_settings_do_not_leak_onto_the_page(self, page):
        assert "metadata" not in page.tags()
        assert len(page.find("style")) == 2  # those of the page itself


@pytest.fixture(scope="module")
def with_scripts():
    chart = {"axes": [["step", "Step"]], "charts": [{"title": HOSTILE, "series": []}]}
    panel = html.Panel("chart", {**chart, "more": [float("nan"), "\u2028", np.arange(2)]}, HOSTILE)
    table = html.table([{"name": HOSTILE, "x": 0.5}], COLUMNS, interactive=True, name=HOSTILE)
    return html.page(HOSTILE, [("One", [panel, panel, table])])


class TestScripts:
    def test_the_policy_names_every_script_and_style_sheet_and_nothing_else(self, with_scripts):
        (policy,) = [m for m in Page(with_scripts).find("meta") if m.get("http-equiv")]
        for tag, directive in (("script", "script-src"), ("style", "style-src")):
            contents = re.findall(rf"<{tag}>(.*?)</{tag}>", with_scripts, re.DOTALL)
            assert len(contents) == len(set(contents)) > 1
            hashes = {base64.b64encode(hashlib.sha256(c.encode()).digest()) for c in contents}
            (listed,) = re.findall(rf"{directive} ([^;]*)", policy["content"])
            assert listed.split() and set(listed.split()) == {
                f"'sha256-{h.decode()}'" for h in hashes
            }
        assert "unsafe" not in policy["content"]

    def test_data_cannot_end_their_element(self, with_scripts):
        data = re.findall(
            r'<script type="application/json">(.*?)</script>', with_scripts, re.DOTALL
        )
        assert len(data) == 2
        assert not re.search("[<>&\u2028\u2029]", data[0])
        found = json.loads(data[0])
        assert found["charts"][0]["title"] == HOSTILE
        assert found["more"] == [None, "\u2028", [0, 1]]

    def test_a_page_without_panels_has_no_script(self, source):
        assert "<script" not in source and "script-src" not in source


def contrast(one: str, other: str) -> float:
    """Contrast of two colours as WCAG 2.1 defines it, from 1 to 21."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_readable_on_paper(dark):
    papers = re.findall(r"--(?:paper|card): (#\w{6})", stylesheet.CSS)
    assert len(papers) == 4
    for paper in papers[2:] if dark else papers[:2]:
        for light, (variable, dark_value) in stylesheet.VARIABLES.items():
            if variable == "--rule":
                continue
            needed = 4.5 if variable in ("--ink", "--muted", "--series-1") else 3.0  # text; lines
            assert contrast(dark_value if dark else light, paper) >= needed, variable
    assert contrast("#ffffff", figure_style.SERIES[0]) >= 4.5  # numbers on full cells of a matrix


class TestTable:
    def test_cells_come_from_dicts_or_finished_tables_alike(self):
        rows = [{"name": "kd", "x": 0.5}, {"name": "none", "x": None}]
        table = tables.listing(rows, COLUMNS)
        assert html.table(rows, COLUMNS) == html.table(table.rows, table.columns)

    def test_numbers_stand_right_and_heads_are_marked(self):
        source = html.table([{"name": "kd", "x": 0.5}], COLUMNS, caption="Results")
        page = Page(source)
        assert "<caption>Results</caption>" in source
        assert [th.get("scope") for th in page.find("th")] == ["col", "col", "row"]
        assert [th.get("class") for th in page.find("th")] == [None, "number", None]
        assert page.find("td") == [{"class": "number"}]
        assert re.findall(r"<t[hd]\b[^>]*>([^<]*)", source) == ["Name", "X (%)", "kd", "50.00"]
