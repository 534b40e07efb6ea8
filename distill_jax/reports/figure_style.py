"""How figures look and how they become files: palette, settings, SVG that is the same every time.

Nothing here touches pyplot or any other global state. Left out on purpose: what is drawn, which is
for `distill_jax.reports.figures`, and dark colours, which are for the page
(`distill_jax.reports.stylesheet`).
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

INK, MUTED, GRID = "#22262e", "#69707d", "#dfe3e8"
ACCENT = "#d9480f"
SERIES = ("#1c6dd0", ACCENT, "#0b8a5f", "#8e4ec6", "#a87900", "#0c8599")
MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE = {
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
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the layout is the same everywhere
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
    """Settings under which every figure here is made and drawn; for figures of your own as well."""
    with matplotlib.style.context("default"), matplotlib.rc_context(_STYLE):
        yield


def svg(figure: Figure) -> str:
    """The figure as SVG with real text, equal bytes for equal figures, no date."""
    buffer = io.StringIO()
    with style(), warnings.catch_warnings():
        # The viewer has fonts for scripts that the layout font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the figure on white, as .svg, .png or .pdf by the name; equal bytes for equal figures.

    Args:
      figure: any figure made here.
      path: the file to write.
    """
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}
    metadata = dates.get(os.path.splitext(path)[1].lower())
    with style():
        figure.savefig(path, facecolor="white", metadata=metadata, dpi=160)


def label_text(text: object) -> str:
    """Text for a figure: at most 40 characters, control characters as a visible mark.

    An SVG may not hold control characters, and a long name would leave no room for the drawing.
    """
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return text if len(text) <= 40 else text[:39] + "…"
