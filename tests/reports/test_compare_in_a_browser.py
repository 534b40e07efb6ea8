"""The page of a comparison as a reader has it, in headless Chromium."""

import numpy as np
import pytest
from run_folders import make_run
from test_in_a_browser import AXE, HOSTILE, browser

from distill_jax import cli

__all__ = ["browser"]  # the fixture
ROW = "table[data-name=comparison] tbody tr"


def record(accuracy, seed):
    correct = np.uint8(np.random.default_rng(seed).random(500) < accuracy)
    return {"each_correct": correct, "each_nll": 1 - 0.5 * correct, "each_of": np.array("a")}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    named = HOSTILE.replace("/", "")[:60]
    runs = []
    for name, accuracy, size in (("alone", 0.8, 10), (named, 0.95, 10), ("large", 0.9, 1000)):
        for seed in (0, 1):
            runs.append(
                make_run(
                    root / f"{name}-seed{seed}",
                    config={"seed": seed, "student": {"name": name}},
                    test={"accuracy": accuracy + 0.01 * seed},
                    result={"parameters": size},
                    record=record(accuracy, seed),
                )
            )
    runs.append(make_run(root / "half", finished=False))
    assert cli.main(["compare", *map(str, runs), f"--out={root / 'compare.html'}"]) == 0
    return root / "compare.html"


def test_it_loads_without_an_error_or_a_request(browser, page):
    browser.open(page)
    assert browser.errors() == [] and browser.requests() == []
    assert browser.run("return document.title").startswith("Comparison: alone, <")
    assert "stopped at step 100 of 100" in browser.text("main")


def test_the_table_sorts_and_its_columns_are_chosen(browser, page):
    browser.open(page)
    first = f"return document.querySelector('{ROW} th').textContent"
    assert browser.run(first) == "alone"
    sort = "document.querySelectorAll('table[data-name=comparison] th button')[2].click()"
    browser.run(sort)
    assert browser.run(first).startswith("<")  # the highest accuracy
    assert browser.text(f"{ROW} td:nth-child(3)") == "95.50 ± 0.71"
    hidden = f"return document.querySelector('{ROW} td:nth-child(3)').hidden"
    assert browser.run(hidden) is False
    browser.run("document.querySelector('[data-panel=columns] input').click()")
    assert browser.run(hidden) is True


def test_the_frontier_follows_the_axes(browser, page):
    browser.open(page)
    status = "[data-panel=scatter] [role=status]"
    assert browser.text(status).startswith("Frontier, which no other setting beats in both: <")
    assert "large" not in browser.text(status)  # more parameters and less accurate
    assert browser.run("return document.querySelectorAll('.scatter .point').length") == 3
    browser.run("document.querySelector('.scatter .point').dispatchEvent(new Event('focus'))")
    assert "alone (2 seeds): Accuracy (%) 80.5 ± 0.7071, Parameters 10" in browser.text(status)
    browser.change("[data-panel=scatter] select", "nll", "change")
    assert "NLL" in browser.run("return document.querySelector('.scatter').textContent")


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_cut_and_everything_is_accessible(browser, page, width):
    browser.open(page, width)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.run(AXE)
    found = browser.driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document).then((r) => done(r.violations.map("
        "  (v) => [v.id, v.impact, v.nodes.map((n) => n.html.slice(0, 200))])));"
    )
    assert [v for v in found if v[1] in ("serious", "critical")] == []
