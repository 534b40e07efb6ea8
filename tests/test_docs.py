"""Every example in README.md and docs/ does what the page says.

Blocks of a page run in order, in one empty folder: ```python file=NAME writes a file, ```python run
runs it, ```console runs commands, each of which must exit with the code in `exit=` (0 by default).
"""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import compiling
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(python|console)[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if BLOCK.search(path.read_text()))

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
        "PYTHONPATH": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, tmp_path, digits_teacher):
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
            pending += [(line, int(fields.get("exit", 0))) for line in lines]
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
