"""Pages as a reader has them, in headless Chromium: everything works, nothing leaves the page."""

import base64
import json
import pathlib
import shutil

import numpy as np
import pytest
import recorded_runs
import test_run_report as run_report

from distill_jax import reports
from distill_jax.training.logging.writers import MetricsLog

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
HOSTILE = (
    "</script><script>document.title='broken'</script><img src=x onerror=\"document.title=1\">"
)
NAMES = ["zero", "one", HOSTILE, "three", "four\u2028", "five", "six", "seven"]
AXE = (pathlib.Path(__file__).parent / "axe" / "axe.min.js").read_text()


class Browser:
    """A page in Chromium."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path: pathlib.Path, width: int = 1200) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(path.as_uri())

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def press(self, selector: str, key: str) -> None:
        self.run(
            "document.querySelector(arguments[0]).dispatchEvent("
            "new KeyboardEvent('keydown', {key: arguments[1], bubbles: true}))",
            selector,
            key,
        )

    def change(self, selector: str, value: str, event: str = "input") -> None:
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(arguments[2]))",
            selector,
            value,
            event,
        )

    def requests(self) -> list[str]:
        """Addresses that the page asked for, itself left out."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                # chrome: is the empty tab, which still loads when the page is opened.
                found += [] if url.startswith(("data:", "file:", "chrome:")) else [url]
        return found

    def errors(self) -> list[str]:
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] != "INFO"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield Browser(driver)
    driver.quit()


def write_logs(folder):
    with MetricsLog(folder / "metrics.jsonl") as log:
        for step in range(10, 110, 10):
            train = {"loss": 20 / step, "hard_loss": 10 / step, "soft_loss": 5 / step}
            train |= {"epoch": step / 50, "learning_rate": 0.1, "gradient_norm": 1.0}
            log.write(step, "train", train)
        log.write(100, "validation", {"accuracy": 0.5, "nll": 1.5, "kl": 0.25})
    with MetricsLog(folder / "performance.jsonl") as log:
        for step in range(10, 110, 10):
            log.write(step, "train", {"examples_per_second": 100.0, "step_time_s": 0.5})


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of runs of every kind, by name."""
    image, text = (
        recorded_runs.image_record(NAMES),
        recorded_runs.text_record([" a", HOSTILE, "\n", "d"]),
    )
    lone = recorded_runs.image_record(NAMES, teacher=False)
    answer = {
        "prompt": HOSTILE,
        "reference": "r",
        "student": "one two",
        "teacher": f"one {HOSTILE}",
    }
    per_class = {"per_class": [0.125 * k for k in range(8)], "teacher_per_class": [1.0] * 8}
    test = {**run_report.TEST, **per_class, "samples": [answer]}
    final = {**run_report.RESULT["final"], "test": test}
    result = {**run_report.RESULT, "final": final}
    config = {**run_report.CONFIG, "note": HOSTILE, "training": {"batch_size": 64}}
    found = {}
    for name, record in (("image", image), ("text", text), ("lone", lone), ("unfinished", None)):
        folder = tmp_path_factory.mktemp(name)
        manifest = run_report.MANIFEST if name != "lone" else {"data": {}, "teachers": []}
        recorded_runs.write(folder, config, manifest, result, record)
        if name == "unfinished":
            (folder / "result.json").unlink()
        write_logs(folder)
        found[name] = reports.run_report(folder)
    return found


@pytest.mark.parametrize("name", ["image", "text", "lone", "unfinished"])
@pytest.mark.parametrize("width", [1200, 360])
def test_every_page_draws_fits_and_asks_for_nothing(browser, pages, name, width):
    browser.open(pages[name], width)
    assert "could not be drawn" not in browser.run("return document.body.innerText")
    assert browser.run("return document.title") == "mlp on digits"  # no text of the data ran
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert not browser.run("return document.querySelector('[data-panel] img[src=\"x\"]')")
    hints = browser.run(
        "return [...document.querySelectorAll('.scroll')].map((box) => "
        "[box.scrollWidth > box.clientWidth + 1, !box.previousElementSibling.hidden])"
    )
    assert hints and all(overflows == shown for overflows, shown in hints)
    assert browser.errors() == [] and browser.requests() == []


@pytest.mark.parametrize("name", ["image", "text"])
def test_no_serious_barrier(browser, pages, name):
    browser.open(pages[name])
    browser.driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    browser.open(pages[name])
    browser.run(AXE)
    found = browser.driver.execute_async_script(
        "axe.run(document, {resultTypes: ['violations']}).then(arguments[0])"
    )
    browser.driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
    serious = [
        (v["id"], [node["html"][:200] for node in v["nodes"]][:3])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


def soft(logits, temperature):
    powers = np.exp(np.float64(logits) / temperature)
    return powers / powers.sum()


class TestDarkKnowledge:
    BROWSER = '[data-panel="browser"]'

    def shown(self, browser):
        """The number of the example, and each network's percentages by class."""
        rows = browser.run(
            "return [...document.querySelectorAll('.example .bars')].map((table) => "
            "[...table.tBodies[0].rows].map((row) => row.cells[2].textContent))"
        )
        number = int(browser.text(".example .subject .note").split()[1])
        return number, rows

    def test_the_slider_gives_the_soft_targets_of_both(self, browser, pages):
        record = recorded_runs.image_record(NAMES)
        browser.open(pages["image"])
        for exponent in (0, 2, -2, 5):
            browser.change(f"{self.BROWSER} input[type=range]", str(exponent))
            number, rows = self.shown(browser)
            at = record["ids"].tolist().index(number)
            parts = [soft(record[name][at], 2.0**exponent) for name in ("teacher", "student")]
            assert rows == [[f"{100 * p:.1f}%" for p in part] for part in parts]
            kl = np.sum(parts[0] * np.log(parts[0] / parts[1]))
            figures = browser.text(".example .figures")
            assert f"KL(teacher ‖ student) {float(f'{kl:.3g}'):g} nats" in figures
        assert (
            browser.run(
                "return document.querySelector(arguments[0]).getAttribute('aria-valuetext')",
                f"{self.BROWSER} input[type=range]",
            )
            == "temperature 32"
        )

    def test_choices_are_filtered_and_walked_by_keys(self, browser, pages):
        record = recorded_runs.image_record(NAMES)
        differ = record["student"].argmax(-1) != record["teacher"].argmax(-1)
        browser.open(pages["image"])
        browser.change(f"{self.BROWSER} select", "2", "change")
        assert f"1 of {differ.sum()} examples" in browser.text(self.BROWSER)
        first = self.shown(browser)[0]
        browser.press(".thumbs", "ArrowRight")
        assert self.shown(browser)[0] != first
        assert f"Example {self.shown(browser)[0]}, class" in browser.text(".panel [role=status]")
        selected = "return document.querySelector('.thumbs [aria-selected=true]').id"
        active = "return document.querySelector('.thumbs').getAttribute('aria-activedescendant')"
        assert browser.run(selected) == browser.run(active)
        browser.change(f"{self.BROWSER} input[type=search]", "no such class")
        assert "No example fits." in browser.text(self.BROWSER)


