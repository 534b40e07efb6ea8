"""Pages: one self-contained HTML file with inline figures and scripts, nothing from the network.

A page has sections, and a section has blocks. A plain `str` becomes an escaped paragraph; `table`,
`facts` and `details` make `Markup`; a `Drawing` holds a figure; a `Panel` holds data that a script
of page/ draws. All text that a user may have chosen (a class, a run, a path) is escaped, or goes
through text nodes. Left out on purpose: templates and themes.
"""

import html
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from distill_jax import __version__
from distill_jax.reports import assets, figures, stylesheet, tables

INTERACTIVE = '<table class="interactive"'
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


class Markup(str):
    """HTML made by this module, which is put on a page unchanged."""


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption; the page numbers it.

    Attributes:
      figure: the figure.
      caption: one or two sentences below it.
      description: its text alternative for screen readers; empty for the caption.
    """

    figure: Figure
    caption: str
    description: str = ""


@dataclass(frozen=True)
class Panel:
    """A part of the page that a script draws.

    Attributes:
      kind: which script, a key of `assets.NEEDS`.
      data: what it draws, as plain values and arrays; see the head of its script.
      label: what screen readers call it.
      without: what a reader without scripts misses, one sentence.
    """

    kind: str
    data: Any
    label: str
    without: str = "This part of the page needs JavaScript."


Block = str | Markup | Drawing | Panel
Section = tuple[str, Sequence[Block]]


def page(title: str, sections: Iterable[Section], *, subtitle: str = "") -> str:
    """A whole HTML document.

    Args:
      title: the heading of the page.
      sections: pairs of a heading and its blocks; a `str` becomes an escaped paragraph.
      subtitle: a line below the title.

    Returns:
      The HTML, to be encoded as UTF-8; equal arguments give equal text.
    """
    sections = list(sections)
    content, kinds = _body(sections)
    links = "".join(
        f'<li><a href="#section-{number}">{_escaped(heading)}</a></li>'
        for number, (heading, _) in enumerate(sections, start=1)
    )
    navigation = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(sections) > 2 else ""
    below = f"<p>{_escaped(subtitle)}</p>" if subtitle else ""
    files = assets.files(kinds)
    styles = [stylesheet.CSS, *(assets.text(name) for name in files if name.endswith(".css"))]
    scripts = [assets.text(name) for name in files if name.endswith(".js")]
    policy = _escaped(assets.policy(styles, scripts))
    style = "\n".join(f"<style>{sheet}</style>" for sheet in styles)
    script = "\n".join(f"<script>{source}</script>" for source in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_escaped(title)}</title>
{style}
</head>
<body>
<header>
<h1>{_escaped(title)}</h1>
{below}
{navigation}
</header>
<main>
{content}
</main>
<footer>distill_jax {_escaped(__version__)}</footer>
{script}
</body>
</html>
"""


def _body(sections: Sequence[Section]) -> tuple[str, list[str]]:
    """The sections as HTML, and the kinds of panels that they have, in order."""
    drawings = 0
    body: list[str] = []
    kinds: list[str] = []
    for number, (heading, blocks) in enumerate(sections, start=1):
        body.append(f'<section id="section-{number}">\n<h2>{_escaped(heading)}</h2>')
        for block in blocks:
            if isinstance(block, Drawing):
                drawings += 1
                body.append(_figure(block, drawings))
            elif isinstance(block, Panel):
                kinds.append(block.kind)
                body.append(_panel(block))
            elif isinstance(block, Markup):
                kinds += ["table"] if INTERACTIVE in block else []
                body.append(block)
            else:
                body.append(paragraph(block))
        body.append("</section>")
    return "\n".join(body), kinds


def paragraph(text: str) -> Markup:
    """Text as an escaped paragraph."""
    return Markup(f"<p>{_escaped(text)}</p>")


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """A few key figures as tiles.

    Args:
      pairs: (label, value) of each.
    """
    tiles = "".join(
        f"<div><dt>{_escaped(label)}</dt><dd>{_escaped(value)}</dd></div>" for label, value in pairs
    )
    return Markup(f'<dl class="facts">{tiles}</dl>')


