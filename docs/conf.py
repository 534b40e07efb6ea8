"""Settings of the documentation site: `make docs` builds it from these pages and the docstrings."""

import json
import pathlib
import re

import distill_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent

project = "distill_jax"
copyright = "the distill_jax authors; Apache-2.0"
release = version = distill_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"distill_jax {release}"
html_copy_source = False
myst_heading_anchors = 3
# Packages import their rooms at first use, and JAX warns of nothing here: no import is mocked.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
napoleon_custom_sections = ["Reference"]
suppress_warnings = ["myst.xref_ambiguous"]

# On the site the README of a study is a page of studies/.
_STUDY = re.compile(r"\]\((?:\.\./)*experiments/(\w+)/README\.md")
_GUIDE = re.compile(r"\]\((?:\.\./)*docs/(\w+\.md)")

_SECTION = re.compile(r"^ *(Args|Attributes|Example|Raises|Reference|Returns|Yields):$")
_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_SPECIAL = re.compile(r"([\\*|])|(_)(?!\w)")  # emphasis, substitutions, references of reST


def _prose(line: str) -> str:
    """A line of a docstring as reStructuredText: text in backticks is code, the rest is plain."""
    parts = _CODE.split(line)
    for index, part in enumerate(parts):
        if index % 2:
            space = r"\ " if parts[index + 1][:1].isalnum() else ""  # `x`s
            parts[index] = f"``{part.strip('`')}``{space}"
        else:
            parts[index] = _SPECIAL.sub(r"\\\1\2", part)
    return "".join(parts)


def _to_rest(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are text with backticks; an indented paragraph, after a blank line, is code."""
    result: list[str] = []
    code = False
    section_indent = 0
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if _SECTION.match(line):
            section_indent, code = indent + 2, False
        elif line.strip() and indent < section_indent:
            section_indent = 0
        after_blank = number == 0 or not lines[number - 1].strip()
        if line.strip():
            deep = indent >= section_indent + 4
            if deep and (after_blank or code) and not code:
                result += [" " * section_indent + "::", ""]
            code = deep and (after_blank or code)
        plain = code or line.lstrip().startswith((">>>", "..."))
        result.append(line if plain else _prose(line))
    lines[:] = result


def _short_types(app, what, name, obj, options, signature, returns) -> tuple:
    """A JAX array is an `Array`, wherever its class is defined."""
    return tuple(
        text and re.sub(r"(jax\.)?jaxlib\._jax\.Array", "Array", text)
        for text in (signature, returns)
    )


def _output(output: dict) -> str:
    """What a notebook's cell printed or drew, as Markdown."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![Figure](data:image/png;base64,{''.join(data['image/png']).strip()})"
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```"


def _notebook(app, docname: str, source: list[str]) -> None:
    """Puts the executed notebook of examples/ into its page."""
    folder, _, name = docname.rpartition("/")
    if folder != "notebooks":
        return
    parts = []
    for cell in json.loads((ROOT / "examples" / f"{name}.ipynb").read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += map(_output, cell.get("outputs", []))
    source[0] = "\n\n".join(parts)
    app.env.note_dependency(str(ROOT / "examples" / f"{name}.ipynb"))


def _links(app, docname: str, source: list[str]) -> None:
    """Makes links of the repository links of the site."""
    up = "../" * docname.count("/")
    source[0] = _GUIDE.sub(rf"]({up}\1", _STUDY.sub(rf"]({up}studies/\1.md", source[0]))


def _included_links(app, relative_path, parent_docname: str, content: list[str]) -> None:
    """Does the same in an included README."""
    _links(app, app.env.docname, content)  # parent_docname lacks its folder


def setup(app) -> None:
    """Notebooks become pages, links those of the site, docstrings what napoleon reads."""
    app.connect("source-read", _notebook)
    app.connect("source-read", _links, priority=600)
    app.connect("include-read", _included_links)
    app.connect("autodoc-process-signature", _short_types)
    app.connect("autodoc-process-docstring", _to_rest, priority=400)