def test_tables_sort_filter_and_keep_the_figures_of_result_json(browser, pages):
    browser.open(pages["image"])
    table = 'table[data-name="classes"]'
    column = (
        f"return [...document.querySelector('{table}').tBodies[0].rows]"
        ".filter((row) => row.offsetParent).map((row) => row.cells[2].textContent)"
    )
    assert browser.run(column) == [f"{12.5 * k:.1f}" for k in range(8)]
    browser.run(f"document.querySelectorAll('{table} .sort')[2].click()")
    assert browser.run(column) == [f"{12.5 * k:.1f}" for k in range(7, -1, -1)]
    sort = f"return document.querySelector('{table} [aria-sort]').getAttribute('aria-sort')"
    assert browser.run(sort) == "descending"
    whole = column.replace("row.cells[2]", "row")
    wanted = [text for text in browser.run(whole) if "sev" in text.lower()]
    browser.run(
        f"const box = document.querySelector('{table}').closest('.scroll');"
        "let tools = box.previousElementSibling;"
        "while (!tools.matches('.controls')) tools = tools.previousElementSibling;"
        "const input = tools.querySelector('input'); input.value = 'SEV';"
        "input.dispatchEvent(new Event('input'))"
    )
    assert browser.run(whole) == wanted and 0 < len(wanted) < 8
    assert "95.60%" in browser.text(".facts")


def test_curves_are_read_by_keys_on_any_axis(browser, pages):
    browser.open(pages["image"])
    chart = '[data-panel="chart"]'
    browser.press(f"{chart} .canvas", "Home")
    assert "Steps 10: train 1, validation –" in browser.text(f"{chart} [role=status]")
    browser.change(f"{chart} select", "time", "change")
    browser.press(f"{chart} .canvas", "End")
    assert "Training time (s) 50: train 0.1, validation 1.5" in browser.text(
        f"{chart} [role=status]"
    )
    for box in range(2):
        browser.run(f"document.querySelectorAll('{chart} input[type=checkbox]')[{box}].click()")
    browser.change(f"{chart} input[type=range]", "0.9")
    browser.press(f"{chart} .canvas", "End")
    assert "train 0.1," in browser.text(f"{chart} [role=status]")  # the raw value
    assert browser.errors() == []


def test_tokens_show_what_both_expect(browser, pages):
    browser.open(pages["text"])
    browser.press(".tokens", "Home")
    browser.press(".tokens", "ArrowRight")
    browser.press(".tokens", "ArrowRight")
    assert HOSTILE in browser.text(".token-detail .piece")
    assert "KL(teacher ‖ student), nats: 0.1" in browser.text(".token-detail p")
    assert browser.run("return document.querySelectorAll('.token-detail table').length") == 2
    marks = "return [...document.querySelectorAll('.answers mark')].map((m) => m.textContent)"
    assert HOSTILE.split()[0] in browser.run(marks)[0]


def test_print_is_light_and_whole(browser, pages):
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    browser.open(pages["image"])
    paper = "return getComputedStyle(document.documentElement).backgroundColor"
    assert browser.run(paper) == "rgb(20, 23, 28)"
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", **dark})
    assert browser.run(paper) == "rgb(255, 255, 255)"
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert browser.errors() == []


def test_a_page_works_inside_a_notebook(browser, pages, tmp_path):
    host = tmp_path / "notebook.html"
    frame = reports.InNotebook(pages["image"], height=700)._repr_html_()
    host.write_text(f"<!DOCTYPE html><meta charset=utf-8><title>notebook</title>{frame}")
    browser.open(host)
    browser.driver.switch_to.frame(0)
    try:
        assert "of 60 examples" in browser.text('[data-panel="browser"]')
        assert browser.text("h1") == "mlp on digits"
    finally:
        browser.driver.switch_to.default_content()
    assert browser.run("return document.title") == "notebook"
    assert browser.errors() == [] and browser.requests() == []
