"""The style of figures and their files: palette, matplotlib settings, reproducible SVG.

Nothing here changes pyplot or any other global state. Left out on purpose: what is drawn, which is
in `distill_jax.reports.figures`, and the colours of dark mode, which belong to the page
(`distill_jax.reports.stylesheet`).
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

INK, MUTED, GRID = "#22262e", "#69707d", "#dfe3e8"
ACCENT = "#d9480f"
SERIES = ("#1c6dd0", ACCENT, "#0b8a5f", "#8e4ec6", "#a87900", "#0c8599")
MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE: dict[Any, Any] = {  # matplotlib types the keys as a literal
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # bundled with matplotlib: the same layout everywhere
    "font.size": 8.5,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "distill_jax",
    "svg.image_inline": True,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5"
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The matplotlib settings of all figures here; use it for your own figures too."""
    with matplotlib.style.context("default"), matplotlib.rc_context(_STYLE):
        yield


def svg(figure: Figure) -> str:
    """The figure as SVG with text as text and no date; equal figures give equal bytes."""
    buffer = io.StringIO()
    with style(), warnings.catch_warnings():
        # The viewer's fonts cover scripts that the layout font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure on white as .svg, .png or .pdf; equal figures give equal bytes.

    Args:
      figure: any figure made here.
      path: the file to write; its suffix decides the format.
    """
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}
    metadata = dates.get(os.path.splitext(path)[1].lower())
    with style():
        figure.savefig(path, facecolor="white", metadata=metadata, dpi=160)


def label_text(text: object) -> str:
    """Text for a figure, cut to 40 characters, with control characters made visible.

    SVG forbids control characters, and a long name would leave no room for the drawing.
    """
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return text if len(text) <= 40 else text[:39] + "…"
