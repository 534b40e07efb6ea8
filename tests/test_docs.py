"""Every example in docs/ does what the page says, and no page contradicts a file that it describes.

Blocks of a page run in order, in one empty folder: ```python file=NAME writes a file, ```python run
runs it, ```console runs commands, each of which must exit with the code in `exit=` (0 by default).
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import compiling
import pytest

import distill_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(python|console)[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if BLOCK.search(path.read_text()))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

RUNNER = """
import sys, shlex
from distill_jax import cli
for line, expected in {commands!r}:
    code = cli.main(shlex.split(line)[1:])
    assert code == expected, f"{{line}}: exit code {{code}}, expected {{expected}}"
"""


def run(code: str, folder: pathlib.Path) -> None:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": compiling.flags(1),
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


#: Pages whose runs take minutes: what a push adds to them, so that every command runs but briefly.
SHORTER = {
    "quickstart_language.md": {"train": "--config.training.steps=10"},
    "quickstart_vision.md": dict.fromkeys(
        ("train", "precompute"),
        "--config.training.epochs=4 --config.evaluation.every_epochs=2",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, tmp_path, digits_teacher):
    run_page(page, tmp_path, digits_teacher, SHORTER.get(page, {}))


@pytest.mark.nightly
@pytest.mark.parametrize("page", SHORTER)
def test_the_examples_of_a_page_run_as_printed(page, tmp_path, digits_teacher):
    run_page(page, tmp_path, digits_teacher, {})


def run_page(page: str, tmp_path, digits_teacher, more: dict[str, str]) -> None:
    """Runs the blocks of a page; `more` are flags that a command of a verb gets besides."""
    import shutil

    if page == "add_a_method.md":
        shutil.copytree(digits_teacher, tmp_path / "runs" / "teacher")
    pending: list[tuple[str, int]] = []
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text())
    assert blocks
    for language, information, body in blocks:
        fields = dict(part.partition("=")[::2] for part in shlex.split(information))
        if language == "console":
            lines = [line for line in body.replace("\\\n", " ").splitlines() if line.strip()]
            pending += [
                (f"{line} {more.get(line.split()[1], '')}", int(fields.get("exit", 0)))
                for line in lines
            ]
            continue
        if pending:
            run(RUNNER.format(commands=pending), tmp_path)
            pending = []
        if "file" in fields:
            (tmp_path / fields["file"]).write_text(body)
        elif "run" in fields:
            run(body, tmp_path)
    if pending:
        run(RUNNER.format(commands=pending), tmp_path)


def test_the_page_of_methods_has_every_method_with_its_weight():
    from distill_jax import methods
    from distill_jax.methods import base

    rows = re.findall(
        r"^\| `([a-z_]+)` \|.*\| ([\d.]+) \|$", (ROOT / "docs/methods.md").read_text(), re.M
    )
    assert len(dict(rows)) == len(rows)
    ours = [n for n in methods.names() if base.find(n).__module__.startswith("distill_jax.")]
    assert {name: float(weight) for name, weight in rows} == {
        name: methods.published_weight(name) for name in ours
    }


def test_links_of_the_pages_outside_the_site_exist():
    for page in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
        assert links
        assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    named = re.findall(
        r"`((?:distill_jax|configs|experiments|examples|tests)/[\w./]*)`", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_contributing_names_the_layers_that_are_enforced():
    (contract, *_) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    enforced = [
        {name.strip().removeprefix("distill_jax.") for name in layer.split(":")}
        for layer in reversed(contract["layers"])
    ]
    lines = [
        line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if "  <  " in line
    ]
    assert [set(layer.split()) for layer in " ".join(lines).split("<")] == enforced


def test_the_supported_pythons_are_the_same_everywhere():
    setup = (ROOT / "setup.py").read_text()
    pythons = re.findall(r'"Programming Language :: Python :: ([\d.]+)"', setup)
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert re.search(r"^ +python: (\[.*\])$", workflow, re.M)[1] == json.dumps(pythons)
    table = re.findall(r"^\| ([\d., ]+) \| 0\.", (ROOT / "docs/install.md").read_text(), re.M)
    assert ", ".join(table).split(", ") == pythons


def test_ci_in_public_is_ci():
    assert "- run: .ci/run\n" in (ROOT / ".github/workflows/ci.yml").read_text()


def test_every_extra_is_in_the_install_page():
    extras = (ROOT / "setup.py").read_text().partition("extras_require={")[2].partition("},")[0]
    names = re.findall(r'^ +"([a-z-]+)":', extras, re.M)
    page = (ROOT / "docs/install.md").read_text()
    assert names and [n for n in names if f"`{n}`" not in page and f"[{n}]" not in page] == []


def test_the_citation_is_of_this_version():
    assert f"\nversion: {distill_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_figure_of_the_front_page_shows_every_seed():
    from experiments.demo import figure

    drawn = figure.students(json.loads(figure.RESULTS.read_text()))
    dots = [line for axes in drawn.axes for line in axes.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [10] * 6
    assert figure.FIGURE.exists()
