"""Pages: one self-contained HTML file with inline figures, no script and nothing from the network.

A page has sections, and a section has blocks. A plain `str` becomes an escaped paragraph; `table`,
`facts` and `details` make `Markup`; a `Drawing` holds a figure. All text that a user may have
chosen (a class, a run, a path) is escaped. Left out on purpose: templates, themes and anything
interactive.
"""

import html
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from distill_jax import __version__
from distill_jax.reports import figures, stylesheet, tables

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


Block = str | Markup | Drawing
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
    drawings = 0
    body = []
    for number, (heading, blocks) in enumerate(sections, start=1):
        body.append(f'<section id="section-{number}">\n<h2>{_escaped(heading)}</h2>')
        for block in blocks:
            if isinstance(block, Drawing):
                drawings += 1
                body.append(_figure(block, drawings))
            else:
                body.append(block if isinstance(block, Markup) else paragraph(block))
        body.append("</section>")
    links = "".join(
        f'<li><a href="#section-{number}">{_escaped(heading)}</a></li>'
        for number, (heading, _) in enumerate(sections, start=1)
    )
    navigation = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(sections) > 2 else ""
    below = f"<p>{_escaped(subtitle)}</p>" if subtitle else ""
    content = "\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{_escaped(title)}</title>
<style>
{stylesheet.CSS}</style>
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
</body>
</html>
"""


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
) -> Markup:
    """A table; the first cell of a row is its header, numbers are right-aligned.

    Args:
      rows: results (dicts, formatted by the columns), or rows of formatted cells, such as those of
        a `tables.Table`: table(t.rows, t.columns).
      columns: at least one.
      caption: a sentence above the table, which also labels it for screen readers.
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
    name = f"<caption>{_escaped(caption)}</caption>" if caption else ""
    label = _escaped(caption or "Table")
    return Markup(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f"<table>{name}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def details(summary: str, content: Markup) -> Markup:
    """Content that is collapsed under a summary line."""
    return Markup(f"<details><summary>{_escaped(summary)}</summary>\n{content}</details>")


def _escaped(text: object) -> str:
    return html.escape(str(text).replace("\0", "\N{REPLACEMENT CHARACTER}"))


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
                value = _COLOUR.sub(lambda m: f"var({stylesheet.VARIABLES[m[0]][0]})", value)
            element.set(key, value)
    for key, scale in (("width", 4 / 3), ("height", 4 / 3)):  # points to CSS pixels
        root.set(key, f"{float(root.attrib[key].removesuffix('pt')) * scale:.0f}")
    root.set("role", "img")
    root.set("aria-label", description)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


_COLOUR = re.compile("|".join(map(re.escape, stylesheet.VARIABLES)))