def table(
    rows: Sequence[Mapping[str, Any] | Sequence[str]],
    columns: Sequence[tables.Column],
    *,
    caption: str = "",
    interactive: bool = False,
    shown: int = 25,
    name: str = "table",
) -> Markup:
    """A table; the first cell of a row is its header, numbers are right-aligned.

    Args:
      rows: results (dicts, formatted by the columns), or rows of formatted cells, such as those of
        a `tables.Table`: table(t.rows, t.columns).
      columns: at least one.
      caption: a sentence above the table, which also labels it for screen readers.
      interactive: whether a reader sorts, filters and saves it; it then begins folded.
      shown: the rows before it is unfolded.
      name: of the CSV file, without its suffix.
    """
    kinds = [' class="number"' if column.numeric else "" for column in columns]
    head = "".join(
        f'<th scope="col"{kind}>{_escaped(column.heading)}</th>'
        for column, kind in zip(columns, kinds, strict=True)
    )
    lines = []
    for row in rows:
        cells = tables.listing([row], columns).rows[0] if isinstance(row, Mapping) else row
        first, *rest = (f"{kind}>{_escaped(cell)}" for cell, kind in zip(cells, kinds, strict=True))
        lines.append(f'<tr><th scope="row"{first}</th>' + "".join(f"<td{c}</td>" for c in rest))
    body = "</tr>\n".join([*lines, ""])
    titled = f"<caption>{_escaped(caption)}</caption>" if caption else ""
    opened = f'{INTERACTIVE} data-shown="{shown}" data-name="{_escaped(name)}">'
    label = _escaped(caption or "Table")
    return Markup(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f"{opened if interactive else '<table>'}{titled}\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table></div>"
    )


def details(summary: str, content: Markup) -> Markup:
    """Content that is collapsed under a summary line."""
    return Markup(f"<details><summary>{_escaped(summary)}</summary>\n{content}</details>")


def _escaped(text: object) -> str:
    return html.escape(str(text).replace("\0", "\N{REPLACEMENT CHARACTER}"))


def _panel(panel: Panel) -> str:
    return (
        f'<div class="panel" data-panel="{_escaped(panel.kind)}" role="group" '
        f'aria-label="{_escaped(panel.label)}">'
        f'<script type="application/json">{assets.embedded(panel.data)}</script>\n'
        f"<noscript>{paragraph(panel.without)}</noscript></div>"
    )


def _figure(drawing: Drawing, number: int) -> str:
    drawn = _inline_svg(
        figures.svg(drawing.figure), f"figure-{number}-", drawing.description or drawing.caption
    )
    return (
        f'<figure id="figure-{number}"><div class="scroll">{drawn}</div>\n'
        f"<figcaption><b>Figure {number}.</b> {_escaped(drawing.caption)}</figcaption></figure>"
    )


def _inline_svg(source: str, prefix: str, description: str) -> str:
    """Adapts a figure's SVG to a page with several figures.

    Every id gets the prefix, because a browser resolves a repeated id to its first element. Colours
    become the variables of the page. The SVG's own style and metadata are removed: the style would
    apply to the whole page.
    """
    root = ElementTree.fromstring(source)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', source))
    for element in root.iter():
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            if key == "id":
                value = prefix + value
            elif key == f"{{{XLINK}}}href" and value.startswith("#"):
                value = f"#{prefix}{value[1:]}"
            elif key == "clip-path":
                value = value.replace("url(#", f"url(#{prefix}")
            elif key == "style":
                continue
            element.set(key, value)
        for key, value in _presentation(element.attrib.pop("style", "")).items():
            element.set(key, _COLOUR.sub(lambda m: f"var({stylesheet.VARIABLES[m[0]][0]})", value))
    for key, scale in (("width", 4 / 3), ("height", 4 / 3)):  # points to CSS pixels
        root.set(key, f"{float(root.attrib[key].removesuffix('pt')) * scale:.0f}")
    root.set("role", "img")
    root.set("aria-label", description)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _presentation(style: str) -> dict[str, str]:
    """A style attribute, which the policy of a page forbids, as presentation attributes."""
    found = {}
    for declaration in filter(None, map(str.strip, style.split(";"))):
        key, value = (part.strip() for part in declaration.split(":", 1))
        if key == "font":  # matplotlib's shorthand: [style] [weight] size family
            *before, size = value.split("px")[0].split()
            found["font-size"] = f"{size}px"
            found |= {"font-weight": "bold"} if {"bold", "700"} & set(before) else {}
        else:
            found[key] = value
    return found


_COLOUR = re.compile("|".join(map(re.escape, stylesheet.VARIABLES)))
